from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gate_lightning.errors import ConfigError, DataError
from gate_lightning.visualization.overlay import (
    WRONG_COLOUR,
    error_map,
    legend_entries,
    overlay,
    write_mask,
    write_prediction,
)
from gate_lightning.visualization.palette import IGNORED_COLOUR, colorize

PALETTE = [(10, 20, 30), (200, 100, 0), (0, 255, 255)]
LABELS = np.array([[0, 1, 2], [2, 1, 255]])


def test_every_pixel_has_the_colour_of_its_class() -> None:
    image = colorize(LABELS, PALETTE, ignore_index=255)
    for y, x in np.ndindex(2, 3):
        label = LABELS[y, x]
        assert tuple(image[y, x]) == (IGNORED_COLOUR if label == 255 else PALETTE[label])


@pytest.mark.parametrize("labels", [np.array([[3]]), np.array([[-1]]), np.array([[255]])])
def test_labels_without_a_colour_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(DataError, match=str(labels[0, 0])):
        colorize(labels, PALETTE, ignore_index=254)


@pytest.mark.parametrize("palette", [[], [(1, 2)], [(0, 0, 256)], [(0, 0, -1)]])
def test_impossible_palettes_are_refused(palette: list[tuple[int, ...]]) -> None:
    with pytest.raises(ConfigError, match="palette"):
        colorize(np.zeros((1, 1), int), palette)


def test_overlay_is_half_image_and_half_colours() -> None:
    image, labels = np.full((2, 3, 3), 100, np.uint8), np.array([[0, 1, 0], [1, 1, 0]])
    expected = (image.astype(float) + np.array(PALETTE)[labels]) / 2
    assert np.abs(overlay(image, labels, PALETTE) - expected).max() <= 0.5


def test_error_map_is_red_exactly_where_the_prediction_is_wrong_and_judged() -> None:
    image = np.full((2, 3, 3), 100, np.uint8)
    prediction = np.array([[0, 0, 2], [2, 1, 1]])
    image = error_map(image, prediction, LABELS, ignore_index=255)
    wrong = (image == WRONG_COLOUR).all(axis=2)
    assert wrong.tolist() == [[False, True, False], [False, False, False]]
    assert tuple(image[1, 2]) == IGNORED_COLOUR
    assert len(set(image[0, 0].tolist())) == 1


def test_sizes_have_to_fit() -> None:
    with pytest.raises(ConfigError, match="differ in size"):
        overlay(np.zeros((3, 3, 3), np.uint8), LABELS, PALETTE)
    with pytest.raises(ConfigError, match="differ in size"):
        error_map(np.zeros((2, 3, 3), np.uint8), LABELS, LABELS[:1])


def test_legend_lists_what_occurs_by_area() -> None:
    entries = legend_entries([LABELS, np.array([2, 2])], ("a", "b", "c"), PALETTE)
    assert entries == [("c", PALETTE[2]), ("b", PALETTE[1]), ("a", PALETTE[0])]
    assert [name for name, _ in legend_entries([LABELS], ("a", "b", "c"), PALETTE, most=1)] == ["b"]


def test_mask_file_holds_indices_and_shows_colours(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mask.png"
    write_mask(path, LABELS, PALETTE)
    image = Image.open(path)
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), LABELS)
    assert image.convert("RGB").getpixel((1, 0)) == PALETTE[1]
    with pytest.raises(ConfigError, match="8-bit"):
        write_mask(path, LABELS + 1, PALETTE)


def test_prediction_writes_mask_and_overlay_under_the_images_name(tmp_path: Path) -> None:
    image = np.full((2, 3, 3), 100, np.uint8)
    labels = np.array([[0, 1, 2], [2, 1, 0]])
    write_prediction(tmp_path, "sub/x", image, labels, PALETTE, ("a", "b", "c"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "masks" / "sub" / "x.png")), labels)
    shown = np.asarray(Image.open(tmp_path / "overlays" / "sub" / "x.png"))
    # 2 × 3 pixels are enlarged 128 times; the legend follows below
    assert shown[128, 128 * 2 + 5].tolist() == overlay(image, labels, PALETTE)[1, 2].tolist()
    assert shown.shape[0] > 256
    assert sorted(p.name for p in (tmp_path / "masks" / "sub").iterdir()) == ["x.png"]
