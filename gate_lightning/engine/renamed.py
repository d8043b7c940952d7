"""Renamed keys, values and names: one table, which refuses them on the command line and is docs/migration.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException

from gate_lightning.errors import ConfigError

__all__ = ["RENAMED", "Renamed", "migration_page", "refuse_old_names"]


@dataclass(frozen=True)
class Renamed:
    """One name that changed.

    Attributes:
        kind: ``key`` (a dotted key or group of the configuration), ``value`` (``key=value``), ``python`` (a public
            name), ``file`` (of a run folder or checkout), ``metric``, or ``meaning`` (same name, other effect).
        old: the name before; of a ``key`` everything below it too.
        new: the name now; empty where there is nothing in its place.
        note: what to mind, for example how values translate.
    """

    kind: str
    old: str
    new: str
    note: str = ""

    def __str__(self) -> str:
        now = f"{self.old} is now {self.new}" if self.new else f"{self.old} is gone"
        return f"{now} ({self.note})" if self.note else now


def _rows(kind: str, table: str) -> Iterator[Renamed]:
    """Rows of a table with columns separated by ``|``."""
    for line in table.strip().splitlines():
        old, new, note = (cell.strip() for cell in f"{line} | |".split("|")[:3])
        yield Renamed(kind, old, new, note)


#: since version 0.1
RENAMED = (
    *_rows(
        "key",
        """
        feature_cache          | cache.memory_gib
        feature_cache_dir      | cache.folder
        feature_cache_dtype    | cache.dtype
        features.cached_views  | cache.augmented_views
        edges                  | edge_channels             | true for input, false for none
        picture_scale          | backbone_scale
        noise_draws            | separate_noises
        control                | ablation                  | the rows of the controls study
        recipe                 | experiment/_base          | bases of experiments
        task.data.picture_size | task.data.image_size
        callbacks.picture_table | callbacks.image_table
        """,
    ),
    *_rows(
        "value",
        """
        tool.layout=npy_by_picture | tool.layout=npy_by_image
        dataset=scene_pictures     | dataset=scene_images
        technique=default          |                           | all techniques' settings are always there
        """,
    ),
    *_rows(
        "meaning",
        """
        trainer.val_check_interval | trainer.val_check_interval | counts batches, as in Lightning, not optimiser steps
        """,
    ),
    *_rows(
        "file",
        """
        pictures/ of a run folder | images/
        pictures_<split>.csv      | images_<split>.csv
        """,
    ),
    *_rows(
        "python",
        """
        read_pictures           | read_images
        FusedExtractor          | MultiBackboneExtractor
        Branch(draw=)           | Branch(noise_index=)
        build_branches(knobs=)  | build_branches(technique_settings=)
        build_branches(protocol=, backbone=) | build_branches(card=, backbones=)
        DatasetProtocol         | DatasetCard, ClassLabels | datamodule.card and datamodule.labels
        ScarceProtocol          | PublishedSet
        SegmentationTask(protocol=) | SegmentationTask(labels=) | LabelScarceTask too
        task.labels(images, conditions, size) | task.label_maps(images, conditions, size)
        ControlNet(control=)    | ControlNet(name=)
        LoRA(adapter=)          | LoRA(role=)
        technique.name          | technique.kind           | a class attribute
        Prompt.length           | Prompt.prompt_length
        """,
    ),
)

_TITLES = {
    "key": "Keys and groups",
    "value": "Values",
    "meaning": "Same name, other meaning",
    "metric": "Metrics",
    "file": "Files",
    "python": "Python names",
}


def refuse_old_names(overrides: Sequence[str]) -> None:
    """Refuse a command line that uses an old name, before anything is composed.

    Args:
        overrides: Hydra's overrides as typed, with ``+``, ``++`` and ``~``; flags (``-m``) are passed over.

    Raises:
        ConfigError: names every old name and the one in its place.
    """
    found = []
    for text in overrides:
        if text.startswith("-"):
            continue
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            continue  # Hydra says what is wrong with it
        settings = list(_settings(override))
        found += [f"{text}: {row}" for row in RENAMED if any(_uses(row, *setting) for setting in settings)]
    if found:
        raise ConfigError("\n".join([*found, "All renamed keys: docs/migration.md"]))


def migration_page() -> str:
    """The text of docs/migration.md."""
    parts = [
        "# Renamed since version 0.1\n\n"
        "Old keys, groups and values are refused on the command line with the new name. Run folders of 0.1 are not\n"
        "read: evaluate them with the version that wrote them, or train anew; equal settings and seeds give equal\n"
        "results. This page is the table in `gate_lightning/engine/renamed.py`, written by\n"
        "`python -m gate_lightning.engine.renamed`.\n"
    ]
    for kind, title in _TITLES.items():
        rows = [row for row in RENAMED if row.kind == kind]
        if rows:
            lines = [f"| `{row.old}` | {f'`{row.new}`' if row.new else '–'} | {row.note} |" for row in rows]
            parts.append("\n".join([f"## {title}\n", "| before | now | |", "|---|---|---|", *lines, ""]))
    return "\n".join(parts)


def _settings(override: Override) -> Iterator[tuple[str, str]]:
    """Every (dotted key, value) that an override sets, also those inside its lists and mappings."""
    for key in (override.key_or_group, override.package):
        if key:
            yield from _leaves(key.replace("/", "."), override.value())


def _leaves(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, ChoiceSweep):
        value = value.list
    yield key, str(getattr(value, "text", value))  # of a quoted string inside a sweep
    inner = (
        value.items() if isinstance(value, dict) else [("", item) for item in value] if isinstance(value, list) else ()
    )
    for name, item in inner:
        yield from _leaves(f"{key}.{name}".rstrip("."), item)


def _uses(row: Renamed, key: str, value: str) -> bool:
    if row.kind == "key":
        return f"{key}.".startswith(f"{row.old.replace('/', '.')}.")
    old_key, _, old_value = row.old.partition("=")
    return row.kind == "value" and value == old_value and f".{key}".endswith(f".{old_key.replace('/', '.')}")


if __name__ == "__main__":
    from pathlib import Path

    Path("docs/migration.md").write_text(migration_page())
