from __future__ import annotations

import numpy as np
import pytest

from gate_lightning.errors import ConfigError
from gate_lightning.visualization.grid import fit, image_grid, with_legend

RED = (255, 0, 0)


def test_aspect_is_kept_on_white() -> None:
    wide = np.full((10, 40, 3), RED, np.uint8)
    fitted = fit(wide, 80, 80)
    red = (fitted == RED).all(axis=2)
    assert red.sum() == 80 * 20
    assert red[30:50].all()
    assert (fitted[:30] == 255).all()


@pytest.mark.parametrize("smooth", [False, True])
def test_labels_keep_hard_edges_and_photographs_do_not(smooth: bool) -> None:
    halves = np.zeros((4, 4, 3), np.uint8)
    halves[:, 2:] = 255
    assert (len(np.unique(fit(halves, 37, 37, smooth))) > 2) == smooth


def test_grid_places_rows_and_columns_and_leaves_holes() -> None:
    first, second = np.full((8, 8, 3), 10, np.uint8), np.full((8, 8, 3), 90, np.uint8)
    grid = image_grid([[first, second], [None, first]], ["a", "b"], ["one", "two"], tile_height=50)
    rows, columns = np.nonzero((grid == 90).all(axis=2))
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (50, 50)
    assert columns.min() == 6 + 50 + 6
    tens = (grid == 10).all(axis=2)
    assert tens.sum() == 2 * 50 * 50
    assert tens[rows.min() + 10, 6 + 25]
    below = rows.max() + 40
    assert (grid[below, 6:56] == 255).all()


def test_titles_are_written_and_long_ones_broken() -> None:
    tile = np.full((8, 8, 3), 200, np.uint8)
    short = image_grid([[tile]], ["a"], tile_height=60)
    broken = image_grid([[tile]], ["all: up-level1-upsampler-out"], tile_height=60)
    assert broken.shape[0] > short.shape[0] + 15
    assert broken.shape[1] == short.shape[1] == 60 + 12
    assert (short < 100).any()


def test_legend_shows_every_colour_and_wraps() -> None:
    image = np.full((20, 200, 3), 255, np.uint8)
    entries = [(f"class number {i}", (i * 20, 5, 5)) for i in range(8)]
    legend = with_legend(image, entries)
    assert legend.shape[1] == 200
    assert legend.shape[0] > 20 + 4 * 22
    for _, colour in entries:
        assert (legend == colour).all(axis=2).sum() >= 100
    assert with_legend(image, []) is image


def test_rows_have_as_many_images_as_titles() -> None:
    with pytest.raises(ConfigError, match="titles"):
        image_grid([[None]], ["a", "b"])
