"""Canny edges, as control images."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from gate_lightning.errors import ConfigError


@dataclass(frozen=True)
class CannySettings:
    """Settings of `canny`, for edges that loader workers find ahead.

    Raises:
        ConfigError: thresholds out of order, or a negative blur.
    """

    low: float = 100.0
    high: float = 200.0
    blur_sigma: float = 0.0
    normalize: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high or self.blur_sigma < 0:
            raise ConfigError(
                f"Canny with low={self.low}, high={self.high}, blur_sigma={self.blur_sigma}; "
                f"expected 0 ≤ low ≤ high and a blur of 0 or more"
            )

    @property
    def key(self) -> str:
        """Name of the edges among those of other settings (``Conditions.edges``)."""
        return f"{self.low:g} {self.high:g} {self.blur_sigma:g} {self.normalize:d}"

    def edges(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W), 255 on edges and 0 elsewhere, of an image uint8 (H, W, 3)."""
        return canny(image, **{one: getattr(self, one) for one in ("low", "high", "blur_sigma", "normalize")})


def canny(
    image: np.ndarray,
    low: float = 100,
    high: float = 200,
    blur_sigma: float = 0.0,
    normalize: bool = False,
) -> np.ndarray:
    """Edges of an image.  The defaults are plain ``cv2.Canny(rgb, 100, 200)``, as in GATE's released code.

    Thresholds depend on the images: textured ones need a blur, dark ones normalisation.  Look at the result.

    Args:
        image: uint8 (H, W, 3), RGB.
        low: gradients below are no edge.
        high: gradients above are an edge; those between are one where they continue an edge.
        blur_sigma: standard deviation in pixels of a Gaussian blur before; 0 is none.
        normalize: stretch the brightness of the image (2nd to 98th percentile, all channels together) to 0..255
            before, so that one pair of thresholds suits dark and light images.

    Returns:
        uint8 (H, W), 255 on edges and 0 elsewhere.

    Raises:
        ConfigError: not a uint8 colour image, or thresholds out of order.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ConfigError(f"The image is {image.dtype} {image.shape}; canny expects uint8 (H, W, 3).")
    if not 0 <= low <= high or blur_sigma < 0:
        raise ConfigError(
            f"low={low}, high={high}, blur_sigma={blur_sigma}; expected 0 <= low <= high and a blur of 0 or more."
        )
    if blur_sigma > 0:
        image = cv2.GaussianBlur(image, (0, 0), blur_sigma)
    if normalize:
        dark, light = np.percentile(image, (2, 98))
        # An image of one colour has no contrast to stretch.
        gain = 255.0 / max(float(light - dark), 8.0)
        image = np.clip((image.astype(np.float32) - dark) * gain, 0, 255).astype(np.uint8)
    return cv2.Canny(np.ascontiguousarray(image), low, high)
