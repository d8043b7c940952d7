"""Keypoints of an image: from files, found by OpenCV's SIFT, or on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from gate_lightning.errors import ConfigError, DataError
from gate_lightning.utils.checks import check_choice, whole_number
from gate_lightning.utils.text import lines_of, read_text

__all__ = ["KeypointRule", "read_keypoints"]

RULES = ("sift", "grid", "files")
Points = NDArray[np.float64]


@dataclass(frozen=True)
class KeypointRule:
    """Rule by which the keypoints of an image are chosen.

    Args:
        name: ``sift`` (OpenCV's detector), ``grid`` (every ``spacing`` pixels), or ``files``.
        count: of ``sift``: the so many strongest ones.
        spacing: of ``grid``: pixels between two neighbours, vertically and horizontally.
        folder: of ``files``: where they are; a text of two columns x y for each image.

    Raises:
        ConfigError: unknown, out of range, or no folder.
    """

    name: str = "sift"
    count: int = 1000
    spacing: int = 8
    folder: str | None = None

    def __post_init__(self) -> None:
        check_choice(self.name, "dataset.keypoints.name", RULES)
        whole_number(self.count, "dataset.keypoints.count", 1)
        whole_number(self.spacing, "dataset.keypoints.spacing", 1)
        if self.name == "files":
            if self.folder is None:
                raise ConfigError("dataset.keypoints.name=files needs dataset.keypoints.folder=<folder of .kp files>")
            if not Path(self.folder).expanduser().is_dir():
                raise DataError(f"the folder of keypoints {self.folder} (= {Path(self.folder).resolve()}) is not there")
        elif self.folder is not None:
            raise ConfigError(
                f"dataset.keypoints.folder={self.folder} is read by dataset.keypoints.name=files only, and the name is "
                f"{self.name}"
            )

    def file(self, name: str) -> Path | None:
        """The file ``name`` of the folder, or None where keypoints are not from files."""
        return None if self.folder is None else Path(self.folder).expanduser() / name

    def __call__(self, image: NDArray[np.uint8], name: str) -> tuple[Points, NDArray[np.float32] | None]:
        """Keypoints of an image.

        Args:
            image: (H, W, 3) RGB.
            name: of its file of keypoints.

        Returns:
            (N, 2) x, y in pixels, and (N, 128) SIFT's descriptors of them or None.

        Raises:
            DataError: see `read_keypoints`.
        """
        if self.name == "sift":
            return _sift(image, self.count)
        height, width = image.shape[:2]
        if self.name == "files":
            path = self.file(name)
            assert path is not None
            return read_keypoints(path, (height, width)), None
        y, x = (np.arange((side - 1) % self.spacing // 2, side, self.spacing, dtype=float) for side in (height, width))
        return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2), None


def _sift(image: NDArray[np.uint8], count: int) -> tuple[Points, NDArray[np.float32]]:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    found, descriptors = cv2.SIFT.create(nfeatures=count).detectAndCompute(grey, None)
    if not found:
        return np.zeros((0, 2)), np.zeros((0, 128), np.float32)
    return np.array([one.pt for one in found], dtype=np.float64), np.asarray(descriptors, dtype=np.float32)


def read_keypoints(path: Path, size: tuple[int, int]) -> Points:
    """Keypoints x, y (N, 2) of a text file with two columns, of an image of ``size`` (H, W).

    Raises:
        DataError: the file is missing, a line is no pair of numbers, or points lie outside the image by more than a
            pixel: it is the file of another image.
    """
    rows = []
    for number, line in enumerate(lines_of(read_text(path)), start=1):
        cells = line.split("#")[0].split()
        try:
            if cells:
                x, y = map(float, cells)
                rows.append((x, y))
        except ValueError:
            raise DataError(f"{path}, line {number}: {line.strip()[:40]!r}; expected two numbers, x y") from None
    points = np.array(rows, dtype=np.float64).reshape(-1, 2)
    last = np.array([size[1], size[0]]) - 1
    outside = ~((points >= -1) & (points <= last + 1)).all(axis=1)
    if outside.any():
        x, y = points[outside][0]
        raise DataError(
            f"{path}: {outside.sum()} of {len(points)} keypoints lie outside the image of {size[1]}×{size[0]} pixels "
            f"(width × height), the first at ({x:g}, {y:g}); it is the file of another image, or of another size of it"
        )
    return points
