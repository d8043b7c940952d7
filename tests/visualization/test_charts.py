from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from gate_lightning.errors import ConfigError
from gate_lightning.visualization.charts import BAR_COLOUR, comparison_chart, line_chart


def test_bars_are_as_long_as_their_means(tmp_path: Path) -> None:
    path = tmp_path / "new" / "chart.png"
    comparison_chart(["half", "quarter", "none"], [[0.5, 0.5], [0.2, 0.3], [0.0]], "val/mIoU", path)
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    colour = np.round(255 * np.array(to_rgb(BAR_COLOUR)))
    bar = np.abs(picture - colour).sum(axis=2) < 12
    lengths = bar.sum(axis=1)
    half, quarter = lengths.max(), lengths[lengths < 0.7 * lengths.max()].max()
    assert quarter / half == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(("labels", "values"), [([], []), (["a"], [[]]), (["a", "b"], [[0.1]])])
def test_bars_need_labels_and_values(tmp_path: Path, labels: list[str], values: list[list[float]]) -> None:
    with pytest.raises(ConfigError):
        comparison_chart(labels, values, "m", tmp_path / "x.png")


def test_many_long_labels_make_a_larger_picture(tmp_path: Path) -> None:
    comparison_chart(["a"], [[0.5]], "m", tmp_path / "small.png")
    comparison_chart(["long " * 20] * 12, [[0.5]] * 12, "m", tmp_path / "large.png")
    small, large = (Image.open(tmp_path / name).size for name in ("small.png", "large.png"))
    assert large[0] > small[0]
    assert large[1] > small[1]


def test_lines_are_drawn_and_checked(tmp_path: Path) -> None:
    line_chart({"loss": ([0, 1, 2], [3, 2, 1])}, "step", "loss", tmp_path / "x.png")
    assert np.asarray(Image.open(tmp_path / "x.png")).std() > 1
    for series in ({}, {"a": ([0, 1], [1])}):
        with pytest.raises(ConfigError):
            line_chart(series, "x", "y", tmp_path / "y.png")
