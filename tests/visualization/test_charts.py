from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from PIL import Image

from gate_lightning.errors import ConfigError
from gate_lightning.visualization.charts import (
    ABSENT_COLOUR,
    BAR_COLOUR,
    comparison_chart,
    confusion_image,
    heat_chart,
)


def test_bars_are_as_long_as_their_means(tmp_path: Path) -> None:
    path = tmp_path / "new" / "chart.png"
    comparison_chart(["half", "quarter", "none"], [[0.5, 0.5], [0.2, 0.3], [0.0]], "val/mIoU", path)
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    colour = np.round(255 * np.array(to_rgb(BAR_COLOUR)))
    bar = np.abs(image - colour).sum(axis=2) < 12
    lengths = bar.sum(axis=1)
    half, quarter = lengths.max(), lengths[lengths < 0.7 * lengths.max()].max()
    assert quarter / half == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(("labels", "values"), [([], []), (["a"], [[]]), (["a", "b"], [[0.1]])])
def test_bars_need_labels_and_values(tmp_path: Path, labels: list[str], values: list[list[float]]) -> None:
    with pytest.raises(ConfigError):
        comparison_chart(labels, values, "m", tmp_path / "x.png")


def test_many_long_labels_make_a_larger_image(tmp_path: Path) -> None:
    comparison_chart(["a"], [[0.5]], "m", tmp_path / "small.png")
    comparison_chart(["long " * 20] * 12, [[0.5]] * 12, "m", tmp_path / "large.png")
    small, large = (Image.open(tmp_path / name).size for name in ("small.png", "large.png"))
    assert large[0] > small[0]
    assert large[1] > small[1]


def cells(image: np.ndarray, colour: tuple[float, ...]) -> np.ndarray:
    """Pixels of about that colour."""
    return np.abs(image.astype(int) - np.round(255 * np.array(colour[:3]))).sum(axis=2) < 9


def test_confusion_is_drawn_with_the_truth_in_rows() -> None:
    # a quarter of a is called b, all of b is called c, no pixel is c
    image = confusion_image(np.array([[6, 2, 0], [0, 0, 9], [0, 0, 0]]), ["a", "b", "c"])
    grey = cells(image, to_rgb(ABSENT_COLOUR))
    bottom = np.flatnonzero(grey.sum(axis=1) > 60).max()  # the grey row is the last one; edges of letters are grey too
    across = np.flatnonzero(grey[bottom - 5])
    left, side = across.min(), (across.max() - across.min() + 1) / 3
    shares = [[75, 25, 0], [0, 0, 100]]
    for row, column in np.ndindex(2, 3):
        # a corner of the cell: a number may be in its middle
        y, x = round(bottom - (2.8 - row) * side), round(left + (column + 0.2) * side)
        expected = colormaps["viridis"]((shares[row][column] / 100) ** 0.5)
        assert cells(image[y : y + 1, x : x + 1], expected).all(), (row, column)


@pytest.mark.slow
def test_many_classes_fit_a_screenful_of_screens() -> None:
    rng = np.random.default_rng(0)
    names = [f"class with a name {number}" for number in range(150)]
    large = confusion_image(rng.integers(0, 1000, (150, 150)), names, "title")
    small = confusion_image(rng.integers(0, 1000, (19, 19)), names[:19])
    assert small.shape[1] < 1400
    assert 2000 < large.shape[1] <= 2500
    assert large.dtype == np.uint8


def test_confusion_needs_a_row_per_class() -> None:
    with pytest.raises(ConfigError, match="expected one row"):
        confusion_image(np.zeros((2, 3), int), ["a", "b"])


def test_a_heat_chart_colours_from_lowest_to_highest_and_leaves_gaps_grey(tmp_path: Path) -> None:
    values = np.array([[0.1, 0.2, 0.3], [0.5, np.nan, 0.4]])
    heat_chart(["a", "b"], ["1", "2", "3"], values, ("layer", "timestep", "mIoU"), tmp_path / "new" / "heat.png")
    image = np.asarray(Image.open(tmp_path / "new/heat.png").convert("RGB"))
    table = image[:, : int(image.shape[1] * 0.8)]  # without the scale
    for colour, below in ((colormaps["viridis"](0.0), False), (colormaps["viridis"](1.0), True)):
        rows, columns = np.nonzero(cells(table, colour))
        assert len(rows) > 500
        assert (rows.mean() > image.shape[0] * 0.45) == below
        assert columns.mean() < image.shape[1] * 0.45
    assert cells(image, to_rgb(ABSENT_COLOUR)).sum() > 500
    with pytest.raises(ConfigError, match="2 rows"):
        heat_chart(["a", "b"], ["1"], values, ("", "", ""), tmp_path / "x.png")
