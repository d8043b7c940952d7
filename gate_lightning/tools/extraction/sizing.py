"""Resizing of images before extraction."""

from __future__ import annotations

from typing import Any

import numpy as np

from gate_lightning.data.samples import Sample
from gate_lightning.data.transforms.basic import Resize, resize_bicubic, resize_image
from gate_lightning.utils.checks import check_choice, whole_number

__all__ = ["Sizing"]


class Sizing:
    """Resizing of an image with its control images.

    Args:
        resize: "none": as in the file; "short": shorter side to ``size``, aspect kept; "square": ``size`` × ``size``
            by bicubic interpolation, aspect not kept, as the field's released code does. Sides that are no multiple of
            the backbone's ``size_multiple`` are padded by the extractor, and `extract` crops the features.
        size: pixels.
    """

    def __init__(self, resize: str, size: int) -> None:
        check_choice(resize, "resize", ("none", "short", "square"))
        whole_number(size, "size", 1)
        self.resize, self.side = resize, size
        self._short = Resize(size if resize == "short" else 0)

    @property
    def description(self) -> dict[str, Any]:
        """Settings that features depend on, JSON-able."""
        return {"resize": self.resize, "size": None if self.resize == "none" else self.side}

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels of an image after resizing."""
        return (self.side, self.side) if self.resize == "square" else self._short.size(height, width)

    def check(self, height: int, width: int, name: str) -> None:
        """Raise DataError for an image that is not enlarged; see `Resize`."""
        if self.resize == "short":
            self._short.check(height, width, name)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The resized image, its control images with it; uses no random number."""
        if self.resize == "square":
            return sample.map_images(self._squared)
        height, width = sample.image.shape[:2]
        self.check(height, width, sample.sample_id)
        height, width = self.size(height, width)
        return sample.map_images(lambda image: resize_image(image, height, width))

    def _squared(self, image: np.ndarray) -> np.ndarray:
        if image.shape[:2] == (self.side, self.side):
            return image
        return resize_bicubic(image, self.side, self.side)
