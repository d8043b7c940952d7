"""Frames with the objects or points that were carried through a video."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from gate_lightning.visualization.grid import image_grid
from gate_lightning.visualization.palette import Palette, palette_array

__all__ = ["LONGEST", "draw_points", "shrunk", "strip", "tinted"]

#: pixels of the longer side of frames in overlays
LONGEST = 480
_LINE = (255, 255, 255)


def shrunk(image: NDArray[np.uint8], longest: int = LONGEST) -> NDArray[np.uint8]:
    """A frame (H, W, 3), or its mask (H, W), at most ``longest`` pixels long; small ones grow by whole factors."""
    height, width = image.shape[:2]
    if max(height, width) <= longest:
        factor = max(longest // max(height, width), 1)
        return image.repeat(factor, axis=0).repeat(factor, axis=1)
    scale = longest / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    method = cv2.INTER_AREA if image.ndim == 3 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(image, size, interpolation=method), dtype=np.uint8)


def tinted(image: NDArray[np.uint8], mask: NDArray[np.uint8], palette: Palette) -> NDArray[np.uint8]:
    """A frame (H, W, 3) with its objects half in their colours, and a white outline; the background is as it was."""
    colours = palette_array(palette)
    half = (image.astype(np.uint16) + colours[mask]) // 2
    shown = np.where((mask > 0)[..., None], half, image).astype(np.uint8)
    inner = cv2.erode(mask, np.ones((3, 3), np.uint8))
    shown[(mask != inner) & (mask > 0)] = _LINE
    return shown


def draw_points(
    image: NDArray[np.uint8], points: NDArray[np.floating], palette: Palette, scale: float = 1.0
) -> NDArray[np.uint8]:
    """A frame with points (K, 2) x, y in their colours; NaN for one that is not there.

    Args:
        image: (H, W, 3).
        points: in pixels of the file.
        palette: K colours.
        scale: pixels of ``image`` per pixel of the file.
    """
    shown = np.ascontiguousarray(image)
    radius = max(round(max(image.shape[:2]) / 90), 2)
    for (x, y), colour in zip(points, palette_array(palette).tolist(), strict=True):
        if np.isfinite([x, y]).all():
            place = (round((x + 0.5) * scale - 0.5), round((y + 0.5) * scale - 0.5))
            cv2.circle(shown, place, radius + 1, _LINE, -1, cv2.LINE_AA)
            cv2.circle(shown, place, radius, colour, -1, cv2.LINE_AA)
    return shown


def strip(
    rows: Sequence[Sequence[NDArray[np.uint8]]], titles: Sequence[str], columns: Sequence[str]
) -> NDArray[np.uint8]:
    """Rows of frames of one video side by side; each row has a title below it."""
    return image_grid(rows, columns, titles, tile_height=130, smooth=False)
