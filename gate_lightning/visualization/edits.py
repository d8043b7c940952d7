"""Edits laid over images: an RGBA image through a warp, and figures of where it went."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from gate_lightning.visualization.matches import PLAIN, RIGHT, WRONG

__all__ = ["edited", "marked"]


def edited(
    image: NDArray[np.uint8], edit: NDArray[np.uint8], sources: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """An image with an edit laid over it.

    Args:
        image: (H, W, 3).
        edit: (h, w, 4) RGBA.
        sources: (H, W, 2) place x, y in the edit of every pixel of the image; None where both have one size, for the
            edit as it is.

    Returns:
        (H, W, 3) uint8.
    """
    alpha = edit[..., 3:].astype(np.float32) / 255.0
    layer = np.concatenate([edit[..., :3] * alpha, alpha], axis=-1)  # premultiplied: what is transparent has no colour
    if sources is not None:
        layer = cv2.remap(layer, sources, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    found = layer[..., :3] + (1.0 - layer[..., 3:]) * image
    return np.rint(found).clip(0, 255).astype(np.uint8)


def marked(
    image: NDArray[np.uint8],
    outline: NDArray[np.floating] | None,
    matches: NDArray[np.floating],
    inliers: NDArray[np.bool_],
) -> NDArray[np.uint8]:
    """An image with the border of an edit (blue) and the matches it was carried by.

    Args:
        image: (H, W, 3).
        outline: (K, 2) x, y, going round; None for none.
        matches: (M, 2) x, y.
        inliers: (M,) green; red are the others.
    """
    canvas = np.ascontiguousarray(image.copy())
    radius = max(1, round(max(image.shape[:2]) / 300))
    for right, colour in ((False, WRONG), (True, RIGHT)):
        for x, y in matches[inliers == right]:
            cv2.circle(canvas, (round(float(x)), round(float(y))), radius, colour, -1, cv2.LINE_AA)
    if outline is not None:
        shown = np.rint(outline.clip(-(2**14), 2**14)).astype(np.int32)
        cv2.polylines(canvas, [shown], True, PLAIN, radius + 1, cv2.LINE_AA)
    return canvas
