"""Images of any size made into what a backbone reads, and its features cut back to them."""

from __future__ import annotations

from typing import Any

import numpy as np

from gate_lightning.data.samples import Sample
from gate_lightning.data.transforms.basic import Resize, resize_bicubic, resize_image
from gate_lightning.errors import ConfigError
from gate_lightning.utils.checks import whole_number

__all__ = ["Sizing"]


class Sizing:
    """How an image gets to a size that the backbone reads.

    Args:
        resize: "none": as in the file; "short": shorter side to ``size``, aspect kept; "square": ``size`` × ``size``
            by bicubic interpolation, aspect not kept, as the field's released code does. Where a side is no multiple
            of what the backbone reads, the image is mirrored at its bottom and right border, and what lies there is
            cut off the features again (a position that covers the border is kept).
        size: pixels.
    """

    def __init__(self, resize: str, size: int) -> None:
        if resize not in ("none", "short", "square"):
            raise ConfigError(f"resize={resize}: expected none, short or square")
        whole_number(size, "size", 1)
        self.resize, self.side = resize, size
        self._short = Resize(size if resize == "short" else 0)

    @property
    def description(self) -> dict[str, Any]:
        """What features depend on, JSON-able."""
        return {"resize": self.resize, "size": None if self.resize == "none" else self.side}

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels of an image after resizing."""
        return (self.side, self.side) if self.resize == "square" else self._short.size(height, width)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The resized image, its control images with it; uses no random number."""
        if self.resize == "square":
            return sample.map_images(self._squared)
        height, width = self.size(*sample.image.shape[:2])
        return sample.map_images(lambda image: resize_image(image, height, width))

    def _squared(self, image: np.ndarray) -> np.ndarray:
        if image.shape[:2] == (self.side, self.side):
            return image
        return resize_bicubic(image, self.side, self.side)
