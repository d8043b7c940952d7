"""``dataset=folder``: one's own pictures and masks (or any public data set brought into this layout).

root/images/{train,val[,test]}/**/<name>.jpg      pictures of any size
root/masks/{train,val[,test]}/**/<name>.png       index PNGs, or RGB with a palette file
root/classes.txt                                  one name a line, the first one is value 0
root/palette.txt                                  optional: `r g b name` a line
root/captions/{split}/**/<name>.txt               optional, or captions.txt: `split/path<TAB>caption` a line
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gate_lightning.data.captions import derangement, read_captions
from gate_lightning.data.checks import LEVELS, DataReport, SplitReport, check_split
from gate_lightning.data.datamodule import SegmentationDataModule
from gate_lightning.data.folder_scan import Pair, SplitFiles, read_classes, require_root, scan_split
from gate_lightning.data.labels import LabelMap, MaskReader
from gate_lightning.data.palette import VOID_NAMES, Palette, default_palette, read_palette
from gate_lightning.data.pictures import picture_size, read_image
from gate_lightning.data.protocol import DatasetProtocol, check_classes, gate_recipe
from gate_lightning.data.samples import Sample, Transform
from gate_lightning.data.transforms import (
    CenterCrop,
    Compose,
    Pad,
    PhotometricDistortion,
    RandomCrop,
    RandomFlip,
    RandomResize,
    Resize,
)
from gate_lightning.errors import ConfigError, DataError

__all__ = ["FolderDataModule", "FolderSource", "read_image"]

log = logging.getLogger(__name__)

CAPTIONS = ("fine", "coarse", "shuffled")
#: decoded pictures of a split are kept in RAM below this
RAM_BYTES = 512 * 2**20


class FolderSource:
    """A split of a folder.

    Args:
        pairs: pictures and masks.
        reader: of the masks.
        captions: one per pair, or None.
        ram_bytes: keep decoded pictures if all of them together need at most this.
    """

    def __init__(
        self, pairs: Sequence[Pair], reader: MaskReader, captions: Sequence[str] | None = None, ram_bytes: int = 0
    ) -> None:
        self.pairs, self.reader, self.captions = tuple(pairs), reader, captions
        self._sizes = [picture_size(pair.image) for pair in self.pairs]
        self._keep = sum(height * width for height, width in self._sizes) * 4 <= ram_bytes
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def sample_id(self, index: int) -> str:
        """Path of the picture relative to the root."""
        return self.pairs[index].sample_id

    def load(self, index: int) -> Sample:
        """The picture and its mask as they are in the files.

        Raises:
            DataError: a file that does not decode, or an unknown label.
        """
        pair = self.pairs[index]
        arrays = self._kept.get(index)
        if arrays is None:
            arrays = read_image(pair.image), self.reader.read(pair.mask)
            if self._keep:
                self._kept[index] = arrays
        caption = None if self.captions is None else self.captions[index]
        return Sample(pair.sample_id, *arrays, caption)

    def sizes(self, index: int) -> tuple[tuple[int, int], tuple[int, int] | None]:
        """(height, width) of the picture and of its mask, which the check has found equal."""
        return self._sizes[index], self._sizes[index]


class FolderDataModule(SegmentationDataModule):
    """Pictures and masks in a folder (see the head of this module for its layout).

    Training pictures: shorter side to ``resize_short`` times a random factor, class-balanced crop, flip, photometric
    distortion, padding that is void. Evaluation: shorter side to ``resize_short``, mask at the size of its file.

    Args:
        root: the folder.
        ignore_index: value in mask files that means unlabelled, or None; 255 inside the program.
        reduce_zero_label: 0 in the files is unlabelled and classes start at 1 (ADE20K).
        label_map: file value → class index, for files that number otherwise.
        classes: file of class names; None for ``classes.txt`` in the root, or the palette file's names.
        palette: palette file; None for ``palette.txt`` in the root if there is one.
        captions: ``fine`` (the files, if there are any), ``coarse`` (``prompt_simple``) or ``shuffled`` (the control:
            every picture gets another one's).
        crop_size: side of training pictures in pixels, the backbone's native size as a rule.
        resize_short: length of the shorter side before cropping and in evaluation; None for ``crop_size``, 0 to keep
            pictures as they are.
        augment: off: shorter side resized and the middle cut out, the same in every epoch.
        ratio_range, cat_max_ratio, flip, photometric: see `gate_lightning.data.transforms`.
        prompt_simple, prompt_fine: prompts of the protocol; None names the classes.
        check_level: sanity check at start: ``quick`` or ``full``.
        loading: `SegmentationDataModule`'s arguments.

    Raises:
        DataError: the folder or its class list is missing or contradicts itself.
        ConfigError: a setting out of range.
    """

    def __init__(
        self,
        root: str,
        ignore_index: int | None = 255,
        reduce_zero_label: bool = False,
        label_map: Mapping[int, int] | None = None,
        classes: str | None = None,
        palette: str | None = None,
        captions: str = "fine",
        crop_size: int = 64,
        resize_short: int | None = None,
        augment: bool = True,
        ratio_range: Sequence[float] = (0.5, 2.0),
        cat_max_ratio: float = 0.75,
        flip: float = 0.5,
        photometric: bool = True,
        prompt_simple: str = "a photo",
        prompt_fine: str | None = None,
        check_level: str = "quick",
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        if captions not in CAPTIONS:
            raise ConfigError(f"captions={captions}: a folder knows {', '.join(CAPTIONS)}")
        if check_level not in LEVELS:
            raise ConfigError(f"dataset.check_level is {check_level!r}; expected {' or '.join(LEVELS)}")
        self.root, self.captions, self.check_level = require_root(root), captions, check_level
        names, colours, found = _classes_and_colours(self.root, classes, palette)
        self.reader = MaskReader(names, LabelMap(len(names), ignore_index, reduce_zero_label, label_map or {}), found)
        fine = prompt_fine or "a photo of " + ", ".join(
            name.replace("_", " ") for name in names if name != "background"
        )
        self.protocol = DatasetProtocol(
            name=self.root.resolve().name,
            classes=names,
            palette=colours,
            prompt_simple=prompt_simple,
            prompt_fine=fine,
            recipe=gate_recipe(),
        )
        short = crop_size if resize_short is None else resize_short
        self.crop_size, self._eval_resize, self.random_views = crop_size, Resize(short), augment
        if augment:
            steps: list[Transform] = [RandomResize(short, ratio_range), RandomCrop(crop_size, cat_max_ratio)]
            steps += [RandomFlip(flip), *([PhotometricDistortion()] if photometric else [])]
        else:
            steps = [Resize(short, with_mask=True), CenterCrop(crop_size)]
        self._train_transform = Compose([*steps, Pad(crop_size)])

    @property
    def train_transform(self) -> Transform:
        """See the class."""
        return self._train_transform

    @property
    def eval_resize(self) -> Resize:
        """See the class."""
        return self._eval_resize

    @property
    def has_test(self) -> bool:
        """Whether ``images/test`` and ``masks/test`` exist."""
        return (self.root / "images/test").is_dir() and (self.root / "masks/test").is_dir()

    def make_source(self, split: str) -> FolderSource:
        """The checked pictures of a split.

        Raises:
            DataError: names the first broken file of the split.
        """
        files = scan_split(self.root, split)
        report = DataReport(self.protocol.name, self.protocol.classes, (self._check(files, self.check_level),))
        for warning in report.warnings:
            log.warning("%s", warning)
        report.raise_if_broken()
        return FolderSource(files.pairs, self.reader, self._captions_of(files), RAM_BYTES)

    def check(self, level: str = "full") -> DataReport:
        """Look at all splits without a run; errors are in the report, not raised.

        Args:
            level: ``quick`` or ``full``.

        Raises:
            DataError: a split's folder is missing.
        """
        splits = ("train", "val", "test")[: 3 if self.has_test else 2]
        reports = tuple(self._check(scan_split(self.root, split), level) for split in splits)
        return DataReport(str(self.root), self.protocol.classes, reports)

    def _check(self, files: SplitFiles, level: str) -> SplitReport:
        report = check_split(files, self.reader, level, self._too_small)
        try:
            self._captions_of(files)
        except DataError as error:
            return SplitReport(**{**vars(report), "errors": (*report.errors, str(error))})
        return report

    def _too_small(self, height: int, width: int) -> str | None:
        resized = self._eval_resize.size(height, width)
        if min(resized) >= self.crop_size:
            return None
        return (
            f"{width}×{height} pixels are too small for crops of {self.crop_size}; "
            f"use dataset.resize_short={self.crop_size} or larger, or leave it at null"
        )

    def _captions_of(self, files: SplitFiles) -> list[str] | None:
        if self.captions == "coarse":
            return [self.protocol.prompt_simple] * len(files.pairs)
        found = read_captions(self.root, files.split, [pair.name for pair in files.pairs])
        if self.captions == "fine":
            return found
        if found is None:
            raise DataError(
                f"captions=shuffled, but {self.root} has no captions to shuffle; expected captions/{files.split}/"
                "<name>.txt or captions.txt"
            )
        return [found[index] for index in derangement(len(found), self.seed, files.split)]


def _classes_and_colours(
    root: Path, classes: str | None, palette: str | None
) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...], Palette | None]:
    """Names, colours, and the palette file's content if there is one."""
    class_file = Path(classes).expanduser() if classes else root / "classes.txt"
    colour_file = Path(palette).expanduser() if palette else root / "palette.txt"
    colours = read_palette(colour_file) if palette or colour_file.is_file() else None
    if colours is not None and classes is None and not class_file.is_file():
        named = [name for name in dict.fromkeys(colours.names) if name.lower() not in VOID_NAMES]
        names = check_classes(named, colour_file)
    else:
        names = read_classes(class_file)
    shown = default_palette(len(names)) if colours is None else colours.of(names, colour_file)
    return names, shown, colours
