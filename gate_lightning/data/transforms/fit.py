"""Resizing into a box, exactly as in mmsegmentation's recipes for ADE20K and Cityscapes.

`transforms.basic.Resize` differs in three ways, each of which changes published results: there the longer side is not
limited, images that shrink are averaged over areas instead of interpolated bilinearly, and masks are read at pixel
centres instead of by OpenCV's plain nearest neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from gate_lightning.data.transforms.basic import Resize
from gate_lightning.errors import ConfigError

__all__ = ["Fit"]


class Fit(Resize):
    """Resize as large as fits into a box, aspect kept. In evaluation the mask keeps its size.

    Args:
        scale: two sides of the box in pixels; the longer one is for the longer side of the image.
        with_mask: resize the mask too.
        ratio_range: smallest and largest factor on the box, drawn uniformly; None for none.

    Raises:
        ConfigError: not two positive numbers.
    """

    def __init__(
        self, scale: Sequence[int], with_mask: bool = False, ratio_range: Sequence[float] | None = None
    ) -> None:
        super().__init__(0, with_mask, ratio_range)
        sides = tuple(scale)
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ConfigError(f"dataset.scale is {scale!r}; expected two numbers of pixels, for example [2048, 512]")
        self.long, self.short = max(sides), min(sides)

    def size(self, height: int, width: int, ratio: float = 1.0) -> tuple[int, int]:
        """(height, width) after resizing, the box enlarged by ``ratio``."""
        # the sides of the enlarged box are whole pixels, as in mmcv's RandomResize
        long, short = max(int(self.long * ratio), 1), max(int(self.short * ratio), 1)
        factor = min(long / max(height, width), short / min(height, width))
        return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)

    def _image(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)

    def _mask(self, mask: np.ndarray, height: int, width: int) -> np.ndarray:
        return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
