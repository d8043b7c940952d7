"""Runs that differ in two settings, as a table over the two: single layers by timestep."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from gate_lightning.visualization.charts import heat_chart

__all__ = ["Grid", "grid_of", "write_grid"]


@dataclass(frozen=True)
class Grid:
    """A metric over two settings.

    Attributes:
        names: of the setting of the rows and of that of the columns.
        rows, columns: their values. Numbers are sorted, other values stay in the order of the runs.
        values: (rows, columns) mean over the runs of a cell, NaN where none has finished.
    """

    names: tuple[str, str]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: NDArray[np.float64]


def grid_of(found: Sequence[tuple[Sequence[str], float | None]]) -> Grid | None:
    """The table over the two settings in which runs differ, or None where they differ in another number of settings.

    The setting whose values are all numbers is that of the columns; where both are or none is, the one with fewer
    values.

    Args:
        found: of every run its settings, ``key=value`` each, without its seed; and its metric, None if it failed.
    """
    told = [dict(item.split("=", 1) for item in settings if "=" in item) for settings, _ in found]
    keys = dict.fromkeys(key for settings in told for key in settings)
    choices = {key: _sorted(dict.fromkeys(settings.get(key, "default") for settings in told)) for key in keys}
    varied = [key for key, values in choices.items() if len(values) > 1]
    measured = [value for _, value in found if value is not None]
    if len(varied) != 2 or not measured:
        return None
    row, column = sorted(varied, key=lambda key: (_numeric(choices[key]), -len(choices[key])))
    cells: dict[tuple[str, str], list[float]] = {}
    for settings, (_, value) in zip(told, found, strict=True):
        if value is not None:
            cells.setdefault((settings.get(row, "default"), settings.get(column, "default")), []).append(value)
    values = [[mean(cells.get((r, c), [float("nan")])) for c in choices[column]] for r in choices[row]]
    return Grid((row, column), choices[row], choices[column], np.array(values))


def write_grid(grid: Grid, metric: str, folder: Path) -> None:
    """Write ``comparison_grid.csv`` and ``comparison_grid.png``.

    Args:
        grid: what is shown.
        metric: its name.
        folder: which is there.
    """
    with (folder / "comparison_grid.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([f"{grid.names[0]} \\ {grid.names[1]}", *grid.columns])
        for name, row in zip(grid.rows, grid.values, strict=True):
            writer.writerow([name, *("" if np.isnan(value) else value for value in row)])
    heat_chart(grid.rows, grid.columns, grid.values, (*grid.names, metric), folder / "comparison_grid.png")


def _sorted(values: dict[str, None]) -> tuple[str, ...]:
    return tuple(sorted(values, key=float)) if _numeric(values) else tuple(values)


def _numeric(values: Sequence[str] | dict[str, None]) -> bool:
    try:
        return all(float(value) == float(value) for value in values)
    except ValueError:
        return False
