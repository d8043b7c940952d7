"""Squares, and annotations too small to train on."""

from __future__ import annotations

import numpy as np
import pytest

from gate_lightning.data.samples import SegmentationSample
from gate_lightning.data.transforms.square_resize import DropSmallAnnotations, Square, drop_small
from gate_lightning.errors import ConfigError


def with_counts(side: int, counts: dict[int, int]) -> np.ndarray:
    """A mask of class 0 with exactly so many pixels of others."""
    flat = np.zeros(side * side, dtype=np.uint8)
    start = 0
    for value, count in counts.items():
        flat[start : start + count] = value
        start += count
    return flat.reshape(side, side)


def test_the_threshold_is_that_of_the_paper_at_its_size() -> None:
    mask = with_counts(256, {1: 19, 2: 20, 3: 1, 255: 5})
    kept = drop_small(mask, 20)
    expected = mask.copy()
    expected[(mask == 1) | (mask == 3)] = 255
    np.testing.assert_array_equal(kept, expected)
    assert drop_small(mask, 0) is mask


@pytest.mark.parametrize(("side", "removed", "stays"), [(64, 1, 2), (512, 79, 80), (128, 4, 5)])
def test_it_scales_with_the_area(side: int, removed: int, stays: int) -> None:
    kept = drop_small(with_counts(side, {1: removed, 2: stays}), 20)
    assert (kept == 1).sum() == 0
    assert (kept == 2).sum() == stays
    assert (kept == 255).sum() == removed


def test_a_sample_keeps_everything_else() -> None:
    rng = np.random.default_rng(0)
    sample = SegmentationSample("x", rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), mask=with_counts(256, {4: 3}))
    dropped = DropSmallAnnotations(20)(sample, rng)
    assert dropped.image is sample.image
    assert dropped.mask is not None
    assert set(np.unique(dropped.mask)) == {0, 255}
    assert (sample.mask == 4).sum() == 3  # the data set's own mask is as before
    with pytest.raises(ConfigError, match="small_annotations=-1"):
        DropSmallAnnotations(-1)


def test_images_and_masks_get_their_own_sizes() -> None:
    rng = np.random.default_rng(0)
    halves = np.zeros((20, 30), dtype=np.uint8)
    halves[:, 15:] = 3
    image, controls = np.repeat(halves[..., None] * 50, 3, axis=-1), {"c": np.zeros((20, 30, 3), np.uint8)}
    sample = SegmentationSample("x", image, controls=controls, mask=halves)
    squared = Square(16, 8)(sample, rng)
    assert squared.image.shape == squared.controls["c"].shape == (16, 16, 3)
    assert squared.mask is not None
    np.testing.assert_array_equal(squared.mask, np.repeat([[0, 3]], 4, axis=1).repeat(8, axis=0))
    assert Square(16)(sample, rng).mask is halves  # evaluation of ordinary tasks: the mask keeps its size


@pytest.mark.parametrize(("sizes", "name"), [((0, 8), "image_size"), ((8, 0), "size"), ((8, True), "size")])
def test_sizes_out_of_range(sizes: tuple[int, int], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Square(*sizes)
