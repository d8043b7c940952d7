"""``dataset=folder``: one's own images and masks (or any public data set brought into this layout).

root/images/{train,val[,test]}/**/<name>.jpg      images of any size
root/masks/{train,val[,test]}/**/<name>.png       index PNGs, or RGB with a palette file
root/classes.txt                                  one name a line, the first one is value 0
root/palette.txt                                  optional: `r g b name` a line
root/captions/{split}/**/<name>.txt               optional, or captions.txt: `split/path<TAB>caption` a line
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gate_lightning.data.card import ClassLabels, DatasetCard, check_classes, gate_branches
from gate_lightning.data.files.masks import LabelMap, MaskReader
from gate_lightning.data.files.pairing import SplitFiles, read_classes, require_root, scan_split
from gate_lightning.data.files.palette import IGNORED_NAMES, Palette, default_palette, read_palette
from gate_lightning.data.segmentation.image_files import FileDataModule
from gate_lightning.data.transforms.basic import Resize, training_transform

__all__ = ["FolderDataModule"]


class FolderDataModule(FileDataModule):
    """Images and masks in a folder (see the head of this module for its layout).

    Training images: shorter side to ``resize_short`` times a random factor, class-balanced crop, flip, photometric
    distortion, padding that is ignored. Evaluation: shorter side to ``resize_short``, mask at the size of its file.

    Args:
        root: the folder.
        ignore_index: value in mask files that means unlabelled, or None; 255 inside the program.
        reduce_zero_label: 0 in the files is unlabelled and classes start at 1 (ADE20K).
        label_map: file value → class index, for files that number otherwise.
        classes: file of class names; None for ``classes.txt`` in the root, or the palette file's names.
        palette: palette file; None for ``palette.txt`` in the root if there is one.
        captions: ``fine`` (the files, if there are any), ``coarse`` (``prompt_simple``) or ``shuffled`` (the control:
            every image gets another one's).
        crop_size: side of training images in pixels, the backbone's native size as a rule.
        resize_short: length of the shorter side before cropping and in evaluation; None for ``crop_size``, 0 to keep
            images as they are.
        augment: off: shorter side resized and the middle cut out, the same in every epoch.
        ratio_range, cat_max_ratio, flip, photometric: see `gate_lightning.data.transforms.basic`.
        prompt_simple, prompt_fine: prompts of the card; None names the classes.
        check_level: sanity check at start: ``quick`` or ``full``.
        loading: `FileDataModule`'s further arguments: ``mask_orientation``, ``subset`` and `SegmentationDataModule`'s.

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
        super().__init__(captions, check_level, **loading)
        self.root = require_root(root)
        names, colours, found = _classes_and_colours(self.root, classes, palette)
        self.reader = MaskReader(names, LabelMap(len(names), ignore_index, reduce_zero_label, label_map or {}), found)
        fine = prompt_fine or "a photo of " + ", ".join(
            name.replace("_", " ") for name in names if name != "background"
        )
        self.card = DatasetCard(self.root.resolve().name, prompt_simple, fine, gate_branches())
        self.labels = ClassLabels(names, colours)
        short = crop_size if resize_short is None else resize_short
        self.crop_size, self.eval_resize, self.random_views = crop_size, Resize(short), augment
        resize = Resize(short, True, ratio_range if augment else None)
        self.train_transform = training_transform(resize, crop_size, augment, cat_max_ratio, flip, photometric)

    @property
    def has_test(self) -> bool:
        """True if ``images/test`` and ``masks/test`` exist."""
        return (self.root / "images/test").is_dir() and (self.root / "masks/test").is_dir()

    def scan(self, split: str) -> SplitFiles:
        """The files below ``images/<split>`` and ``masks/<split>``."""
        return scan_split(self.root, split)

    def _unfit(self, height: int, width: int) -> str | None:
        resized = self.eval_resize.size(height, width)
        if min(resized) >= self.crop_size:
            return super()._unfit(height, width)
        return (
            f"{width}×{height} pixels are too small for crops of {self.crop_size}; "
            f"use dataset.resize_short={self.crop_size} or larger, or leave it at null"
        )


def _classes_and_colours(
    root: Path, classes: str | None, palette: str | None
) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...], Palette | None]:
    """Names, colours, and the palette file's content if there is one."""
    class_file = Path(classes).expanduser() if classes else root / "classes.txt"
    colour_file = Path(palette).expanduser() if palette else root / "palette.txt"
    colours = read_palette(colour_file) if palette or colour_file.is_file() else None
    if colours is not None and classes is None and not class_file.is_file():
        named = [name for name in dict.fromkeys(colours.names) if name.lower() not in IGNORED_NAMES]
        names = check_classes(named, colour_file)
    else:
        names = read_classes(class_file)
    shown = default_palette(len(names)) if colours is None else colours.of(names, colour_file)
    return names, shown, colours
