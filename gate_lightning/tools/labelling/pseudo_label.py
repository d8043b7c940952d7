"""A trained ensemble labels images that nobody has labelled, and says how sure it is of each."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gate_lightning.data.card import ClassLabels
from gate_lightning.data.core.prediction import ImageSource
from gate_lightning.data.segmentation.base import SegmentationDataModule
from gate_lightning.data.transforms.basic import resize_mask
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.pixel_classifiers.votes import image_uncertainty
from gate_lightning.tools.devices import device_of
from gate_lightning.tools.labelling.labelled_folder import LAYOUTS, Entry, LabelledFolder, write_class_files
from gate_lightning.utils.files import claim, clean_leftovers, write_atomically
from gate_lightning.utils.progress import Progress

__all__ = ["pseudo_label"]

#: pixels of the largest image that is labelled as it is: logits of all members and classes are in memory at once
MOST_PIXELS = 512 * 512
#: broken images that a message names
MOST_NAMED = 20


@torch.no_grad()
def pseudo_label(
    trained: Any,
    input: str | Path | None,
    output: str | Path,
    layout: Literal["folder", "npy"] = "folder",
    numbering: Literal["classes", "files"] | None = None,
    device: str = "auto",
) -> str:
    """Label every image of ``input`` that is not labelled in ``output`` already.

    The images and their masks are written in a data set's layout, with images of the labels and of where the
    members disagree (dark: not at all, brightest: Jensen-Shannon divergence of log 2 nats and more) and, at the end, a
    table of all images. The most uncertain come first: correcting those first is worth most. Masks that are there,
    corrected or not, are never written again. The members vote at the size that the backbone sees, 512² pixels at
    most, or at the image's where that is smaller; the labels are then enlarged.

    Args:
        trained: run of ``task=label_scarce``.
        input: an image, a folder or a pattern.
        output: folder, see `LabelledFolder`.
        layout: ``folder``: for ``dataset=folder``; ``npy``: for the sets of ddpm-segmentation.
        numbering: what masks hold: ``classes``: the line in ``classes.txt``, from 0; ``files``: what the files of the
            run's data set hold for that class, so that the masks can be put among them (Bedroom-28 begins with 1). None
            is ``classes`` for ``folder``, which is a data set of its own, and ``files`` for ``npy``.
        device: "auto" (a GPU where there is one) or a torch device.

    Returns:
        What was done, in words.

    Raises:
        ConfigError: the run has no ensemble, or an unknown layout.
        CacheError: ``output`` holds labels of another run or layout, or cannot be written.
        DataError: images that are missing, broken, or not square where the run wants squares.
    """
    if input is None:
        raise ConfigError("nothing to label: give input=<an image or a folder of images>")
    task, class_labels = _ensemble_of(trained), trained.components.labels
    images = ImageSource(input)
    _require_readable(images)
    loader = trained.components.datamodule.prediction(images)
    store = _opened(trained, output, layout, numbering)
    task.to(device_of(device))
    names, captions = loader.images.names, loader.images.captions
    progress = Progress(len(names), 0, 1, "labels")
    for name, batch in zip(names, loader.predict_dataloader(), strict=True):
        if store.holds(name):
            progress.step(0, 1)
            continue
        path, conditions, whole = Path(batch.paths[0]), batch.conditions.to(task.device), batch.sizes[0]
        found, divergences = task.ensemble(batch.images.to(task.device), conditions, _bounded(whole))
        labels, divergence = resize_mask(found[0].byte().cpu().numpy(), *whole), divergences[0].cpu()
        entry = _entry(name, path, labels, divergence, class_labels)
        progress.bytes += store.write(entry, path, labels, divergence.numpy(), class_labels)
        progress.step(1, 0)
    table = store.write_table([store.entry(name) for name in names])
    if captions is not None and layout == "folder":
        lines = (f"train/{name}\t{text}\n" for name, text in zip(names, captions, strict=True))
        write_atomically(store.folder / "captions.txt", "".join(lines).encode())
    return f"{progress.summary()}: {store.folder}; the most uncertain first: {table}"


def _require_readable(images: ImageSource) -> None:
    """Look at the headers of all images: whoever collects some hundred has more than one broken file among them.

    Raises:
        DataError: names the broken ones.
    """
    broken = []
    for index in range(len(images)):
        try:
            images.sizes(index)
        except DataError as error:
            broken.append(str(error))
    if broken:
        more = [f"and {len(broken) - MOST_NAMED} more"] if len(broken) > MOST_NAMED else []
        listed = "\n  ".join([*broken[:MOST_NAMED], *more])
        raise DataError(f"{len(broken)} of {len(images)} images cannot be labelled:\n  {listed}")


def _opened(trained: Any, output: str | Path, layout: str, numbering: str | None) -> LabelledFolder:
    """The folder, unless it belongs to another run."""
    if layout not in LAYOUTS or numbering not in (None, "classes", "files"):
        raise ConfigError(
            f"layout={layout}, numbering={numbering}: expected {' or '.join(LAYOUTS)}, and classes, files or null"
        )
    class_labels: ClassLabels = trained.components.labels
    own = (numbering or {"npy": "files"}.get(layout)) == "files"
    values = (
        _file_values(trained.components.datamodule.underlying, class_labels.num_classes)
        if own
        else list(range(class_labels.num_classes))
    )
    store = LabelledFolder(output, layout, values)
    weights = hashlib.sha256(Path(trained.checkpoint).read_bytes()).hexdigest()
    frozen = trained.task.frozen_description()
    description = {"checkpoint": weights, "frozen": frozen, "layout": layout, "values": values}
    claim(store.folder / "manifest.json", description, "labels", lambda: store.used)
    clean_leftovers(store.folder)
    write_class_files(store.folder, class_labels)
    return store


def _ensemble_of(trained: Any) -> Any:
    if not hasattr(trained.task, "ensemble"):
        raise ConfigError(
            f"{trained.folder} is a run of {type(trained.task).__name__}, which has no ensemble that could be unsure; "
            "train one with task=label_scarce, or label images with eval.py run=<run> input=<images>"
        )
    return trained.task


def _bounded(size: tuple[int, int]) -> tuple[int, int]:
    """A size of the same aspect and at most about ``MOST_PIXELS``."""
    scale = min(1.0, math.sqrt(MOST_PIXELS / (size[0] * size[1])))
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def _file_values(datamodule: SegmentationDataModule, classes: int) -> list[int]:
    """Values for each class in the mask files of a data set."""
    reader = datamodule.reader
    if reader is None or reader.palette is not None:
        return list(range(classes))  # generated, or colours
    known = {label: value for value, label in sorted(reader.label_map.known.items(), reverse=True)}
    return [known.get(label, label) for label in range(classes)]


def _entry(name: str, path: Path, labels: np.ndarray, divergence: Tensor, class_labels: ClassLabels) -> Entry:
    counts = np.bincount(labels.ravel(), minlength=class_labels.num_classes)
    order = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
    return Entry(
        uncertainty=float(image_uncertainty(divergence.double())),
        mean_divergence=float(divergence.double().mean()),
        image=f"{name}{path.suffix}",
        name=name,
        classes="; ".join(
            f"{class_labels.classes[index]} {100 * counts[index] / labels.size:.1f} %" for index in order
        ),
    )
