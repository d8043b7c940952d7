"""Changes of colour, with the ranges of mmsegmentation's ADE20K recipe."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from gate_lightning.data.samples import Sample

__all__ = ["PhotometricDistortion"]


class PhotometricDistortion:
    """Brightness, contrast, saturation and hue, each with probability 1/2; contrast first or last."""

    BRIGHTNESS = 32.0  # largest shift, of 255
    CONTRAST = SATURATION = (0.5, 1.5)  # smallest and largest factor
    HUE = 18  # largest shift, in OpenCV's units of 2 degrees

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample with its image distorted; control images are not."""
        # all numbers are drawn every time, so that one switch does not shift the others
        does = rng.random(4) < 0.5
        contrast_first = rng.random() < 0.5
        shift = rng.uniform(-self.BRIGHTNESS, self.BRIGHTNESS)
        contrast, saturation = rng.uniform(*self.CONTRAST), rng.uniform(*self.SATURATION)
        turn = int(rng.integers(-self.HUE, self.HUE + 1))
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
