"""Base of the large benchmarks: class files of the package, and mmsegmentation's pipelines for images and masks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gate_lightning.data.card import RGB, ClassLabels, DatasetCard
from gate_lightning.data.core.prediction import ImageSource
from gate_lightning.data.files.pairing import SplitFiles, pair_files, require_root
from gate_lightning.data.segmentation.image_files import FileDataModule
from gate_lightning.data.transforms.basic import Pad, training_transform
from gate_lightning.data.transforms.fit import Fit
from gate_lightning.errors import ConfigError, DataError

__all__ = ["OfficialDataModule", "class_file"]


def class_file(name: str) -> tuple[tuple[str, ...], tuple[RGB, ...]]:
    """Names and colours of ``classes/<name>.txt`` in this package: ``r g b name`` a line, in label order."""
    text = (Path(__file__).parent / "classes" / f"{name}.txt").read_text(encoding="utf-8")
    rows = [line.split(maxsplit=3) for line in text.splitlines() if line and not line.startswith("#")]
    return tuple(row[3] for row in rows), tuple((int(row[0]), int(row[1]), int(row[2])) for row in rows)


class OfficialDataModule(FileDataModule):
    """Images and masks in a benchmark's official layout.

    Training images: as large as fits into ``scale`` times a random factor, class-balanced crop, flip, photometric
    distortion, padding that is ignored. Evaluation: as large as fits into ``scale``, mask at the size of its file.
    mmsegmentation's pipelines to the pixel, but for the padding's grey: 128 of 255, where it has 127.5.

    Subclasses set ``layout`` and the endings, set ``reader`` and provide ``image_folders`` and ``mask_folder``.

    Args:
        root: the data set's folder.
        card, labels: facts about the data set.
        scale: two sides in pixels of the box that images are fitted into; the longer one is for their longer side.
        crop_size: of training images in pixels, one number or (height, width).
        ratio_range: smallest and largest factor on the box, or None for no random factor (GATE's Cityscapes runs).
        cat_max_ratio: largest share of one class in a crop; 1 takes any crop.
        flip: probability of a mirror image.
        photometric: distort brightness, contrast, saturation and hue.
        augment: off: fitted and the middle cut out, the same in every epoch.
        pad_label: class that padding is trained as, as in GATE's released configurations (1); None: padding is ignored.
        others: `FileDataModule`'s arguments.

    Raises:
        DataError: no such folder.
        ConfigError: a setting out of range.
    """

    #: expected content of the root, for messages; its first folder must exist
    layout: str
    #: endings of the names of images and masks, before the suffix
    image_ending, mask_ending = "", ""

    def __init__(
        self,
        root: str,
        card: DatasetCard,
        labels: ClassLabels,
        scale: Sequence[int],
        crop_size: int | Sequence[int],
        ratio_range: Sequence[float] | None = (0.5, 2.0),
        cat_max_ratio: float = 0.75,
        flip: float = 0.5,
        photometric: bool = True,
        augment: bool = True,
        pad_label: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.card, self.labels = card, labels
        self.root = require_root(root, self.layout, self.layout.split("/", 1)[0])
        fit, size = Fit(scale, True, ratio_range if augment else None), Pad(crop_size).size
        largest = 1.0 if fit.ratio_range is None else fit.ratio_range[1]
        if min(size) > fit.short * largest or max(size) > fit.long * largest:
            raise ConfigError(
                f"dataset.crop_size={crop_size} never fits: images are at most {fit.long * largest:g}×"
                f"{fit.short * largest:g} pixels; use a smaller crop, or a larger dataset.scale (now {list(scale)})"
            )
        self.crop_size, self.random_views, self.eval_resize = size, augment, Fit(scale)
        self.train_transform = training_transform(fit, size, augment, cat_max_ratio, flip, photometric, pad_label)

    @abstractmethod
    def image_folders(self, split: str) -> Sequence[str]:
        """Folders below the root that may hold the images of ``train``, ``val`` or ``test``."""

    @abstractmethod
    def mask_folder(self, split: str) -> str:
        """Folder below the root with the masks of ``train`` or ``val``."""

    @property
    def has_test(self) -> bool:
        """False: the servers keep the test masks."""
        return False

    def images_of(self, split: str) -> ImageSource:
        """The images of a split without their masks.

        Raises:
            DataError: says where they were looked for.
        """
        places = [self.root / folder for folder in self.image_folders(split)]
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            raise DataError(f"no images of the {split} split; looked for {' and '.join(map(str, places))}")
        source = ImageSource(folder, self.root)
        names = [path.relative_to(folder).with_suffix("").as_posix() for path in source.paths]
        source.captions = self._captions_of(split, [name.removesuffix(self.image_ending) for name in names])
        return source

    def scan(self, split: str) -> SplitFiles:
        """The files of ``train`` or ``val``.

        Raises:
            DataError: a folder is missing, or the test split, whose masks the servers keep.
        """
        if split == "test":
            raise DataError(
                f"the test masks of {self.card.name} are not public, so there is nothing to measure; write "
                "predictions for the server with: python eval.py run=<run folder> split=test submission=true"
            )
        (images,), masks = self.image_folders(split), self.mask_folder(split)
        return pair_files(self.root, split, images, masks, self.layout, (self.image_ending, self.mask_ending))
