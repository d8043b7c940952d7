"""Curves and intervals as SVG: the geometry, which templates draw."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gate_lightning.tools.report.words import is_pck, is_share
from gate_lightning.utils.text import read_csv

__all__ = ["Chart", "Line", "curves_of", "ticks"]

#: pixels of a chart, and of what is around its axes
WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 30
#: points of a line; of longer ones every n-th is drawn
MOST_POINTS = 400
#: charts beside the named ones
MOST_OTHERS = 12
#: columns that are shown elsewhere, or count only for the machine
LEFT_OUT = ("cost/", "test/")


@dataclass(frozen=True)
class Line:
    """A curve: name, steps and values."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Chart:
    """Curves over steps that share an axis.

    Attributes:
        title: above.
        unit: of the values: "%" or "".
        lines: curves, each with a point or more.
        every: of the longest curve every n-th point is drawn.
    """

    title: str
    unit: str
    lines: tuple[Line, ...]
    every: int = 1

    @property
    def steps(self) -> tuple[float, float]:
        """First and last step."""
        every = [step for line in self.lines for step in line.steps]
        return min(every), max(max(every), min(every) + 1)

    @property
    def values(self) -> tuple[float, float]:
        """Least and largest value, a little apart."""
        every = [value for line in self.lines for value in line.values]
        low, high = min(every), max(every)
        if low == high:
            low, high = low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0)
        return low, high

    def x(self, step: float) -> float:
        """Position of a step in pixels."""
        first, last = self.steps
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / (last - first), 1)

    def y(self, value: float) -> float:
        """Position of a value in pixels, from the top."""
        low, high = self.values
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low), 1)

    def path(self, line: Line) -> str:
        """Points of a polyline."""
        return " ".join(f"{self.x(s)},{self.y(v)}" for s, v in zip(line.steps, line.values, strict=True))

    @property
    def data(self) -> dict[str, Any]:
        """Data that the page's script reads out at a step."""
        lines = [
            {"name": line.name, "x": line.steps, "y": [float(f"{value:.4g}") for value in line.values]}
            for line in self.lines
        ]
        first, last = self.steps
        return {"lines": lines, "unit": self.unit, "first": first, "last": last, "left": LEFT, "right": WIDTH - RIGHT}

    @property
    def summary(self) -> str:
        """Description for those who do not see the chart."""
        ends = (f"{line.name} from {line.values[0]:.4g} to {line.values[-1]:.4g}{self.unit}" for line in self.lines)
        return f"{self.title} over the steps of the training: {'; '.join(ends)}"


def curves_of(path: Path, monitor: str | None = None) -> list[Chart]:
    """Charts of ``metrics.csv``: scores and losses of training and validation, rate, weights of branches, the rest.

    The monitored metric's curve is the first one of the first chart.

    The row of the final evaluation is no point of a curve: it is of the best checkpoint, not of the last step.

    Raises:
        DataError: the table is damaged.
    """
    if not path.is_file():
        return []
    rows = read_csv(path, columns=("step",))
    names = [name for name in (rows[0] if rows else ()) if name != "step" and not name.startswith(LEFT_OUT)]
    names.sort(key=lambda name: name != monitor)  # the others stay in their order
    tested = [name for name in (rows[0] if rows else ()) if name.startswith("test/")]
    rows = [row for row in rows if not any(row[name] for name in tested)]
    grouped: dict[str, list[Line]] = {}
    every = 1
    for name in names:
        points = list(_points(rows, name))
        if len(points) < 2:
            continue
        step = math.ceil(len(points) / MOST_POINTS)
        every = max(every, step)
        kept = points[::step] if (len(points) - 1) % step == 0 else [*points[::step], points[-1]]
        factor = 100.0 if is_share(name) else 1.0
        steps, values = zip(*kept, strict=True)
        grouped.setdefault(_group(name), []).append(Line(name, steps, tuple(factor * value for value in values)))
    ranks = {title: -1 if lines[0].name == monitor else _rank(title) for title, lines in grouped.items()}
    order = sorted(grouped, key=lambda title: (ranks[title], title))
    named = [title for title in order if ranks[title] < _rank("")]
    shown = [*named, *order[len(named) :][:MOST_OTHERS]]
    return [
        Chart(title, "%" if is_share(grouped[title][0].name) else "", tuple(grouped[title]), every) for title in shown
    ]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two, at most ``most`` + 1 of them."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _points(rows: Sequence[dict[str, str]], name: str) -> Iterator[tuple[float, float]]:
    """Step and value of a column, where there is a finite one."""
    for row in rows:
        try:
            step, value = float(row["step"]), float(row[name] or "nan")
        except ValueError:
            continue
        if math.isfinite(value):
            yield step, value


def _group(name: str) -> str:
    split, _, rest = name.partition("/")
    if is_pck(name):  # of one definition, a curve for each share of the length
        return f"{split}/PCK {rest.split('_', 2)[-1]}"
    if is_share(name):
        return "scores"
    if split in ("train", "val") and (rest == "loss" or rest.startswith("loss_")):
        return "loss"
    if split in ("train", "val") and rest.startswith("error"):
        return "error"
    if name == "train/lr":
        return "learning rate"
    if split == "weights":
        return f"weights of the branches, {rest.rpartition('/')[0] or rest}"
    return name


def _rank(title: str) -> int:
    named = ("scores", "loss", "error", "learning rate", "weights")
    return next((place for place, start in enumerate(named) if title.startswith(start)), len(named))
