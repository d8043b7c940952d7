"""Views of a plane with a known homography, in the layouts of data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

__all__ = ["HOMOGRAPHIES", "moved", "plane", "write_hpatches"]

#: of views 2 … 6, for images of 96 × 128 pixels
HOMOGRAPHIES = tuple(
    np.array([[1 - 0.02 * k, 0.03 * k, 2.0 * k], [-0.02 * k, 1 + 0.01 * k, -1.0 * k], [1e-4 * k, -5e-5 * k, 1.0]])
    for k in range(2, 7)
)


def plane(seed: int, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    """An image (H, W, 3) with structure at several scales."""
    rng = np.random.default_rng(seed)
    total = np.zeros((*size, 3))
    for cell in (4, 8, 16, 32):
        coarse = rng.uniform(0, 1, (-(-size[0] // cell) + 1, -(-size[1] // cell) + 1, 3))
        total += cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return np.clip(255 * (total - total.min()) / (total.max() - total.min()), 0, 255).astype(np.uint8)


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (N, 2) through a homography."""
    return cv2.perspectiveTransform(points[None].astype(np.float64), matrix)[0]


def write_hpatches(
    root: Path,
    names: Sequence[str] = ("v_wall", "i_room"),
    keypoints: Path | None = None,
    size: tuple[int, int] = (96, 128),
) -> Path:
    """Sequences in HPatches' layout; with ``keypoints``, .kp files of points that correspond exactly."""
    for number, name in enumerate(names):
        folder = root / name
        folder.mkdir(parents=True)
        first = plane(number, size)
        grid = np.stack(np.meshgrid(np.arange(12, size[1] - 30, 9), np.arange(20, size[0] - 12, 9)), axis=-1).reshape(
            -1, 2
        )
        for view, matrix in enumerate([np.eye(3), *HOMOGRAPHIES], start=1):
            used = np.eye(3) if name.startswith("i_") else matrix
            image = cv2.warpPerspective(first, used, (size[1], size[0]), borderMode=cv2.BORDER_REFLECT)
            cv2.imwrite(str(folder / f"{view}.ppm"), image[..., ::-1])
            if view > 1:
                np.savetxt(folder / f"H_1_{view}", used)
            if keypoints is not None:
                keypoints.mkdir(exist_ok=True)
                np.savetxt(keypoints / f"{name}-{view}.kp", moved(grid, used))
    return root
