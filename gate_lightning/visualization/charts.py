"""Charts of results, written as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gate_lightning.errors import ConfigError
from gate_lightning.utils.files import write_atomically

__all__ = ["comparison_chart", "confusion_image", "curve_image", "heat_chart"]

BAR_COLOUR = "#4c78a8"
POINT_COLOUR = "#111111"
#: rows of a confusion matrix without a labelled pixel
ABSENT_COLOUR = "#dddddd"
#: most classes whose cells have room for numbers
MOST_NUMBERED = 32


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
    axes.grid(axis="both", color="#dddddd", lw=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _write(figure, path)


def heat_chart(
    rows: Sequence[str],
    columns: Sequence[str],
    values: NDArray[np.float64],
    titles: tuple[str, str, str],
    path: Path,
) -> None:
    """A table of numbers as colours, the numbers in the cells: mIoU by layer and timestep.

    Args:
        rows, columns: names; the first row is at the top.
        values: (rows, columns) fractions, drawn in percent; NaN leaves a cell grey.
        titles: of the rows, of the columns, and of the values.
        path: PNG file; its folder is created.

    Raises:
        ConfigError: if the values are no such table, or all are NaN.
    """
    percent = 100.0 * np.asarray(values, dtype=np.float64)
    if percent.shape != (len(rows), len(columns)) or np.isnan(percent).all():
        raise ConfigError(f"values are {percent.shape} for {len(rows)} rows and {len(columns)} columns, or all missing")
    longest = max(len(_shortened(row)) for row in rows)
    size = (2.2 + 0.62 * len(columns) + 0.085 * longest, 1.3 + 0.3 * len(rows))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor(ABSENT_COLOUR)
    image = axes.imshow(percent, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(columns)), [_shortened(column, 24) for column in columns], fontsize=9)
    axes.set_yticks(range(len(rows)), [_shortened(row) for row in rows], fontsize=9)
    axes.set_ylabel(titles[0])
    axes.set_xlabel(titles[1])
    figure.colorbar(image, ax=axes, label=f"{titles[2]} (%)")
    middle = (np.nanmin(percent) + np.nanmax(percent)) / 2
    for row, column in np.argwhere(~np.isnan(percent)):
        value = percent[row, column]
        colour = "black" if value > middle else "white"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=colour)
    _write(figure, path)


def confusion_image(confusion: NDArray[np.int64], classes: Sequence[str], title: str = "") -> NDArray[np.uint8]:
    """Confusion matrix in percent of the true class: rows add up to 100 %.

    Up to 32 classes the cells hold their percentages; beyond, cells and labels shrink so that 150 classes and their
    names fit 2500 pixels. Rows of classes without a pixel are grey.

    Args:
        confusion: (K, K) pixels, rows: truth, columns: prediction.
        classes: K names.
        title: above the image.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ConfigError: if confusion and classes do not fit.
    """
    count = len(classes)
    if confusion.shape != (count, count) or not count:
        raise ConfigError(f"confusion is {confusion.shape} for {count} classes; expected one row and column a class")
    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, 100.0 * confusion / np.maximum(totals, 1), np.nan)
    numbered = count <= MOST_NUMBERED
    cell = 0.36 if numbered else 0.11  # inches
    letters = 8.0 if numbered else 6.0
    names = [_shortened(name, 24) for name in classes]
    # placed by hand: the automatic layout takes seconds with 300 names
    side, names_take = count * cell, 0.4 + max(map(len, names)) * letters / 72 * 0.62
    width, height = names_take + side + 1.2, names_take + side + 0.4
    figure = Figure(figsize=(width, height), dpi=120)
    axes = figure.add_axes((names_take / width, names_take / height, side / width, side / height))
    scale = figure.add_axes(((names_take + side + 0.2) / width, names_take / height, 0.15 / width, side / height))
    axes.set_facecolor(ABSENT_COLOUR)
    # the square root keeps confusions of a few percent visible beside a diagonal near 100
    image = axes.imshow(shares, cmap="viridis", norm=PowerNorm(0.5, 0.0, 100.0))
    axes.set_xticks(range(count), names, rotation=90, fontsize=letters)
    axes.set_yticks(range(count), names, fontsize=letters)
    axes.tick_params(length=0, pad=2)
    figure.text((names_take + side / 2) / width, 0.08 / height, "prediction", ha="center", va="bottom", fontsize=9)
    figure.text(0.08 / width, (names_take + side / 2) / height, "truth", rotation=90, va="center", fontsize=9)
    figure.text(0.1 / width, 1 - 0.1 / height, title, va="top", fontsize=9)
    figure.colorbar(image, cax=scale, label="% of the truth")
    for row, column in np.argwhere(shares >= 0.5) if numbered else ():
        value = shares[row, column]
        colour = "black" if value > 40 else "white"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(np.asarray(canvas.buffer_rgba())[..., :3])


def curve_image(
    places: Sequence[float], curves: Mapping[str, NDArray[np.float64]], titles: tuple[str, str]
) -> NDArray[np.uint8]:
    """Curves of fractions, in percent.

    Args:
        places: values of the horizontal axis.
        curves: name → fraction at each place.
        titles: of both axes.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, values in curves.items():
        axes.plot(places, 100.0 * np.asarray(values), "o-", ms=3.5, lw=1.6, label=name)
    axes.set_xlabel(titles[0])
    axes.set_ylabel(f"{titles[1]} (%)")
    axes.set_ylim(0, 102)
    axes.grid(color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(np.asarray(canvas.buffer_rgba())[..., :3])


def _shortened(label: str, most: int = 70) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def _write(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    write_atomically(path, content.getvalue())
