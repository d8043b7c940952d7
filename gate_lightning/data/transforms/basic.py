"""Geometry and colour of images: resize, crop, flip, distort, pad.

Every random number comes from the generator that is passed in, in a fixed number per call where possible. Geometry
acts on image, mask and control images alike; masks are never interpolated. The pipeline and its ranges are those
of mmsegmentation's ADE20K recipe (spec of the field: ratio 0.5 to 2, class-balanced crop, flip, photometric
distortion, padding that is ignored).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from PIL import Image

from gate_lightning.data.card import IGNORE_INDEX
from gate_lightning.data.samples import Sample, SegmentationSample, Transform, map_mask
from gate_lightning.errors import ConfigError

__all__ = [
    "CenterCrop",
    "Compose",
    "Pad",
    "PhotometricDistortion",
    "RandomCrop",
    "RandomFlip",
    "RandomResize",
    "Resize",
    "resize_bicubic",
    "resize_image",
    "resize_mask",
]


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, C) → (height, width, C); averages over the area when it shrinks, bilinear when it grows."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height < image.shape[0] or width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resize_bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3) → (height, width, 3) by PIL's bicubic filter, which antialiases; the field's released code."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (H, W) → (height, width), the label under each new pixel's centre."""
    if mask.shape == (height, width):
        return mask
    # plain INTER_NEAREST takes the top left corner and so shifts masks against images
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def _check_interval(name: str, interval: Sequence[float], low: float) -> tuple[float, float]:
    values = tuple(interval)
    if len(values) != 2 or not low < values[0] <= values[1]:
        raise ConfigError(f"{name} is {values}; expected two growing numbers above {low}")
    return float(values[0]), float(values[1])


def _check_size(name: str, size: int) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ConfigError(f"{name} is {size!r}; expected a number of pixels, at least 1")
    return size


def _check_crop(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a crop that is given so, or as the side of a square."""
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2:
        raise ConfigError(f"crop_size is {size!r}; expected a number of pixels, or (height, width)")
    return _check_size("crop_size", pair[0]), _check_size("crop_size", pair[1])


class Compose:
    """Transforms one after the other, all from one generator."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = tuple(transforms)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The transformed sample."""
        for transform in self.transforms:
            sample = transform(sample, rng)
        return sample


class Resize:
    """Shorter side to ``short`` pixels, aspect kept. The rule for evaluation: there the mask keeps its size.

    Args:
        short: length of the shorter side, or 0 to leave images as they are.
        with_mask: resize the mask too.
    """

    def __init__(self, short: int, with_mask: bool = False) -> None:
        if short != 0:
            _check_size("resize_short", short)
        self.short, self.with_mask = short, with_mask

    def size(self, height: int, width: int, ratio: float = 1.0) -> tuple[int, int]:
        """(height, width) after resizing with a further factor ``ratio``."""
        scale = ratio * (self.short / min(height, width) if self.short else 1.0)
        return max(round(height * scale), 1), max(round(width * scale), 1)

    def image(self, image: np.ndarray) -> np.ndarray:
        """One image, uint8 (H, W, C), resized."""
        return self._image(image, *self.size(*image.shape[:2]))

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The resized sample; uses no random number."""
        height, width = sample.image.shape[:2]
        return self._to(sample, *self.size(height, width))

    def _to(self, sample: Sample, height: int, width: int) -> Sample:
        sample = sample.map_images(lambda image: self._image(image, height, width))
        return map_mask(sample, lambda mask: self._mask(mask, height, width)) if self.with_mask else sample

    def _image(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        return resize_image(image, height, width)

    def _mask(self, mask: np.ndarray, height: int, width: int) -> np.ndarray:
        return resize_mask(mask, height, width)


class RandomResize(Resize):
    """Shorter side to ``short`` times a factor drawn uniformly from ``ratio_range``; image and mask.

    Args:
        short: see `Resize`.
        ratio_range: smallest and largest factor, above 0.
    """

    def __init__(self, short: int, ratio_range: Sequence[float] = (0.5, 2.0)) -> None:
        super().__init__(short, with_mask=True)
        self.ratio_range = _check_interval("ratio_range", ratio_range, 0.0)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The resized sample."""
        height, width = sample.image.shape[:2]
        return self._to(sample, *self.size(height, width, rng.uniform(*self.ratio_range)))


def _crop(sample: Sample, top: int, left: int, size: tuple[int, int]) -> Sample:
    cut = sample.map_all(lambda array: array[top : top + size[0], left : left + size[1]])
    return replace(cut, window=(sample.window[0] + top, sample.window[1] + left))


class RandomCrop:
    """A cut-out that, if possible, is not dominated by one class.

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
        """The cut-out."""
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
    """The square, or (height, width), in the middle; uses no random number."""

    def __init__(self, size: int | Sequence[int]) -> None:
        self.size = _check_crop(size)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The cut-out."""
        height, width = sample.image.shape[:2]
        return _crop(sample, max(height - self.size[0], 0) // 2, max(width - self.size[1], 0) // 2, self.size)


class RandomFlip:
    """Left to right, with probability ``p``. Captions that say "left" do not follow."""

    def __init__(self, p: float = 0.5) -> None:
        if not 0.0 <= p <= 1.0:
            raise ConfigError(f"flip is {p}; expected a probability in [0, 1]")
        self.p = p

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample or its mirror image."""
        return sample.map_all(lambda array: array[:, ::-1]) if rng.random() < self.p else sample


class Pad:
    """Grey below and to the right up to ``size``, a side or (height, width); ignored in masks, black in controls.

    Args:
        size: side in pixels, or (height, width).
        label: class of the padding in masks, 0 to 254; None for ignored.
    """

    GREY = 128  # 0 in [-1, 1], as where normalised images are padded with zeros

    def __init__(self, size: int | Sequence[int], label: int | None = None) -> None:
        if label is not None and (isinstance(label, bool) or label not in range(IGNORE_INDEX)):
            raise ConfigError(f"pad_label is {label!r}; expected a class number, or null for padding that is ignored")
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


class PhotometricDistortion:
    """Brightness, contrast, saturation and hue, each with probability one half; contrast first or last.

    Args:
        brightness: largest shift, of 255.
        contrast, saturation: smallest and largest factor.
        hue: largest turn in OpenCV's units of 2 degrees.
    """

    def __init__(
        self,
        brightness: float = 32,
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] = (0.5, 1.5),
        hue: int = 18,
    ) -> None:
        if not 0 <= brightness <= 255 or not 0 <= hue <= 90:
            raise ConfigError(f"brightness is {brightness} and hue {hue}; expected 0 to 255 and 0 to 90")
        self.brightness, self.hue = brightness, hue
        self.contrast = _check_interval("contrast", contrast, 0.0)
        self.saturation = _check_interval("saturation", saturation, 0.0)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample with another look; control images keep theirs."""
        # All numbers are drawn every time, so that one switch does not shift the others.
        does = rng.random(4) < 0.5
        contrast_first = rng.random() < 0.5
        shift = rng.uniform(-self.brightness, self.brightness)
        contrast, saturation = rng.uniform(*self.contrast), rng.uniform(*self.saturation)
        turn = int(rng.integers(-self.hue, self.hue + 1))
        image = sample.image
        if does[0]:
            image = _scaled(image, 1.0, shift)
        if does[1] and contrast_first:
            image = _scaled(image, contrast)
        if does[2]:
            image = _recoloured(image, saturation, 0)
        if does[3]:
            image = _recoloured(image, 1.0, turn)
        if does[1] and not contrast_first:
            image = _scaled(image, contrast)
        return replace(sample, image=image)


def _scaled(image: np.ndarray, factor: float, shift: float = 0.0) -> np.ndarray:
    return np.clip(image.astype(np.float32) * factor + shift, 0, 255).astype(np.uint8)


def _recoloured(image: np.ndarray, saturation: float, turn: int) -> np.ndarray:
    hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(np.int32) + turn) % 180
    hsv[..., 1] = _scaled(hsv[..., 1], saturation)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
