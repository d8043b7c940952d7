"""Tables of a protocol of several random re-splits: the splits, their means and deviations.

<run>/splits.csv          seeds and metrics of every split, their mean and standard deviation
<run>/classes_test.csv    the same per class
<run>/metrics.json        mean of every metric, and its standard deviation as <name>_std
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import OmegaConf

from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.errors import DataError
from gate_lightning.tools.comparison.run_files import metrics_of
from gate_lightning.utils.files import write_csv
from gate_lightning.utils.text import read_csv
from gate_lightning.utils.units import measured

__all__ = ["SEEDS", "split_folders", "summarize"]

log = logging.getLogger(__name__)

#: seeds that go up by one from split to split: the split, the order of pixels, the members' initial weights. Noise has
#: `seed` itself, so features are the same in all splits.
SEEDS = ("task.data.split_seed", "task.data.seed", "head.decode.seed", "amalgamation.seed")


def split_folders(folder: Path) -> list[Path]:
    """Run folders of the splits that were begun, in order."""
    found = [path.parent for path in folder.glob("split*/config.yaml") if path.parent.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def summarize(folder: Path, metrics_name: str = "metrics.json") -> dict[str, float]:
    """Mean and sample standard deviation (n - 1) of the splits' metrics, written with the tables.

    Args:
        folder: of the protocol.
        metrics_name: name of the metrics file in the splits' folders, and of the one written to ``folder``.

    Returns:
        Metric → mean, and ``<metric>_std`` → standard deviation where there are two splits or more.
    """
    rows: list[dict[str, Any]] = []
    for inside in split_folders(folder):
        metrics = metrics_of(inside / metrics_name)
        if metrics is not None:
            config = runs.read_config(inside)
            seeds = {key: OmegaConf.select(config, key) for key in SEEDS}
            rows.append({"split": inside.name, **{k: v for k, v in seeds.items() if v is not None}, **metrics})
    names = sorted({key for row in rows for key in row if "/" in key})
    together: dict[str, float] = {}
    for name in names:
        values = [row[name] for row in rows if name in row]
        if values:
            together[name] = mean(values)
        if len(values) > 1:
            together[f"{name}_std"] = stdev(values)
    runs.write_json(folder / metrics_name, together)
    _write_splits(folder / "splits.csv", rows, names, together)
    _write_classes(folder)
    for name in names:
        value, deviation = measured(name, together.get(name, math.nan)), together.get(f"{name}_std")
        spread = "" if deviation is None else f" ± {measured(name, deviation)}".replace(" %", "")
        # 71.3 ± 2.1 %
        text = value.replace(" %", f"{spread} %") if value.endswith("%") else f"{value}{spread}"
        log.info("%-24s %s, mean of %d splits", name, text, len(rows))
    return together


def _write_splits(path: Path, rows: Sequence[dict[str, Any]], names: Sequence[str], together: dict[str, float]) -> None:
    if not rows:
        return
    columns = [*(key for key in rows[0] if "/" not in key), *names]
    means = {"split": "mean", **together}
    deviations = {"split": "std", **{name: together.get(f"{name}_std", "") for name in names}}
    write_csv(path, columns, [[row.get(name, "") for name in columns] for row in (*rows, means, deviations)])


def _write_classes(folder: Path) -> None:
    """``classes_test.csv``: mean and standard deviation of every column over the splits that have the class."""
    tables = []
    for inside in split_folders(folder):
        path = inside / "classes_test.csv"
        if path.is_file():
            tables.append(_class_table(path))
    if not tables:
        return
    columns = list(next(iter(tables[0].values()), {}))
    lines = []
    for label in tables[0]:
        line: list[Any] = [label]
        for name in columns:
            values = [table[label].get(name, math.nan) for table in tables if label in table]
            values = [value for value in values if not math.isnan(value)]
            line += [mean(values) if values else math.nan, stdev(values) if len(values) > 1 else math.nan]
        lines.append(line)
    titles = ["class", *(title for name in columns for title in (name, f"{name} std"))]
    write_csv(folder / "classes_test.csv", titles, lines)


def _class_table(path: Path) -> dict[str, dict[str, float]]:
    """Class → column → value.

    Raises:
        DataError: the table is damaged.
    """
    found: dict[str, dict[str, float]] = {}
    for row in read_csv(path, columns=("class",)):
        label = row.pop("class")
        try:
            found[label] = {name: float(cell) for name, cell in row.items()}
        except ValueError as error:
            raise DataError(f"{path}: class {label} has {error}, expected numbers") from error
    return found
