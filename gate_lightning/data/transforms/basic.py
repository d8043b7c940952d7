"""Geometry of images: resize, crop, flip, pad; and the pipeline of training.

Every random number comes from the generator that is passed in, in a fixed number per call where possible. Geometry
acts on image, mask and control images alike; masks are never interpolated. The pipeline and its ranges are those
of mmsegmentation's ADE20K recipe: ratio 0.5 to 2, class-balanced crop, flip, photometric distortion, ignored padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from gate_lightning.data.card import IGNORE_INDEX
from gate_lightning.data.samples import Sample, SegmentationSample, Transform, map_mask
from gate_lightning.data.transforms.photometric import PhotometricDistortion
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.utils.checks import number, whole_number

__all__ = [
    "LONGEST",
    "CenterCrop",
    "Compose",
    "Pad",
    "RandomCrop",
    "RandomFlip",
    "Resize",
    "resize_bicubic",
    "resize_image",
    "resize_mask",
    "training_transform",
]

#: squares of the shorter side that an image may become where it is enlarged; images that are so large are not limited
LONGEST = 32


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, C) → (height, width, C): area averages where a side shrinks, bilinear where none does."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height < image.shape[0] or width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resize_bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3) → (height, width, 3) by PIL's antialiased bicubic filter, as in the released code of DIFT."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (H, W) → (height, width): nearest neighbour at the new pixels' centres."""
    if mask.shape == (height, width):
        return mask
    # plain INTER_NEAREST takes the top left corner and so shifts masks against images
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def _check_interval(name: str, interval: Sequence[float], low: float) -> tuple[float, float]:
    values = tuple(interval)
    if len(values) != 2 or not low < values[0] <= values[1]:
        raise ConfigError(f"{name} is {values}; expected two growing numbers above {low}")
    return float(values[0]), float(values[1])


def _check_crop(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a crop, from (height, width) or the side of a square."""
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2:
        raise ConfigError(f"crop_size is {size!r}; expected a number of pixels, or (height, width)")
    return whole_number(pair[0], "dataset.crop_size", 1), whole_number(pair[1], "dataset.crop_size", 1)


class Compose:
    """Several transforms in order, with one generator."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = tuple(transforms)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The transformed sample."""
        for transform in self.transforms:
            sample = transform(sample, rng)
        return sample


class Resize:
    """Resize the shorter side to ``short`` pixels, aspect kept. In evaluation the mask keeps its size.

    Strips are not enlarged beyond `LONGEST`: a line of a few pixels, left by a wrong crop, would be read as a hundred
    images of nothing but interpolated pixels.

    Args:
        short: length of the shorter side, or 0 to leave images as they are.
        with_mask: resize the mask too.
        ratio_range: smallest and largest further factor, drawn uniformly; None for none.
    """

    def __init__(self, short: int, with_mask: bool = False, ratio_range: Sequence[float] | None = None) -> None:
        self.short, self.with_mask = whole_number(short, "dataset.resize_short"), with_mask
        self.ratio_range = None if ratio_range is None else _check_interval("dataset.ratio_range", ratio_range, 0.0)

    def size(self, height: int, width: int, ratio: float = 1.0) -> tuple[int, int]:
        """(height, width) after resizing with a further factor ``ratio``."""
        scale = ratio * (self.short / min(height, width) if self.short else 1.0)
        return max(round(height * scale), 1), max(round(width * scale), 1)

    def too_long(self, height: int, width: int) -> str:
        """Reason why an image of this size is not enlarged; empty for one that is resized."""
        made = self.size(height, width)
        pixels = made[0] * made[1]
        if pixels <= height * width or pixels <= LONGEST * self.short**2:
            return ""
        return (
            f"{width}×{height} pixels (width × height) would be enlarged to {made[1]}×{made[0]}, more than {LONGEST} "
            f"squares of {self.short}; cut it into pieces, leave it out, or choose a shorter side of "
            f"{min(height, width)} or less"
        )

    def check(self, height: int, width: int, name: str | Path) -> None:
        """Raise DataError for an image that is not enlarged (see `too_long`); ``name`` is said."""
        reason = self.too_long(height, width)
        if reason:
            raise DataError(f"{name}: {reason}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The resized sample; draws one random number, and none without ``ratio_range``.

        Raises:
            DataError: see `check`.
        """
        height, width = sample.image.shape[:2]
        self.check(height, width, sample.sample_id)
        ratio = 1.0 if self.ratio_range is None else rng.uniform(*self.ratio_range)
        height, width = self.size(height, width, ratio)
        sample = sample.map_images(lambda image: self._image(image, height, width))
        return map_mask(sample, lambda mask: self._mask(mask, height, width)) if self.with_mask else sample

    def _image(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        return resize_image(image, height, width)

    def _mask(self, mask: np.ndarray, height: int, width: int) -> np.ndarray:
        return resize_mask(mask, height, width)


def _crop(sample: Sample, top: int, left: int, size: tuple[int, int]) -> Sample:
    cut = sample.map_all(lambda array: array[top : top + size[0], left : left + size[1]])
    return replace(cut, window=(sample.window[0] + top, sample.window[1] + left))


class RandomCrop:
    """Random crop that one class does not dominate, if possible.

    Drawn again up to 10 times until it shows more than one class and the largest covers less than ``cat_max_ratio``
    of the pixels that are not ignored; the last draw is kept otherwise. Images smaller than the crop come out smaller
    (see `Pad`).

    Args:
        size: side in pixels, or (height, width).
        cat_max_ratio: in (0, 1]; 1 takes the first draw.
    """

    TRIES = 10

    def __init__(self, size: int | Sequence[int], cat_max_ratio: float = 0.75) -> None:
        self.size = _check_crop(size)
        if not 0.0 < cat_max_ratio <= 1.0:
            raise ConfigError(f"cat_max_ratio is {cat_max_ratio}; expected a share in (0, 1]")
        self.cat_max_ratio = cat_max_ratio

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The cropped sample."""
        top, left = self._corner(sample, rng)
        if isinstance(sample, SegmentationSample) and self.cat_max_ratio < 1.0:
            for _ in range(self.TRIES):
                if self._balanced(sample.mask[top : top + self.size[0], left : left + self.size[1]]):
                    break
                top, left = self._corner(sample, rng)
        return _crop(sample, top, left, self.size)

    def _corner(self, sample: Sample, rng: np.random.Generator) -> tuple[int, int]:
        height, width = sample.image.shape[:2]
        top = rng.integers(max(height - self.size[0], 0) + 1)
        left = rng.integers(max(width - self.size[1], 0) + 1)
        return int(top), int(left)

    def _balanced(self, mask: np.ndarray) -> bool:
        counts = np.bincount(mask.ravel(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
        return bool(np.count_nonzero(counts) > 1 and counts.max() < self.cat_max_ratio * counts.sum())


class CenterCrop:
    """Crop of the middle; draws no random number."""

    def __init__(self, size: int | Sequence[int]) -> None:
        self.size = _check_crop(size)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The cropped sample."""
        height, width = sample.image.shape[:2]
        return _crop(sample, max(height - self.size[0], 0) // 2, max(width - self.size[1], 0) // 2, self.size)


class RandomFlip:
    """Horizontal flip with probability ``p``. Captions stay: "left" in them is then wrong."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = number(p, "dataset.flip", 0.0, 1.0)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample or its mirror image."""
        return sample.map_all(lambda array: array[:, ::-1]) if rng.random() < self.p else sample


class Pad:
    """Padding at the bottom and the right up to ``size``: grey in images, ignored in masks, black in controls.

    Args:
        size: side in pixels, or (height, width).
        label: class of the padding in masks, 0 to 254; None for ignored.
    """

    GREY = 128  # 0 in [-1, 1], as where normalised images are padded with zeros

    def __init__(self, size: int | Sequence[int], label: int | None = None) -> None:
        if label is not None:
            whole_number(label, "dataset.pad_label", 0, IGNORE_INDEX - 1, optional="ignored padding")
        self.size, self.label = _check_crop(size), IGNORE_INDEX if label is None else label

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The padded sample."""
        height, width = sample.image.shape[:2]
        below, right = max(self.size[0] - height, 0), max(self.size[1] - width, 0)
        if not below and not right:
            return sample
        widths = ((0, below), (0, right), (0, 0))
        padded = replace(
            sample,
            image=np.pad(sample.image, widths, constant_values=self.GREY),
            controls={name: np.pad(control, widths) for name, control in sample.controls.items()},
        )
        return map_mask(padded, lambda mask: np.pad(mask, widths[:2], constant_values=self.label))


def training_transform(
    resize: Resize,
    crop_size: int | Sequence[int],
    augment: bool,
    cat_max_ratio: float,
    flip: float,
    photometric: bool,
    pad_label: int | None = None,
) -> Compose:
    """Resize, class-balanced crop, flip, photometric distortion and padding, as in mmsegmentation's recipes.

    Args:
        resize: first step, with the mask.
        crop_size: side in pixels, or (height, width).
        augment: False crops the middle instead, without flip and distortion: the same in every epoch.
        cat_max_ratio: see `RandomCrop`.
        flip: probability of a horizontal flip.
        photometric: whether colours are distorted.
        pad_label: see `Pad`.
    """
    steps: list[Transform] = [resize, CenterCrop(crop_size)]
    if augment:
        distortion = [PhotometricDistortion()] if photometric else []
        steps = [resize, RandomCrop(crop_size, cat_max_ratio), RandomFlip(flip), *distortion]
    return Compose([*steps, Pad(crop_size, pad_label)])
