"""Heat maps of pixel values, such as an ensemble's disagreement."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from gate_lightning.errors import ConfigError

__all__ = ["heat_map"]


def heat_map(values: NDArray[np.floating], highest: float) -> NDArray[np.uint8]:
    """Heat map of non-negative values; 0 is black.

    Args:
        values: (H, W).
        highest: value of the brightest colour, at which larger ones are clipped; one for all images that are compared.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ConfigError: if ``highest`` is not positive or the values are no map.
    """
    if values.ndim != 2 or not highest > 0:
        raise ConfigError(f"values are {values.shape}, the highest is {highest}; expected (H, W) and a positive number")
    table = (colormaps["inferno"](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)
    places = np.rint(np.clip(values / highest, 0.0, 1.0) * 255).astype(np.int64)
    image: NDArray[np.uint8] = table[places]
    return image
