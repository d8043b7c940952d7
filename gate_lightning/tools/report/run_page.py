"""What the report of one run shows, from the files of its folder; what is not there is left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from gate_lightning.errors import ConfigError, DataError
from gate_lightning.tools.comparison.run_files import column_of, metrics_of, overrides_of, status_of
from gate_lightning.tools.report.charts import curves_of
from gate_lightning.tools.report.pictures import examples_of, picture
from gate_lightning.tools.report.words import is_share, of_split, tail_of
from gate_lightning.utils.commands import override
from gate_lightning.utils.text import read_csv, read_json, read_text
from gate_lightning.utils.units import GIB, duration, human_size

__all__ = ["REPORT", "is_run", "run_context", "settings_of", "splits_of"]

#: rows of the tables of images
MOST_IMAGES = 20
#: confusions that are named
MOST_CONFUSED = 8
#: file name of a report
REPORT = "report.html"
PACE = "train/images_per_second"


@dataclass
class Table:
    """A table.

    Attributes:
        title: above.
        columns: titles; the first one's cells are names.
        rows: names and numbers.
        shares: columns that are shown in percent.
        note: below.
    """

    title: str
    columns: Sequence[str]
    rows: list[list[Any]]
    shares: frozenset[str] = field(default_factory=frozenset)
    note: str = ""


def is_run(folder: Path) -> bool:
    """Whether there is a run in the folder itself, finished or not."""
    return (folder / "config.yaml").is_file()


def settings_of(folder: Path) -> dict[str, Any]:
    """Content of ``settings.json``; empty of a run that was written before there was one.

    Raises:
        DataError: it is damaged.
    """
    found = _read(folder / "settings.json")
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
    splits, frozen = splits_of(folder), _read(folder / "frozen.json") or {}
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
        "classes": list(_class_tables(folder)),
        "categories": list(_category_tables(folder, tail_of(settings.get("monitor") or ""))),
        "matches": list(_matches(folder)),
        "examples_first": first,
        "colours": dict(pair for group in first for pair in group["legend"]),
        "worst": list(_examples(folder, "worst")),
        "images": list(_image_tables(folder)),
        "confusion": list(_confusions(folder)),
        "features": [(path.stem, *picture(path)) for path in sorted(folder.glob("images/feature_pca*.png"))],
        "splits": _splits(folder, splits),
        "split_links": {path.name: f"{path.name}/{REPORT}" for path in splits if (path / REPORT).is_file()},
        "cost": dict(_cost(folder)),
        "environment": _environment(folder),
        "weights": list(_weights(frozen)),
        "branches": list(_branches(frozen)),
        "again_command": override("run", folder),
        "exported": sorted(str(path.relative_to(folder)) for path in (folder / "model").rglob("*.safetensors")),
    }


def _read(path: Path) -> dict[str, Any] | None:
    return dict(read_json(path)) if path.is_file() else None


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
    """The monitored metric first, then the same of the other split; of a run without it, the first three there are."""
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


def _class_tables(folder: Path) -> Iterator[Table]:
    for split, path in _of_splits(folder, "classes_{}.csv"):
        rows = read_csv(path, columns=("class",))
        columns = list(rows[0]) if rows else ["class"]
        cells = [[row["class"], *(_number(row[name]) for name in columns[1:])] for row in rows]
        note = "share: of the labelled pixels" if "share" in columns else ""
        yield Table(split, columns, cells, frozenset(columns[1:]), note)


def _category_tables(folder: Path, monitored: str) -> Iterator[Table]:
    """Scores of the categories of pairs, the monitored one first."""
    for split, path in _of_splits(folder, "categories_{}.csv"):
        rows = read_csv(path, columns=("category", "pairs", "keypoints"))
        names = list(rows[0]) if rows else ["category", "pairs", "keypoints"]
        scores = sorted((name for name in names if is_share(name)), key=lambda name: name != monitored)
        columns = [*(name for name in names if name not in scores), *scores]
        cells = [[row["category"], *(_number(row[name]) for name in columns[1:])] for row in rows]
        yield Table(split, columns, cells, frozenset(scores))


def _matches(folder: Path) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Title, data URI and size of the pictures of matches."""
    for kind in ("first", "worst"):
        for split, path in _of_splits(folder, f"images/matches_{kind}_{{}}.png"):
            yield f"{split}: {kind} pairs", *picture(path)


def _image_tables(folder: Path) -> Iterator[Table]:
    """The worst images, and the most uncertain ones."""
    for split, path in _of_splits(folder, "images_{}.csv"):
        rows = read_csv(path, columns=("image",))
        yield _images(
            f"{split}: the lowest mIoU first",
            rows,
            f"the first {MOST_IMAGES} of {len(rows)} images; all are in {path.name}",
        )
    for _, path in _of_splits(folder, "uncertainty_{}.csv"):
        rows = read_csv(path, columns=("image",))
        yield _images(
            "test: the most uncertain first", rows, f"uncertainty in nats; all {len(rows)} images are in {path.name}"
        )


def _images(title: str, rows: list[dict[str, str]], note: str) -> Table:
    columns = list(rows[0]) if rows else ["image"]
    cells = [[row["image"], *(_number(row[name]) for name in columns[1:])] for row in rows[:MOST_IMAGES]]
    return Table(title, columns, cells, frozenset(name for name in columns if is_share(name)), note)


def _examples(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    for split in ("test", "val"):
        rows, legend = examples_of(folder / "examples" / split / kind)
        if rows:
            layers = max((row.layers for row in rows), key=len)
            yield {"split": split, "rows": rows, "legend": legend, "layers": [layer.name for layer in layers]}


def _confusions(folder: Path) -> Iterator[dict[str, Any]]:
    """Picture of the matrix, and the largest shares of a class that are called another one."""
    for split, path in _of_splits(folder, "confusion_{}.csv"):
        drawn = folder / "images" / f"confusion_{split}.png"
        rows = read_csv(path, columns=("truth",))
        pairs = []
        for row in rows:
            truth = row.pop("truth")
            counts = {name: _number(cell) or 0.0 for name, cell in row.items()}
            total = sum(counts.values())
            pairs += [(n / total, truth, name) for name, n in counts.items() if n and name != truth]
        pairs.sort(key=lambda pair: -pair[0])
        yield {"split": split, "picture": picture(drawn) if drawn.is_file() else None, "pairs": pairs[:MOST_CONFUSED]}


def _of_splits(folder: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    for split in ("test", "val"):
        path = folder / pattern.format(split)
        if path.is_file():
            yield split, path


def _splits(folder: Path, splits: Sequence[Path]) -> Table | None:
    """Metrics of every re-split, with a link to its report."""
    path = folder / "splits.csv"
    if not splits or not path.is_file():
        return None
    rows = read_csv(path, columns=("split",))
    columns = list(rows[0]) if rows else ["split"]
    cells = [[row["split"], *(_number(row[name]) for name in columns[1:])] for row in rows]
    return Table("re-splits", columns, cells, frozenset(name for name in columns if is_share(name)))


def _cost(folder: Path) -> Iterator[tuple[str, str]]:
    """What is said about time and memory, in words."""
    found = {name: float(value) for name, value in (_read(folder / "cost.json") or {}).items()}
    seconds, steps = found.get("trained_seconds"), found.get("trained_steps")
    if seconds is not None and steps:
        yield "training", f"{duration(seconds)} for {steps:.0f} steps, validation included"
        yield "a step", f"{duration(seconds / steps)} on average, validation included"
    if "seconds_per_step" in found:
        yield "a step at the beginning", f"{duration(found['seconds_per_step'])}, without validation"
    paces = column_of(folder / "metrics.csv", PACE)
    if paces:
        yield "images a second", f"{median(paces):.3g} (median of the training)"
    for name, title in (("memory_peak_gib", "memory at most"), ("device_peak_gib", "accelerator's memory at most")):
        if name in found:
            yield title, human_size(found[name] * GIB)
    if "checkpoints_gib" in found:
        yield "checkpoints", human_size(found["checkpoints_gib"] * GIB)


def _environment(folder: Path) -> dict[str, str]:
    """What the run depended on, in words."""
    found = _read(folder / "environment.json") or {}
    packages, command = found.pop("packages", {}), found.pop("command", [])
    said = {"command": " ".join(map(str, command)) if isinstance(command, list) else str(command)}
    said |= {"gate_lightning": found.pop("version", "?"), **{key: str(value) for key, value in sorted(found.items())}}
    return said | ({str(key): str(value) for key, value in packages.items()} if isinstance(packages, dict) else {})


def _weights(node: Any, name: str = "") -> Iterator[tuple[str, str, str]]:
    """Part, name and revision, digest of all frozen weights in ``frozen.json``, adapters and control networks too."""
    if not isinstance(node, dict):
        return
    if isinstance(node.get("digest"), str):
        identity = " ".join(str(node[key]) for key in ("name", "revision") if node.get(key))
        yield name, identity, node["digest"]
        for part in ("adapters", "controlnets"):
            found = node.get(part)
            for key, digest in found.items() if isinstance(found, dict) else ():
                yield part.removesuffix("s"), str(key), str(digest)
        return
    for key, value in node.items():
        yield from _weights(value, str(key))


def _branches(node: Any) -> Iterator[dict[str, str]]:
    """Name, timestep, layers, techniques and prompt of the branches in ``frozen.json``."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if key != "branches" or not isinstance(value, list):
            yield from _branches(value)
            continue
        for branch in (one for one in value if isinstance(one, dict)):
            techniques = [_technique(one) for one in branch.get("techniques") or [] if isinstance(one, dict)]
            yield {
                "branch": str(branch.get("name", "")),
                "timestep": str(branch.get("timestep", "")),
                "techniques": ", ".join(techniques) or "none",
                "layers": ", ".join(map(str, branch.get("layers") or [])),
                "prompt": str(branch.get("prompt", "")),
            }


def _technique(found: dict[str, Any]) -> str:
    name = str(found.get("technique", "?"))
    detail = found.get("adapter") or found.get("name")
    return f"{name} ({detail})" if detail else name


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
