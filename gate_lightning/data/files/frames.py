"""Frames of a video, read one after the other: files of a folder, or a video file."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gate_lightning.data.files.images import IMAGE_SUFFIXES, image_size, read_image
from gate_lightning.data.files.listing import list_files
from gate_lightning.errors import DataError

__all__ = ["Frames", "natural_order", "open_frames"]

#: an image format that can hold a video
_MOVING = (".gif",)


class Frames(ABC):
    """Frames of a video in their order, of one size; none is kept.

    Attributes:
        path: folder or video file.
        rate: frames a second, or None where nothing tells.
    """

    rate: float | None = None

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.read(index) for index in range(len(self)))

    @cached_property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(height, width) of all frames, those of the first one."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Name of frame ``index`` without suffix, for files that belong to it."""

    @abstractmethod
    def place(self, index: int) -> str:
        """Place of frame ``index``, for messages."""

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Frame ``index``, uint8 (H, W, 3) RGB; in order it costs least.

        Raises:
            DataError: it does not decode, or has another size than the first one.
        """

    def check_sizes(self) -> None:
        """Check what can be told of all frames without decoding them.

        Raises:
            DataError: files of other sizes than the first one, or that are no images.
        """
        self._require_size(self.size, 0)

    @cached_property
    @abstractmethod
    def _count(self) -> int:
        """Number of frames."""

    def _require_size(self, found: tuple[int, ...], index: int) -> None:
        if found != self.size:
            raise DataError(
                f"{self.place(index)} has {found[1]}×{found[0]} pixels (width × height), {self.place(0)} "
                f"{self.size[1]}×{self.size[0]}; the frames of a video have one size"
            )


class _Folder(Frames):
    """Image files of a folder, in natural order."""

    def __init__(self, path: Path, files: tuple[Path, ...]) -> None:
        super().__init__(path)
        self.files = files

    @cached_property
    def _count(self) -> int:
        return len(self.files)

    @cached_property
    def size(self) -> tuple[int, int]:
        return image_size(self.files[0])

    def name(self, index: int) -> str:
        return self.files[index].stem

    def place(self, index: int) -> str:
        return str(self.files[index])

    def read(self, index: int) -> np.ndarray:
        image = read_image(self.files[index])
        self._require_size(image.shape[:2], index)
        return image

    def check_sizes(self) -> None:
        for index, file in enumerate(self.files):
            self._require_size(image_size(file), index)


class _VideoFile(Frames):
    """Frames that OpenCV decodes, one after the other: places that a container jumps to are not exact."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._capture: Any = None
        self._next = 0
        opened = self._opened()
        rate = float(opened.get(cv2.CAP_PROP_FPS))
        self.rate = rate if 0 < rate < 1000 else None
        self.declared = int(opened.get(cv2.CAP_PROP_FRAME_COUNT))
        _ = self.size  # a file that does not decode is refused here

    @cached_property
    def size(self) -> tuple[int, int]:
        capture = self._opened()
        decoded, image = capture.read()
        if not decoded:
            raise DataError(
                f"{self.path} does not decode: OpenCV reads no frame of it; convert it to a common format "
                "(ffmpeg -i <file> frames/%05d.png), or replace a damaged file"
            )
        return image.shape[0], image.shape[1]

    @cached_property
    def _count(self) -> int:
        """Frames that decode: what a container declares is an estimate."""
        capture, count = self._opened(), 0
        while capture.grab():
            count += 1
        if count < self.declared - 1:  # durations are rounded to one frame more or less
            raise self._broken(count)
        return count

    def name(self, index: int) -> str:
        return f"{index:05d}"

    def place(self, index: int) -> str:
        return f"frame {index} of {self.path}"

    def read(self, index: int) -> np.ndarray:
        if self._capture is None or index < self._next:
            self._capture, self._next = self._opened(), 0
        while self._next < index and self._capture.grab():
            self._next += 1
        decoded, image = self._capture.read() if self._next == index else (False, None)
        if image is None or not decoded:
            self._capture = None
            raise self._broken(index)
        self._next = index + 1
        self._require_size(image.shape[:2], index)
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def __iter__(self) -> Iterator[np.ndarray]:
        # without counting, which decodes all of them once
        capture, index = self._opened(), 0
        while True:
            decoded, image = capture.read()
            if not decoded:
                break
            self._require_size(image.shape[:2], index)
            yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            index += 1
        if index < self.declared - 1:
            raise self._broken(index)

    def _broken(self, index: int) -> DataError:
        return DataError(
            f"{self.place(index)} does not decode (the file declares {self.declared}); it is damaged or cut off: "
            "replace it, or cut it before that frame"
        )

    def _opened(self) -> Any:
        return cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_capture": None, "_next": 0}


def open_frames(path: Path) -> Frames:
    """Frames of a video: the images of a folder (of itself, not of folders in it) in natural order, or a video file.

    Raises:
        DataError: there is nothing, no image in the folder, two images of one name, a single image in place of a
            video, or a video that does not decode.
    """
    if path.is_dir():
        listing = list_files(path, ("*",))
        if not listing.files:
            raise DataError(f"{path} has no images; expected the frames of a video, {', '.join(IMAGE_SUFFIXES)}")
        listing.say()
        files = tuple(sorted(listing.files, key=natural_order))
        names: dict[str, Path] = {}
        for file in files:
            if names.setdefault(file.stem, file) != file:
                raise DataError(f"{names[file.stem]} and {file.name} are one frame twice; keep one of them")
        return _Folder(path, files)
    if not path.is_file():
        raise DataError(f"{path} does not exist; expected a folder of frames or a video file")
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES and suffix not in _MOVING:
        raise DataError(f"{path} is one image; give the folder of the frames, or a video file")
    return _VideoFile(path)


def natural_order(path: Path) -> tuple[Any, ...]:
    """Key that sorts files by name with numbers as numbers: frame2 comes before frame10."""
    parts = re.split(r"(\d+)", path.name)
    return tuple((int(part), part) if index % 2 else part for index, part in enumerate(parts))
