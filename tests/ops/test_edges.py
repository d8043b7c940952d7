"""Canny edges."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from gate_lightning.errors import ConfigError
from gate_lightning.ops.edges import canny


def square() -> np.ndarray:
    image = np.full((40, 40, 3), 60, np.uint8)
    image[10:30, 10:30] = (200, 120, 90)
    return image


def test_default_is_plain_canny() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    np.testing.assert_array_equal(canny(image), cv2.Canny(image, 100, 200))


def test_edges_follow_the_outline() -> None:
    edges = canny(square(), blur_sigma=1.0, normalize=True)
    assert edges.dtype == np.uint8
    assert set(np.unique(edges)) == {0, 255}
    rows, _ = np.nonzero(edges)
    assert rows.min() >= 8
    assert rows.max() <= 31
    assert edges[20, 8:12].any()
    assert edges[20, 28:32].any()


def test_normalisation_finds_edges_in_dark_images() -> None:
    dark = (square() * 0.15).astype(np.uint8)
    assert not canny(dark).any()
    assert canny(dark, normalize=True).any()


def test_blank_image_has_no_edges() -> None:
    assert not canny(np.full((16, 16, 3), 77, np.uint8), normalize=True).any()


@pytest.mark.parametrize("arguments", [{"low": 200, "high": 100}, {"low": -1}, {"blur_sigma": -1.0}])
def test_impossible_settings_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        canny(square(), **arguments)


def test_foreign_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="float64"):
        canny(np.zeros((8, 8, 3)))
