"""From images that an ensemble has labelled to the data set its student is trained on: DatasetDDPM's filter."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from gate_lightning.data.card import ClassLabels
from gate_lightning.data.samples import SampleSource
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.tools.labelling.labelled_folder import (
    TABLE,
    Entry,
    LabelledFolder,
    link_or_copy,
    write_class_files,
    write_png,
)
from gate_lightning.utils.files import claim, write_atomically
from gate_lightning.utils.text import read_json
from gate_lightning.visualization.overlay import write_mask

__all__ = ["kept", "student_set"]

#: the most certain images that the released code leaves out, too
RELEASED_CERTAIN = 30


def kept(entries: Sequence[Entry], drop_uncertain: float = 0.1, rule: str = "described") -> list[Entry]:
    """Images that a student is trained on (arXiv 2112.03126, section on DatasetDDPM).

    Args:
        entries: all images, in any order.
        drop_uncertain: share of them that is left out, in [0, 1).
        rule: ``described``: the most uncertain ones are left out; ``released``: as the published code does it, the 30
            most certain ones in place of 30 of those.

    Returns:
        Those that stay, the most certain first.

    Raises:
        ConfigError: a share out of range, or an unknown rule.
        DataError: nothing would be left.
    """
    if not 0.0 <= drop_uncertain < 1.0:
        raise ConfigError(f"drop_uncertain={drop_uncertain}: expected a share from 0 to below 1")
    if rule not in ("described", "released"):
        raise ConfigError(f"rule={rule}: expected described or released")
    order = sorted(entries, key=lambda entry: (entry.uncertainty, entry.name))
    first = RELEASED_CERTAIN if rule == "released" else 0
    chosen = order[first : len(order) - int(len(order) * drop_uncertain) + first]
    if not chosen:
        raise DataError(f"rule={rule} leaves none of {len(order)} images; label more of them")
    return chosen


def student_set(
    trained: Any,
    input: str | Path | None,
    output: str | Path,
    drop_uncertain: float = 0.1,
    rule: Literal["described", "released"] = "described",
) -> str:
    """Write a data set for ``dataset=folder``: labelled images to train on, the run's own to choose and measure by.

    ``train`` are the images of ``input`` that `kept` leaves, ``val`` those the ensemble learnt from, ``test`` those
    it was measured on, both with the masks people made.

    Args:
        trained: the run whose ensemble gave the labels.
        input: folder that ``tool=pseudo_label`` wrote, layout ``folder``.
        output: folder.
        drop_uncertain, rule: see `kept`.

    Returns:
        What was done, in words.

    Raises:
        ConfigError: a setting out of range, or labels of another layout.
        DataError: ``input`` is not labelled to its end.
        CacheError: ``output`` is another such data set, or cannot be written.
    """
    if input is None:
        raise ConfigError("give input=<the folder that tool=pseudo_label wrote>")
    source, folder = LabelledFolder(input), Path(output).expanduser()
    entries = source.read_table()
    chosen = kept(entries, drop_uncertain, rule)
    class_labels: ClassLabels = trained.components.labels
    datamodule = trained.components.datamodule
    _check_numbers(source.folder / "manifest.json", class_labels.num_classes)
    # few labelled images have no validation split: what the ensemble learnt from takes its place, as in DatasetDDPM
    splits = {"val": "train" if hasattr(datamodule, "pool") else "val", "test": "test"}
    labels = hashlib.sha256((source.folder / TABLE).read_bytes()).hexdigest()
    description = {"labels": labels, "drop_uncertain": drop_uncertain, "rule": rule, "data": datamodule.card.name}
    claim(folder / "manifest.json", description, "images", (folder / "images").is_dir)
    write_class_files(folder, class_labels)
    for entry in chosen:
        image, mask = source.files_of(entry)
        link_or_copy(image, folder / "images/train" / entry.image)
        # a copy, and a fresh one in every call: masks are there to be corrected
        write_atomically(folder / f"masks/train/{entry.name}.png", mask.read_bytes())
    counts = {split: _write_split(folder, split, datamodule.source(own), class_labels) for split, own in splits.items()}
    return (
        f"{len(chosen)} of {len(entries)} labelled images (uncertainty up to {chosen[-1].uncertainty:.4f}), "
        f"{counts['val']} to choose the checkpoint by, {counts['test']} to measure on: {folder}"
    )


def _check_numbers(manifest: Path, classes: int) -> None:
    description = read_json(manifest).get("description") if manifest.is_file() else {}
    if not isinstance(description, dict):
        raise DataError(f"{manifest} is damaged; label the images again in another folder")
    if description.get("layout") != "folder" or description.get("values") != list(range(classes)):
        raise ConfigError(
            f"{manifest.parent} is labelled in another layout or numbering than a student needs; label the images "
            "with tool=pseudo_label tool.layout=folder tool.numbering=classes"
        )


def _write_split(folder: Path, split: str, source: SampleSource, class_labels: ClassLabels) -> int:
    for index in range(len(source)):
        sample = source.load(index)
        name = Path(sample.sample_id).with_suffix("").as_posix()
        write_png(folder / f"images/{split}/{name}.png", sample.image)
        write_mask(folder / f"masks/{split}/{name}.png", sample.mask, class_labels.palette)
    return len(source)
