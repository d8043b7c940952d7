"""Geometry against slow loops; images and masks stay on each other; every range is checked."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from gate_lightning.data.card import IGNORE_INDEX
from gate_lightning.data.classification.base import CenterSquare
from gate_lightning.data.samples import Sample, SegmentationSample
from gate_lightning.data.transforms.basic import (
    CenterCrop,
    Compose,
    Pad,
    RandomCrop,
    RandomFlip,
    Resize,
    resize_image,
    resize_mask,
)
from gate_lightning.data.transforms.fit import Fit
from gate_lightning.data.transforms.photometric import PhotometricDistortion
from gate_lightning.data.transforms.square_resize import Square
from gate_lightning.data.video.base import FrameResize
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.tools.extraction.sizing import Sizing
from gate_lightning.utils.seeding import data_generator


def numbered(height: int = 12, width: int = 20) -> Sample:
    """An image whose pixels are all different, with mask and control derived from it."""
    numbers = np.arange(height * width).reshape(height, width)
    image = np.stack([numbers % 256, numbers // 256, numbers % 7], axis=2).astype(np.uint8)
    return SegmentationSample("s", image, mask=image[..., 2].copy(), controls={"copy": image.copy()})


def agrees(sample: Sample) -> bool:
    """Whether mask and control still show what the image shows."""
    return bool((sample.mask == sample.image[..., 2]).all() and (sample.controls["copy"] == sample.image).all())


@pytest.mark.parametrize("seed", range(6))
def test_crop_and_flip_move_image_mask_and_controls_alike(seed: int) -> None:
    sample = Compose([RandomCrop(8), RandomFlip(0.5)])(numbered(), data_generator(seed))
    assert sample.image.shape == (8, 8, 3)
    assert agrees(sample)


@pytest.mark.parametrize("seed", range(6))
def test_window_is_the_corner_of_the_crop(seed: int) -> None:
    whole = numbered()
    sample = RandomCrop(8, cat_max_ratio=1.0)(whole, data_generator(seed))
    top, left = sample.window
    assert (sample.image == whole.image[top : top + 8, left : left + 8]).all()


def test_all_corners_can_be_drawn() -> None:
    rng = data_generator("corners")
    drawn = {RandomCrop(10, cat_max_ratio=1.0)(numbered(12, 11), rng).window for _ in range(200)}
    assert drawn == {(top, left) for top in range(3) for left in range(2)}


def test_flip_mirrors() -> None:
    whole = numbered()
    flipped = RandomFlip(1.0)(whole, data_generator(0))
    assert (flipped.image == whole.image[:, ::-1]).all()
    assert agrees(flipped)
    assert RandomFlip(0.0)(whole, data_generator(0)) is whole


def slow_nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """The label at the place that the centre of each new pixel comes from."""
    out = np.empty((height, width), dtype=mask.dtype)
    for row in range(height):
        for column in range(width):
            y = (row + 0.5) * mask.shape[0] / height
            x = (column + 0.5) * mask.shape[1] / width
            out[row, column] = mask[int(y), int(x)]
    return out


@pytest.mark.parametrize("size", [(5, 9), (24, 40), (7, 20), (12, 20), (36, 40)])
def test_masks_take_the_label_under_the_new_pixels_centre(size: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).integers(0, 9, (12, 20), dtype=np.uint8)
    # sizes at which no centre falls on a border between two pixels, where either one would be right
    assert (resize_mask(mask, *size) == slow_nearest(mask, *size)).all()


def test_shrinking_averages_over_areas() -> None:
    image = np.random.default_rng(1).integers(0, 256, (12, 18, 3), dtype=np.uint8)
    expected = image.reshape(4, 3, 6, 3, 3).mean(axis=(1, 3))
    assert np.abs(resize_image(image, 4, 6) - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(48, 64, (24, 32)), (640, 427, (36, 24)), (10, 10, (24, 24))]
)
def test_shorter_side_and_aspect(height: int, width: int, expected: tuple[int, int]) -> None:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    sample = Resize(24)(SegmentationSample("s", image, mask=image[..., 0]), data_generator(0))
    assert sample.image.shape[:2] == expected
    assert sample.mask.shape == (height, width)
    assert (
        Resize(24, with_mask=True)(SegmentationSample("s", image, mask=image[..., 0]), data_generator(0)).mask.shape
        == expected
    )


def test_zero_keeps_the_size() -> None:
    assert Resize(0).size(17, 31) == (17, 31)


STRIP = np.zeros((3, 300, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "transform",
    [Resize(64), Resize(64, True, (0.5, 2.0)), Resize(4), FrameResize(64), CenterSquare(64), Sizing("short", 64)],
)
def test_strips_are_not_enlarged_to_many_squares(transform: Any) -> None:
    with pytest.raises(
        DataError, match=r"^a/strip\.png: 300×3 pixels .* enlarged to \d{3,4}×\d+, more than 32 squares"
    ):
        transform(Sample("a/strip.png", STRIP), data_generator())


@pytest.mark.parametrize("transform", [Resize(0), Resize(3), Resize(2), FrameResize(0), Fit((2048, 512)), Square(64)])
def test_strips_that_do_not_grow_so_much_are_read(transform: Any) -> None:
    transform(Sample("strip", STRIP), data_generator())


@pytest.mark.parametrize(("long", "fits"), [(32, True), (33, False)])
def test_the_longest_image_that_is_enlarged(long: int, fits: bool) -> None:
    assert (Resize(20).too_long(10, 10 * long) == "") is fits
    assert (Resize(20).too_long(10 * long, 10) == "") is fits


def test_random_resize_covers_its_range() -> None:
    sample = numbered(20, 30)
    rng = data_generator("ratios")
    shorts = [Resize(10, True, (0.5, 2.0))(sample, rng).image.shape[0] for _ in range(300)]
    assert min(shorts) in (5, 6)
    assert max(shorts) in (19, 20)
    assert np.mean(shorts) == pytest.approx(12.5, abs=0.8)
    assert Resize(10, True, (0.5, 0.5))(sample, rng).mask.shape == (5, 8)


def test_crop_avoids_one_class_where_it_can() -> None:
    """Left three quarters class 0, the rest class 1: most corners show too much of class 0."""
    mask = np.zeros((32, 64), dtype=np.uint8)
    mask[:, 48:] = 1
    sample = SegmentationSample("s", np.zeros((32, 64, 3), dtype=np.uint8), mask=mask)
    rng = data_generator("balance")

    def dominated(ratio: float) -> float:
        shares = [(RandomCrop(32, ratio)(sample, rng).mask == 0).mean() for _ in range(200)]
        return float(np.mean([share >= 0.75 for share in shares]))

    assert dominated(1.0) > 0.6
    assert dominated(0.75) < 0.1


def test_ignored_does_not_count_as_a_class() -> None:
    mask = np.full((8, 16), IGNORE_INDEX, dtype=np.uint8)
    mask[:, :4] = 0
    mask[:, 4:8] = 1
    sample = SegmentationSample("s", np.zeros((8, 16, 3), dtype=np.uint8), mask=mask)
    lefts = [RandomCrop(8, 0.75)(sample, data_generator(n)).window[1] for n in range(60)]
    # further right at most a quarter of the labelled pixels is class 0, or there is only ignored
    assert np.mean([left <= 2 for left in lefts]) > 0.9


def test_hopeless_images_still_give_a_crop() -> None:
    sample = SegmentationSample("s", np.zeros((16, 16, 3), dtype=np.uint8), mask=np.zeros((16, 16), dtype=np.uint8))
    assert RandomCrop(8, 0.5)(sample, data_generator(0)).image.shape == (8, 8, 3)


def test_padding_is_ignored_and_grey_below_and_to_the_right() -> None:
    whole = numbered(5, 7)
    sample = Pad(9)(RandomCrop(9)(whole, data_generator(0)), data_generator(0))
    assert sample.image.shape == (9, 9, 3)
    assert (sample.image[:5, :7] == whole.image).all()
    assert (sample.mask[:5, :7] == whole.mask).all()
    outside = np.ones((9, 9), dtype=bool)
    outside[:5, :7] = False
    assert (sample.mask[outside] == IGNORE_INDEX).all()
    assert (sample.image[outside] == 128).all()
    assert (sample.controls["copy"][outside] == 0).all()


def test_padding_may_be_a_class() -> None:
    sample = SegmentationSample("a", np.zeros((3, 5, 3), np.uint8), mask=np.zeros((3, 5), np.uint8))
    padded = Pad((4, 6), label=1)(sample, np.random.default_rng(0))
    assert padded.mask is not None
    assert padded.mask.sum() == 4 * 6 - 3 * 5
    with pytest.raises(ConfigError, match=r"dataset\.pad_label=255: expected a whole number from 0 to 254"):
        Pad(4, label=255)


def test_center_crop() -> None:
    whole = numbered(12, 20)
    assert (CenterCrop(8)(whole, data_generator(0)).image == whole.image[2:10, 6:14]).all()


class Numbers:
    """A generator that hands out chosen numbers."""

    def __init__(self, does: list[float], first: float, values: list[float], turn: int) -> None:
        self.does, self.first, self.values, self.turn = does, first, values, turn

    def random(self, count: int | None = None) -> Any:
        return self.first if count is None else np.array(self.does)

    def uniform(self, low: float, high: float) -> float:
        return self.values.pop(0)

    def integers(self, low: int, high: int) -> int:
        return self.turn


IMAGE = np.random.default_rng(3).integers(0, 256, (6, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize("which", range(4))
def test_distortions_one_by_one(which: int) -> None:
    numbers = Numbers([0.0 if n == which else 1.0 for n in range(4)], 0.0, [20.0, 1.5, 0.5], -7)
    changed = PhotometricDistortion()(Sample("s", IMAGE), numbers).image.astype(int)
    if which == 0:
        expected = np.minimum(IMAGE.astype(int) + 20, 255)
    elif which == 1:
        expected = np.minimum((IMAGE * 1.5).astype(int), 255)
    else:
        hsv = cv2.cvtColor(IMAGE, cv2.COLOR_RGB2HSV).astype(int)
        hsv[..., 0] = (hsv[..., 0] - 7) % 180 if which == 3 else hsv[..., 0]
        hsv[..., 1] = hsv[..., 1] // 2 if which == 2 else hsv[..., 1]
        expected = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB).astype(int)
    assert np.abs(changed - expected).max() <= 1
    assert (changed != IMAGE).any()


def test_order_of_contrast_is_drawn() -> None:
    """Bright and then contrasted differs from contrasted and then bright... with saturation in between."""
    images = [
        PhotometricDistortion()(Sample("s", IMAGE), Numbers([1, 0, 0, 1], first, [0.0, 1.5, 1.5], 0)).image
        for first in (0.0, 1.0)
    ]
    assert (images[0] != images[1]).any()


def test_distortion_leaves_masks_and_controls() -> None:
    whole = numbered()
    sample = PhotometricDistortion()(whole, data_generator("any"))
    assert sample.mask is whole.mask
    assert (sample.controls["copy"] == whole.controls["copy"]).all()


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Resize, {"short": -1}),
        (Resize, {"short": 2.5}),
        (Resize, {"short": 8, "ratio_range": (2.0, 0.5)}),
        (Resize, {"short": 8, "ratio_range": (0.0, 1.0)}),
        (Resize, {"short": 8, "ratio_range": (1.0,)}),
        (RandomCrop, {"size": 0}),
        (RandomCrop, {"size": 8, "cat_max_ratio": 0.0}),
        (RandomFlip, {"p": 1.5}),
        (Pad, {"size": True}),
    ],
)
def test_settings_out_of_range_are_refused(kind: type, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        kind(**arguments)
