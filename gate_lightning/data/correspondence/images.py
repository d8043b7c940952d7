"""Images of a data set of pairs, each of them once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gate_lightning.data.files.images import Header, image_header, read_image
from gate_lightning.data.samples import Sample
from gate_lightning.errors import DataError

__all__ = ["ImageTable", "ImagesOfPairs", "PairImage"]


@dataclass(frozen=True)
class PairImage:
    """An image that pairs refer to.

    Attributes:
        path: its file.
        category: what it shows, in the words of prompts; "" where nothing is known.
        size: (H, W) that its annotation says, or None where it says nothing.
        view: cut and resized part of the file that the data set means, as a function of uint8 (H, W, 3), or None for
            the whole file. ``size`` is then that of the part.
        drawn: its pixels, uint8 (H, W, 3), where it is no file.
        caption: description, or None.
    """

    path: Path
    category: str = ""
    size: tuple[int, int] | None = None
    view: Callable[[np.ndarray], np.ndarray] | None = None
    drawn: np.ndarray | None = None
    caption: str | None = None

    @property
    def is_whole_file(self) -> bool:
        """True if its pixels are those of a file."""
        return self.view is None and self.drawn is None

    def pixels(self) -> np.ndarray:
        """uint8 (H, W, 3).

        Raises:
            DataError: a file that does not decode.
        """
        if self.drawn is not None:
            return self.drawn
        return read_image(self.path) if self.view is None else self.view(read_image(self.path))


class ImagesOfPairs:
    """Images of pairs as a `SampleSource`.

    Args:
        images: sample id → image, in the order of the indices.
    """

    def __init__(self, images: Mapping[str, PairImage]) -> None:
        self._ids, self._images = tuple(images), dict(images)
        self._headers: dict[str, Header] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def sample_id(self, index: int) -> str:
        """Path of image ``index`` relative to the root."""
        return self._ids[index]

    def load(self, index: int) -> Sample:
        """Image ``index``, not resized.

        Raises:
            DataError: a file that does not decode.
        """
        name = self._ids[index]
        image = self._images[name]
        return Sample(name, image.pixels(), image.caption, category=image.category or None)

    def sizes(self, index: int) -> tuple[tuple[int, int], ...]:
        """((height, width),) of image ``index``."""
        image = self._images[self._ids[index]]
        if image.size is not None and not image.is_whole_file:
            return (image.size,)
        return (self._header(self._ids[index]).size,)

    @property
    def orientations(self) -> Mapping[str, int]:
        """EXIF orientation of the images that have one, by sample id."""
        files = [name for name in self._ids if self._images[name].drawn is None]
        return {name: self._header(name).turn for name in files if self._header(name).turn != 1}

    def _header(self, name: str) -> Header:
        if name not in self._headers:
            self._headers[name] = image_header(self._images[name].path)
        return self._headers[name]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_headers": {}}  # processes of the loader need none


class ImageTable:
    """Images below a root, collected while the pairs of a data set are read.

    Args:
        root: folder that sample ids are relative to.

    Attributes:
        images: sample id → image, of those that are there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: dict[str, PairImage] = {}
        self._sizes: dict[str, tuple[int, int] | None] = {}
        self._missing: list[Path] = []
        self._broken: list[str] = []

    def size(self, name: str, category: str) -> tuple[int, int] | None:
        """(H, W) of an image's file, which is added if it is new; None where it cannot be read.

        Raises:
            DataError: the image was added with another category.
        """
        path = self.root / name
        if name not in self._sizes:
            self._sizes[name] = self._read(path)
            if self._sizes[name] is not None:
                self.images[name] = PairImage(path, category)
        elif name in self.images and self.images[name].category != category:
            raise DataError(f"{path} shows {category!r} in one pair and {self.images[name].category!r} in another")
        return self._sizes[name]

    @property
    def errors(self) -> tuple[str, ...]:
        """Sentences about images that cannot be read, and about those that are missing."""
        count, total = len(self._missing), len(self._sizes)
        missing = [f"{count} of {total} images are missing, the first is {self._missing[0]}"] if count else []
        return (*missing, *self._broken)

    def _read(self, path: Path) -> tuple[int, int] | None:
        if not path.is_file():
            self._missing.append(path)
            return None
        try:
            return image_header(path).size
        except DataError as error:
            self._broken.append(str(error))
            return None
