"""``dataset=image_folder``: images in a folder for each class.

root/{train,val,test}/<class>/**/<name>.jpg     images of any size; the folders of train name the classes
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gate_lightning.data.card import ClassLabels, DatasetCard, check_classes, gate_branches
from gate_lightning.data.classification.base import (
    ClassificationDataModule,
    ClassifiedSample,
    ClassifiedSource,
    ClassifiedSubset,
    absent,
    count_images,
    held_out,
)
from gate_lightning.data.files.checks import LEVELS, check_images
from gate_lightning.data.files.images import Header, image_header, read_image
from gate_lightning.data.files.listing import describe_left_out, list_files
from gate_lightning.data.files.names import same_name
from gate_lightning.data.files.pairing import require_root
from gate_lightning.data.files.palette import default_palette
from gate_lightning.data.files.report import DataReport, SplitReport
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.utils.checks import check_choice, number

__all__ = ["ImageFolderDataModule", "ImageFolderSource"]

log = logging.getLogger(__name__)

LAYOUT = "{train,val[,test]}/<class>/<name>.jpg"
#: bytes at the beginning of two files of one size that are compared before the whole files are
_HEAD = 4096


@dataclass(frozen=True)
class ClassFiles:
    """Images of a split.

    Attributes:
        split: its name.
        images: files and class indices, sorted by class and path.
        left_out: files of other kinds, or outside of the folders.
    """

    split: str
    images: tuple[tuple[Path, int], ...]
    left_out: tuple[Path, ...]


class ImageFolderSource:
    """Source of image files with a class each.

    Args:
        root: folder that sample ids are relative to.
        images: files and class indices.
    """

    def __init__(self, root: Path, images: Sequence[tuple[Path, int]]) -> None:
        self.root, self.images = root, tuple(images)
        self._headers: dict[int, Header] = {}

    def __len__(self) -> int:
        return len(self.images)

    def sample_id(self, index: int) -> str:
        """Path of image ``index`` relative to the root."""
        return self.images[index][0].relative_to(self.root).as_posix()

    def label(self, index: int) -> int:
        """Class index of image ``index``."""
        return self.images[index][1]

    def load(self, index: int) -> ClassifiedSample:
        """Image ``index`` as it is in its file.

        Raises:
            DataError: a file that does not decode.
        """
        path, label = self.images[index]
        return ClassifiedSample(self.sample_id(index), read_image(path), label=label)

    def sizes(self, index: int) -> tuple[tuple[int, int], ...]:
        """((height, width),) of image ``index``."""
        return (self._header(index).size,)

    @property
    def orientations(self) -> Mapping[str, int]:
        """EXIF orientation of the images that have one, by sample id."""
        return {self.sample_id(i): self._header(i).turn for i in range(len(self)) if self._header(i).turn != 1}

    def _header(self, index: int) -> Header:
        if index not in self._headers:
            self._headers[index] = image_header(self.images[index][0])
        return self._headers[index]


class ImageFolderDataModule(ClassificationDataModule):
    """Images in a folder for each class (see the head of this module); the middle square is shown.

    Args:
        root: the folder.
        held_out: share of the training images that are validated on where there is no folder ``val``, in (0, 1).
        split_seed: decides which ones.
        check_level: sanity check at start: ``quick`` or ``full``.
        prompt_simple, prompt_fine: prompts of the card.
        size, loading: see `ClassificationDataModule`.

    Raises:
        DataError: the folder is missing, has no classes or one only.
        ConfigError: a setting out of range.
    """

    def __init__(
        self,
        root: str,
        held_out: float = 0.1,
        split_seed: int = 0,
        check_level: str = "quick",
        prompt_simple: str = "a photo",
        prompt_fine: str = "a photo",
        size: int = 64,
        **loading: Any,
    ) -> None:
        super().__init__(size, **loading)
        check_choice(check_level, "dataset.check_level", LEVELS)
        self.held_out, self.split_seed = number(held_out, "dataset.held_out", 0.0, 1.0), split_seed
        self.check_level, self.root = check_level, require_root(root, LAYOUT, "train")
        names = _class_folders(self.root / "train")
        if len(names) < 2:
            raise DataError(
                f"{self.root / 'train'} holds {len(names)} folder(s) of classes {list(names)}; expected a folder for "
                f"each of two classes or more ({LAYOUT}): of one class nothing can be learned or measured"
            )
        try:
            classes = check_classes(names, self.root / "train")
        except ConfigError as error:
            raise DataError(str(error)) from error
        self.labels = ClassLabels(classes, default_palette(len(classes)))
        self.card = DatasetCard(self.root.resolve().name, prompt_simple, prompt_fine, gate_branches())

    @property
    def has_test(self) -> bool:
        """True if there is a folder ``test``."""
        return (self.root / "test").is_dir()

    @cached_property
    def files(self) -> dict[str, ClassFiles]:
        """Images of the splits that have a folder.

        Raises:
            DataError: a split without images, a class of which there is no training image, or one that ``train`` does
                not have.
        """
        there = [split for split in ("train", "val", "test") if (self.root / split).is_dir()]
        return {split: _scan(self.root / split, self.labels.classes) for split in there}

    def make_source(self, split: str) -> ClassifiedSource:
        """The checked images of a split.

        Raises:
            DataError: names the first broken file, or class, of the split.
        """
        folder = split if split in self.files else "train"
        report = self._checked(folder, self.check_level)
        for warning in report.warnings:
            log.warning("%s", warning)
        DataReport(self.card.name, (), (report,)).raise_if_broken()
        if split == "train":
            for warning in self.doubles:
                log.warning("%s", warning)
        source = ImageFolderSource(self.root, self.files[folder].images)
        if "val" in self.files or split == "test":
            return source
        kept, out = self._divided(len(source))
        if split == "val":
            log.info("%s is not there: %d of the training images are held out for it", self.root / "val", len(out))
        return ClassifiedSubset(source, kept if split == "train" else out)

    @cached_property
    def doubles(self) -> tuple[str, ...]:
        """Sentence about images that are in two splits; () if there are none."""
        found = _doubles(self.files.values())
        if not found:
            return ()
        (one, other), count = found[0], len(found)
        return (
            f"{count} image(s) of one split are in another one, too, so what is measured was trained on: the first is "
            f"{one.relative_to(self.root)}, the same as {other.relative_to(self.root)}",
        )

    def check(self, level: str = "full") -> DataReport:
        """Check all splits without a run; errors are in the report, not raised.

        Args:
            level: ``quick`` or ``full``.

        Raises:
            DataError: a split without images, or classes that do not fit.
        """
        reports = [self._checked(split, level) for split in self.files]
        reports[0] = replace(reports[0], warnings=(*reports[0].warnings, *self.doubles))
        return DataReport(str(self.root), self.labels.classes, tuple(reports), of_images=True)

    def _divided(self, count: int) -> tuple[list[int], list[int]]:
        """Training images that stay, and those that are validated on."""
        out = round(self.held_out * count)
        if not 0 < out < count:
            raise ConfigError(
                f"dataset.held_out={self.held_out} of {count} training images are {out}; validation needs one or more, "
                f"and training, too: give another share, or a folder {self.root / 'val'}"
            )
        return held_out(range(count), out, "image_folder", self.split_seed)

    def _checked(self, split: str, level: str) -> SplitReport:
        files, classes = self.files[split], self.labels.classes
        report = check_images(split, [path for path, _ in files.images], level, self.eval_resize.too_long)
        counts = count_images([label for _, label in files.images], len(classes))
        left = describe_left_out(self.root / split, files.left_out)
        told = (*report.warnings, *([left] if left else []), *absent(split, counts, classes))
        return replace(report, pixels=counts, warnings=told)


def _class_folders(split: Path) -> tuple[str, ...]:
    """Names of the folders in the folder of a split, sorted; hidden ones do not count."""
    return tuple(sorted(path.name for path in split.iterdir() if path.is_dir() and path.name[0] != "."))


def _scan(folder: Path, classes: Sequence[str]) -> ClassFiles:
    """See `ImageFolderDataModule.files`."""
    names, split = _class_folders(folder), folder.name
    places = {same_name(name): index for index, name in enumerate(classes)}
    unknown = [name for name in names if same_name(name.strip()) not in places]
    if unknown:
        raise DataError(
            f"{folder / unknown[0]}: {folder.parent / 'train'} has no class of that name ({len(unknown)} such folders "
            f"in {split}); its classes are {', '.join(classes[:8])}{' …' if len(classes) > 8 else ''}"
        )
    images: list[tuple[Path, int]] = []
    left_out = [path for path in folder.iterdir() if path.is_file() and path.name[0] != "."]
    for name in names:
        listing = list_files(folder / name)
        if not listing.files and split == "train":
            left = describe_left_out(folder / name, listing.left_out)
            raise DataError(f"{folder / name}: no image of this class; {left or 'add some, or remove the folder'}")
        images += [(path, places[same_name(name.strip())]) for path in listing.files]
        left_out += listing.left_out
    if not images:
        left = describe_left_out(folder, left_out)
        raise DataError(f"{folder} holds no images in folders of classes; expected {LAYOUT}. {left}".rstrip(". "))
    return ClassFiles(split, tuple(images), tuple(left_out))


def _doubles(splits: Iterable[ClassFiles]) -> list[tuple[Path, Path]]:
    """Files of the same content in two splits: the later one, and one before it."""
    found: list[tuple[Path, Path]] = []
    every = [(files.split, path) for files in splits for path, _ in files.images]
    for alike in _groups(every, lambda path: path.stat().st_size):
        for near in _groups(alike, lambda path: _digest(path, _HEAD)):
            for same in _groups(near, _digest):
                first = same[0]
                found += [(path, first[1]) for split, path in same[1:] if split != first[0]]
    return found


def _groups(files: Sequence[tuple[str, Path]], key: Callable[[Path], Any]) -> list[list[tuple[str, Path]]]:
    """Files of equal key, where they are of several splits."""
    groups: dict[Any, list[tuple[str, Path]]] = defaultdict(list)
    for split, path in files:
        groups[key(path)].append((split, path))
    return [group for group in groups.values() if len({split for split, _ in group}) > 1]


def _digest(path: Path, length: int = -1) -> bytes:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(length)).digest()
