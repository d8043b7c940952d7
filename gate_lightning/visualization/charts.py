"""Charts of results, written as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gate_lightning.errors import ConfigError

__all__ = ["comparison_chart", "line_chart"]

BAR_COLOUR = "#4c78a8"
POINT_COLOUR = "#111111"


def comparison_chart(labels: Sequence[str], values: Sequence[Sequence[float]], metric: str, path: Path) -> None:
    """Horizontal bars of mean ± standard deviation (n − 1), with every run as a point.

    Args:
        labels: name per bar, drawn from top to bottom.
        values: the runs' values per bar, fractions; drawn in percent.
        metric: what the values are, for the axis.
        path: PNG file; its folder is created.

    Raises:
        ConfigError: if there is no bar, or a bar without values, or labels and values differ in number.
    """
    if not labels or len(labels) != len(values) or not all(values):
        raise ConfigError(f"{len(labels)} labels for {len(values)} bars; every bar needs a label and a value")
    percent = [[100.0 * value for value in runs] for runs in values]
    means = [mean(runs) for runs in percent]
    spread = [stdev(runs) if len(runs) > 1 else 0.0 for runs in percent]
    longest = max(len(label) for label in labels)
    figure = Figure(figsize=(6.0 + 0.075 * min(longest, 70), 1.2 + 0.42 * len(labels)), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    rows = range(len(labels))
    axes.barh(rows, means, xerr=spread, color=BAR_COLOUR, height=0.66, error_kw={"capsize": 3, "lw": 1.2}, zorder=2)
    for row, runs in zip(rows, percent, strict=True):
        axes.plot(runs, [row] * len(runs), "o", ms=3.5, color=POINT_COLOUR, zorder=3)
    top = max(max(max(runs) for runs in percent), max(m + s for m, s in zip(means, spread, strict=True)))
    right = top * 1.02 if top > 0 else 1.0
    for row, (value, deviation, runs) in enumerate(zip(means, spread, percent, strict=True)):
        text = f"{value:.1f} ± {deviation:.1f}  (n={len(runs)})" if len(runs) > 1 else f"{value:.1f}"
        axes.text(right, row, text, va="center", fontsize=9)
    axes.set_yticks(list(rows), [_shortened(label) for label in labels], fontsize=9)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(0, right)
    axes.set_xlabel(f"{metric} (%)")
    _write(figure, axes, path)


def line_chart(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str, path: Path
) -> None:
    """Curves over a common axis (loss over steps, mIoU over timesteps).

    Args:
        series: name → (x, y).
        x_label, y_label: of the axes.
        path: PNG file; its folder is created.

    Raises:
        ConfigError: if there is no curve, or one whose x and y differ in length.
    """
    if not series or any(len(x) != len(y) for x, y in series.values()):
        raise ConfigError("a line chart needs at least one series, with as many x as y values")
    figure = Figure(figsize=(7.0, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, (x, y) in series.items():
        axes.plot(x, y, lw=1.6, marker="o" if len(x) < 30 else None, ms=3.5, label=name)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if len(series) > 1:
        axes.legend(fontsize=9, frameon=False)
    _write(figure, axes, path)


def _shortened(label: str, most: int = 70) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def _write(figure: Figure, axes: Axes, path: Path) -> None:
    axes.grid(axis="both", color="#dddddd", lw=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))
