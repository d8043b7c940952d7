"""``dataset=cifar10``: CIFAR-10 in its binary version.

root/data_batch_{1..5}.bin, test_batch.bin     10,000 images each, of 3,073 bytes: the class, then 32 × 32 of red, of
                                               green and of blue
root/batches.meta.txt                          10 class names, one a line
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gate_lightning.data.card import ClassLabels, DatasetCard, check_classes, gate_branches
from gate_lightning.data.classification.base import (
    ClassificationDataModule,
    ClassifiedSample,
    ClassifiedSubset,
    held_out,
)
from gate_lightning.data.files.palette import default_palette
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.text import lines_of, read_text

__all__ = ["CIFAR10DataModule", "CIFAR10Source"]

SIDE = 32
CLASSES = 10
#: bytes of an image and its class
RECORD = 1 + 3 * SIDE**2
#: images of a file
IMAGES = 10_000
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = ("test_batch.bin",)
META = "batches.meta.txt"
#: folder that the archive unpacks to
FOLDER = "cifar-10-batches-bin"
WHERE = (
    "get cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html (md5 "
    f"c32a1d4ab5d03f1284b67883e8d87530), unpack it, and give dataset.root=<…>/{FOLDER}"
)


class CIFAR10Source:
    """Source of the images of some of the files; they stay on the disk.

    Args:
        root: folder of the files.
        files: their names.

    Raises:
        DataError: a file is missing, cut off, of another size, or has a class beyond 9.
    """

    def __init__(self, root: Path, files: Sequence[str]) -> None:
        self.files = tuple(files)
        self._records = [_records(root / name) for name in files]

    def __len__(self) -> int:
        return IMAGES * len(self.files)

    def sample_id(self, index: int) -> str:
        """Name of the file without its suffix, and number in it."""
        return f"cifar10/{Path(self.files[index // IMAGES]).stem}/{index % IMAGES:04d}"

    def label(self, index: int) -> int:
        """Class index of image ``index``."""
        return int(self._record(index)[0])

    def load(self, index: int) -> ClassifiedSample:
        """Image ``index``, 32 × 32."""
        image = self._record(index)[1:].reshape(3, SIDE, SIDE).transpose(1, 2, 0)
        return ClassifiedSample(self.sample_id(index), np.ascontiguousarray(image), label=self.label(index))

    def sizes(self, index: int) -> tuple[tuple[int, int], ...]:
        """((height, width),) of image ``index``: 32 × 32 like all others."""
        return ((SIDE, SIDE),)

    def _record(self, index: int) -> np.ndarray:
        record: np.ndarray = self._records[index // IMAGES][index % IMAGES]
        return record


class CIFAR10DataModule(ClassificationDataModule):
    """CIFAR-10; images are enlarged to ``size``. Validation images are held out of the training ones.

    Args:
        root: folder of the files.
        val: training images that are held out.
        split_seed: decides which ones.
        train: training images used of those that stay, drawn by ``split_seed`` too; None for all.
        test: the first so many test images; None for all.
        prompt_simple, prompt_fine: prompts of the card.
        size, loading: see `ClassificationDataModule`.

    Raises:
        DataError: the folder is missing, or its class names are.
        ConfigError: a number out of range.
    """

    def __init__(
        self,
        root: str,
        val: int = 5000,
        split_seed: int = 0,
        train: int | None = None,
        test: int | None = None,
        prompt_simple: str = "a photo",
        prompt_fine: str = "a photo",
        size: int = 64,
        **loading: Any,
    ) -> None:
        super().__init__(size, **loading)
        every = IMAGES * len(TRAIN)
        self.val = whole_number(val, "dataset.val", 1, every - 1)
        self.split_seed = whole_number(split_seed, "dataset.split_seed")
        self.counts = {"train": train, "test": test}
        for split, most in (("train", every - val), ("test", IMAGES)):
            if self.counts[split] is not None:
                whole_number(self.counts[split], f"dataset.{split}", 1, most, optional="all")
        self.root = _root(root)
        self.labels = ClassLabels(_class_names(self.root / META), default_palette(CLASSES))
        self.card = DatasetCard(
            name="cifar10",
            prompt_simple=prompt_simple,
            prompt_fine=prompt_fine,
            branches=gate_branches(),
            citation="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
            licence="none stated",
        )

    def make_source(self, split: str) -> ClassifiedSubset:
        """The images of a split; of training and validation, in the order of the files."""
        count = self.counts.get(split)
        if split == "test":
            return ClassifiedSubset(CIFAR10Source(self.root, TEST), range(IMAGES if count is None else count))
        source = CIFAR10Source(self.root, TRAIN)
        kept, out = held_out(range(len(source)), self.val, "cifar10", self.split_seed)
        if split == "train" and count is not None:
            kept, _ = held_out(kept, len(kept) - count, "cifar10 train", self.split_seed)
        return ClassifiedSubset(source, kept if split == "train" else out)


def _root(root: str) -> Path:
    """The folder of the files: ``root``, or the one in it that the archive unpacks to."""
    folder = Path(root).expanduser()
    inside = folder / FOLDER
    if not (folder / META).is_file() and inside.is_dir():
        folder = inside
    if not folder.is_dir():
        kind = "is no folder" if folder.exists() else "does not exist"
        raise DataError(f"dataset.root {kind}: {folder} (= {folder.resolve()}); {WHERE}")
    pickled = [name for name in ("data_batch_1", "batches.meta", "data_batch_1.mat") if (folder / name).is_file()]
    if pickled and not (folder / TRAIN[0]).is_file():
        raise DataError(f"{folder} holds CIFAR-10 in its Python or Matlab version ({pickled[0]}); {WHERE}")
    return folder


def _class_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise DataError(f"{path}, the class names, does not exist; {WHERE}")
    names = lines_of(read_text(path).strip())
    if len(names) != CLASSES:
        raise DataError(f"{path} holds {len(names)} lines; expected {CLASSES} class names, one a line; {WHERE}")
    try:
        return check_classes(names, path)
    except ConfigError as error:
        raise DataError(str(error)) from error


def _records(path: Path) -> np.ndarray:
    """uint8 (images, 3073) of a file, which stays on the disk."""
    if not path.is_file():
        raise DataError(f"{path} does not exist; {WHERE}")
    size, expected = path.stat().st_size, IMAGES * RECORD
    if size != expected:
        cut = f": it is cut off in image {size // RECORD}" if size % RECORD and size < expected else ""
        raise DataError(
            f"{path} has {size} bytes{cut}; expected {expected} ({IMAGES} images of {RECORD} bytes); {WHERE}"
        )
    records: np.ndarray = np.memmap(path, np.uint8, "r").reshape(IMAGES, RECORD)
    wrong = np.flatnonzero(records[:, 0] >= CLASSES)
    if len(wrong):
        raise DataError(
            f"{path}: image {wrong[0]} has class {records[wrong[0], 0]} ({len(wrong)} such images); expected 0 to "
            f"{CLASSES - 1}. It is damaged or no CIFAR-10 (CIFAR-100 has two bytes for the class); {WHERE}"
        )
    return records
