"""Report of one run, from the files of its folder; what is not there is left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gate_lightning.errors import ConfigError, DataError
from gate_lightning.tools.comparison.run_files import metrics_of, overrides_of, status_of
from gate_lightning.tools.report.charts import curves_of
from gate_lightning.tools.report.facts import branches_of, cost_of, environment_of, read_mapping, weights_of
from gate_lightning.tools.report.image_uris import examples_of, image_uri
from gate_lightning.tools.report.tables import (
    category_tables,
    class_tables,
    confusions,
    image_tables,
    of_splits,
    resplit_table,
    shift_tables,
)
from gate_lightning.tools.report.words import of_split, tail_of
from gate_lightning.utils.commands import override
from gate_lightning.utils.text import read_csv, read_text

__all__ = ["REPORT", "is_run", "run_context", "settings_of", "splits_of"]

#: videos whose frames are shown
VIDEOS = 12

#: file name of a report
REPORT = "report.html"


def is_run(folder: Path) -> bool:
    """True if there is a run in the folder itself, finished or not."""
    return (folder / "config.yaml").is_file()


def settings_of(folder: Path) -> dict[str, Any]:
    """Content of ``settings.json``; empty of a run that was written before there was one.

    Raises:
        DataError: it is damaged.
    """
    found = read_mapping(folder / "settings.json")
    return (
        {key: found.get(key) for key in ("task", "dataset", "monitor", "mode", "seed", "differences")} if found else {}
    )


def splits_of(folder: Path) -> list[Path]:
    """Folders of a protocol's re-splits, in order; none of another run."""
    found = [path.parent for path in folder.glob("split*/config.yaml") if path.parent.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def run_context(folder: Path) -> dict[str, Any]:
    """All that the template ``run.html`` shows.

    Raises:
        ConfigError: there is no run in the folder.
        DataError: a file of it is damaged.
    """
    if not is_run(folder):
        raise ConfigError(f"{folder} is no run folder: it has no config.yaml")
    status, message = status_of(folder)
    settings = settings_of(folder)
    metrics = (metrics_of(folder / "metrics.json") or {}) if status == "done" else {}
    splits, frozen = splits_of(folder), read_mapping(folder / "frozen.json") or {}
    first = list(_examples(folder, "first"))
    return {
        "name": "/".join(folder.resolve().parts[-2:]),
        "status": status,
        "message": message,
        "settings": settings,
        "headline": _headline(folder, metrics, settings),
        "metrics": {
            name: (value, metrics.get(f"{name}_std")) for name, value in sorted(metrics.items()) if not _is_std(name)
        },
        "again": {path.stem[8:]: metrics_of(path) for path in sorted(folder.glob("metrics_*.json"))},
        "typed": overrides_of(folder),
        "config": _config(folder),
        "curves": curves_of(folder / "metrics.csv", settings.get("monitor")),
        "classes": list(class_tables(folder)),
        "categories": list(category_tables(folder, tail_of(settings.get("monitor") or ""))),
        "matches": list(_matches(folder)),
        "shift": list(shift_tables(folder)),
        "shift_missing": (read_mapping(folder / "content_shift.json") or {}).get("not_measured") or {},
        "shift_images": [
            (path.stem[14:], *image_uri(path)) for path in sorted(folder.glob("images/content_shift_*.png"))
        ],
        "videos": [(path.stem[6:], *image_uri(path)) for path in sorted(folder.glob("images/video_*.png"))[:VIDEOS]],
        "examples_first": first,
        "colours": dict(pair for group in first for pair in group["legend"]),
        "worst": list(_examples(folder, "worst")),
        "images": list(image_tables(folder)),
        "confusion": list(confusions(folder)),
        "features": [(path.stem, *image_uri(path)) for path in sorted(folder.glob("images/feature_pca*.png"))],
        "splits": resplit_table(folder, splits),
        "split_links": {path.name: f"{path.name}/{REPORT}" for path in splits if (path / REPORT).is_file()},
        "cost": dict(cost_of(folder)),
        "environment": environment_of(folder),
        "weights": list(weights_of(frozen)),
        "branches": list(branches_of(frozen)),
        "again_command": override("run", folder),
        "exported": sorted(str(path.relative_to(folder)) for path in (folder / "model").rglob("*.safetensors")),
    }


def _config(folder: Path) -> str:
    """The text of ``config.yaml``. Elsewhere a link could point to is no part of a run, and may be private.

    Raises:
        DataError: it is such a link, or no text.
    """
    path = folder / "config.yaml"
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{path} is a link to {path.resolve()}, outside the run folder; a report would show that file")
    return read_text(path)


def _is_std(name: str) -> bool:
    return name.endswith("_std")


def _headline(folder: Path, metrics: Mapping[str, float], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The monitored metric first, then the same of the other split; of a run without it, the first three there are.

    None of a ranking: its metrics mean something side by side only, in its table.
    """
    monitor = settings.get("monitor") or "val/mIoU"
    other = f"{'val' if monitor.startswith('test/') else 'test'}/{tail_of(monitor)}"
    found: list[dict[str, Any]] = [
        {"metric": name, "value": metrics[name], "spread": metrics.get(f"{name}_std"), "note": of_split(name)}
        for name in (monitor, other)
        if name in metrics
    ]
    if found and metrics.get(monitor) is not None:
        found[0]["note"] += "; the monitored metric"
    if not found and not metrics:
        return list(_so_far(folder, monitor, settings.get("mode") or "max"))
    if not found and (folder / "content_shift.json").is_file():
        return []
    named = [name for name in sorted(metrics) if not _is_std(name)]
    return found or [
        {"metric": name, "value": metrics[name], "spread": metrics.get(f"{name}_std"), "note": of_split(name)}
        for name in named[:3]
    ]


def _so_far(folder: Path, monitor: str, mode: str) -> Iterator[dict[str, Any]]:
    """The best validation of a run that has not finished."""
    path = folder / "metrics.csv"
    rows = [row for row in (read_csv(path) if path.is_file() else []) if row.get(monitor)]
    values = [(float(row[monitor]), row.get("step", "?")) for row in rows]
    values = [(value, step) for value, step in values if math.isfinite(value)]
    if values:
        value, step = (max if mode == "max" else min)(values, key=lambda pair: pair[0])
        yield {"metric": monitor, "value": value, "spread": None, "note": f"best so far, at step {step}"}


def _matches(folder: Path) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Title, data URI and size of the figures of matches."""
    for kind in ("first", "worst"):
        for split, path in of_splits(folder, f"images/matches_{kind}_{{}}.png"):
            yield f"{split}: {kind} pairs", *image_uri(path)


def _examples(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    for split in ("test", "val"):
        rows, legend = examples_of(folder / "examples" / split / kind)
        if rows:
            layers = max((row.layers for row in rows), key=len)
            yield {"split": split, "rows": rows, "legend": legend, "layers": [layer.name for layer in layers]}
