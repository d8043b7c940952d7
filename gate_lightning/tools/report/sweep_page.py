"""Report of several runs: rows over seeds, paired differences, a heat map, and the runs themselves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib import colormaps

from gate_lightning.tools.comparison.compare import compared_metric, find_runs, group_runs
from gate_lightning.tools.comparison.grid import Grid, grid_of
from gate_lightning.tools.comparison.intervals import paired_interval
from gate_lightning.tools.comparison.rows import BROKEN, ComparedRun, Row, counterpart
from gate_lightning.tools.report.run_page import REPORT
from gate_lightning.utils.commands import override

__all__ = ["sweep_context"]

#: pixels: width of the chart of differences without its labels, of a letter, and height of a row
WIDTH, LETTER, ROW = 560, 6.6, 26
#: letters of a label in the chart
LONGEST = 48


@dataclass(frozen=True)
class Difference:
    """A row's paired difference from the baseline: mean, interval (None of one pair) and number of pairs."""

    label: str
    middle: float
    interval: tuple[float, float] | None
    pairs: int


@dataclass(frozen=True)
class Forest:
    """Geometry of the chart of differences."""

    differences: Sequence[Difference]

    @property
    def height(self) -> int:
        """Size of the chart in pixels."""
        return ROW * len(self.differences) + 40

    @property
    def names(self) -> int:
        """Pixels of the labels."""
        return round(16 + LETTER * min(LONGEST, max(len(one.label) for one in self.differences)))

    @property
    def width(self) -> int:
        """Size of the chart in pixels."""
        return self.names + WIDTH

    @property
    def range(self) -> tuple[float, float]:
        """Least and largest difference that is drawn; zero is always there."""
        ends = [0.0, *(end for one in self.differences for end in (one.middle, *(one.interval or ())))]
        low, high = min(ends), max(ends)
        return (low, high) if high > low else (-1.0, 1.0)

    def x(self, value: float) -> float:
        """Position of a difference in pixels."""
        low, high = self.range
        return round(self.names + 16 + (WIDTH - 40) * (value - low) / (high - low), 1)

    def y(self, number: int) -> int:
        """Position of a row in pixels."""
        return 22 + ROW * number


def sweep_context(places: Sequence[str], page: Path, metric: str | None, baseline: str | None) -> dict[str, Any]:
    """All that the template ``sweep.html`` shows.

    Args:
        places: run folders, or folders of them.
        page: the HTML file, which links are relative to.
        metric: what is compared; None for what `compared_metric` chooses.
        baseline: label of the row that differences refer to; None for plain features where they are among the runs.

    Raises:
        ConfigError: no run, unknown metric or baseline.
    """
    found = find_runs(places)
    chosen = metric or compared_metric(found)
    rows = group_runs(found, chosen, baseline)
    grid = grid_of([(run.settings, run.metrics.get(chosen)) for run in found if run.status != BROKEN])
    differences = [
        Difference(row.label, mean(row.differences), paired_interval(row.differences), len(row.differences))
        for row in rows
        if row.differences and row.label != row.baseline
    ]
    states = {
        state: sum(run.status == state for run in found)
        for state in ("done", "failed", "interrupted", "running", BROKEN)
    }
    return {
        "name": "/".join(Path(places[0]).resolve().parts[-2:]) if len(places) == 1 else f"{len(places)} places",
        "metric": chosen,
        "other": counterpart(chosen) if any(row.counterparts for row in rows) else None,
        "states": {state: count for state, count in states.items() if count},
        "rows": [{**_row(row), "baseline": row.label == row.baseline} for row in rows],
        "compared": bool(differences),
        "forest": Forest(differences) if differences else None,
        "grid": None if grid is None else _cells(grid),
        "runs": [_run(run, page.parent, chosen) for run in found],
        "example_baseline": next((override("tool.baseline", row.label) for row in rows[1:] if row.values), None),
        "longest": LONGEST,
        "again_command": override("run", places[0]) if len(places) == 1 else f'"run=[{",".join(map(str, places))}]"',
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "label": row.label,
        "own": _moments(list(row.values.values())),
        "others": _moments(list(row.counterparts.values())),
        "difference": _moments(row.differences),
        "interval": paired_interval(row.differences),
        "pairs": len(row.differences),
        "count": len(row.values),
        "missing": len(row.failures),
    }


def _moments(values: Sequence[float]) -> tuple[float | None, float | None]:
    return mean(values) if values else None, stdev(values) if len(values) > 1 else None


def _cells(grid: Grid) -> dict[str, Any]:
    """Names and cells of the heat map: value, colour and that of its text, all None where no run has finished."""
    low, high = float(np.nanmin(grid.values)), float(np.nanmax(grid.values))
    table = colormaps["viridis"]

    def cell(value: float) -> tuple[float | None, str | None, str | None]:
        if np.isnan(value):
            return None, None, None
        place = (value - low) / (high - low) if high > low else 0.5
        colour = "#{:02x}{:02x}{:02x}".format(*(round(255 * part) for part in table(place)[:3]))
        return value, colour, "#000" if place > 0.5 else "#fff"  # viridis goes from dark to light

    cells = [(name, [cell(float(value)) for value in line]) for name, line in zip(grid.rows, grid.values, strict=True)]
    return {"names": grid.names, "columns": grid.columns, "rows": cells}


def _run(run: ComparedRun, beside: Path, metric: str) -> dict[str, Any]:
    """A run, with the path of its report, or of its folder, relative to the page."""
    page = run.folder / REPORT
    link = os.path.relpath(page if page.is_file() else run.folder, beside)
    return {
        "folder": os.path.relpath(run.folder, beside),
        "link": Path(link).as_posix().replace("%", "%25").replace("?", "%3F").replace("#", "%23"),
        "reported": page.is_file(),
        "label": run.label,
        "seed": run.seed,
        "status": run.status,
        "message": run.message,
        "value": run.metrics.get(metric),
    }
