"""A metric over the two settings in which runs differ, layers by timesteps for example, as table and heat map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from gate_lightning.utils.files import write_csv
from gate_lightning.visualization.charts import heat_chart

__all__ = ["Grid", "grid_of", "write_grid"]


@dataclass(frozen=True)
class Grid:
    """A metric over two settings.

    Attributes:
        names: settings of the rows and of the columns.
        rows, columns: their values. Numbers are sorted, other values stay in the order of the runs.
        values: (rows, columns) mean over the runs of a cell, NaN where none has finished.
    """

    names: tuple[str, str]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: NDArray[np.float64]


def grid_of(found: Sequence[tuple[Sequence[str], float | None]]) -> Grid | None:
    """Table over the two settings in which runs differ; None where they differ in another number of settings.

    Columns are the setting whose values are all numbers; where both or neither are, the one with fewer values.

    Args:
        found: settings (``key=value`` each, without the seed) and metric (None if it failed) of every run.
    """
    chosen = [dict(item.split("=", 1) for item in settings if "=" in item) for settings, _ in found]
    keys = dict.fromkeys(key for settings in chosen for key in settings)
    choices = {key: _sorted(dict.fromkeys(settings.get(key, "default") for settings in chosen)) for key in keys}
    varied = [key for key, values in choices.items() if len(values) > 1]
    measured = [value for _, value in found if value is not None]
    if len(varied) != 2 or not measured:
        return None
    row, column = sorted(varied, key=lambda key: (_numeric(choices[key]), -len(choices[key])))
    cells: dict[tuple[str, str], list[float]] = {}
    for settings, (_, value) in zip(chosen, found, strict=True):
        if value is not None:
            cells.setdefault((settings.get(row, "default"), settings.get(column, "default")), []).append(value)
    values = [[mean(cells.get((r, c), [float("nan")])) for c in choices[column]] for r in choices[row]]
    return Grid((row, column), choices[row], choices[column], np.array(values))


def write_grid(grid: Grid, metric: str, folder: Path) -> None:
    """Write ``comparison_grid.csv`` and ``comparison_grid.png`` into ``folder``; ``metric`` labels the colour bar."""
    lines = [
        [name, *("" if np.isnan(value) else value for value in row)]
        for name, row in zip(grid.rows, grid.values, strict=True)
    ]
    write_csv(folder / "comparison_grid.csv", [f"{grid.names[0]} \\ {grid.names[1]}", *grid.columns], lines)
    heat_chart(grid.rows, grid.columns, grid.values, (*grid.names, metric), folder / "comparison_grid.png")


def _sorted(values: dict[str, None]) -> tuple[str, ...]:
    return tuple(sorted(values, key=float)) if _numeric(values) else tuple(values)


def _numeric(values: Sequence[str] | dict[str, None]) -> bool:
    try:
        return all(float(value) == float(value) for value in values)
    except ValueError:
        return False
