"""Images with captions in several styles, for LoRA training: kohya's folder layout, or that of a data set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from gate_lightning.data.files.captions import caption_beside, read_captions
from gate_lightning.data.files.images import IMAGE_SUFFIXES, read_image
from gate_lightning.data.pretraining.batches import CaptionedBatch
from gate_lightning.data.pretraining.datamodule import BatchSource, PretrainingDataModule, stacked
from gate_lightning.data.samples import SampleRequest
from gate_lightning.errors import DataError
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.seeding import data_generator

__all__ = ["CaptionedFolder", "CaptionedImage", "CaptionedImages", "list_captioned"]

_REPEATS = re.compile(r"^(\d+)_.+$")
_CAPTIONS = re.compile(r"^captions(_\w+)?(\.txt)?$")


@dataclass(frozen=True)
class CaptionedImage:
    """One entry: an image file, its text and how often it counts in a pass."""

    path: Path
    caption: str
    repeats: int


def list_captioned(root: str | Path | None, styles: Sequence[str] | None = None) -> list[CaptionedImage]:
    """Images of a folder with their captions, sorted; an image is there once for each caption it has.

    * Sub-folders ``<repeats>_<style>`` (``10_tags``), and images directly in ``root`` (one repeat): the caption of
      ``a.jpg`` is in ``a.txt`` beside it; without that file it is empty.
    * A data set in the layout of ``dataset=folder``: images in ``images/train`` (or ``images``), with captions of
      several styles in ``captions/train/<name>.txt``, ``captions_tags/train/<name>.txt``, … or in ``captions.txt``,
      ``captions_tags.txt``, … (see `read_captions`). Without any, captions are in ``a.txt`` beside ``a.jpg``, or
      empty.

    Args:
        root: the folder.
        styles: of the second layout, which captions: ``empty`` (none), ``captions``, or the ``tags`` of
            ``captions_tags``. None: ``empty`` and all there are.

    Raises:
        DataError: the folder is missing or holds no image, or a style is not there for every image.
    """
    folder = Path(root) if root is not None else None
    if folder is None or not folder.is_dir():
        raise DataError(f"{root} is not a folder. Give a folder of images, e.g. dataset.root=data/my_images.")
    if (folder / "images").is_dir():
        entries = _in_styles(folder, styles)
    elif styles is not None:
        raise DataError(f"styles={list(styles)} needs images in {folder / 'images'}; found {_inside(folder)}.")
    else:
        entries = _beside([(folder, 1), *_repeated(folder)])
    if not any(entry.repeats for entry in entries):
        raise DataError(
            f"No image in {folder}. Expected {', '.join(IMAGE_SUFFIXES)} files there, in images/train, or "
            f"in sub-folders named <repeats>_<style>, e.g. 10_empty, 10_tags, 10_sentences, each with captions in .txt "
            f"files beside them; found {_inside(folder)}."
        )
    return entries


def _repeated(root: Path) -> list[tuple[Path, int]]:
    folders = [(folder, _REPEATS.match(folder.name)) for folder in sorted(root.iterdir()) if folder.is_dir()]
    return [(folder, int(match.group(1))) for folder, match in folders if match]


def _beside(folders: Sequence[tuple[Path, int]]) -> list[CaptionedImage]:
    return [
        CaptionedImage(path, caption_beside(path) or "", repeats)
        for folder, repeats in folders
        for path in _images(sorted(folder.iterdir()), folder)
    ]


def _in_styles(root: Path, styles: Sequence[str] | None) -> list[CaptionedImage]:
    split = "train" if (root / "images" / "train").is_dir() else ""
    base = root / "images" / split
    paths = _images(sorted(base.rglob("*")), base)
    names = [path.relative_to(base).with_suffix("").as_posix() for path in paths]
    found = {path.stem.removeprefix("captions_") for path in root.iterdir() if _CAPTIONS.match(path.name)}
    captions: list[list[str]] = []
    for style in styles if styles is not None else ("empty", *sorted(found)):
        kind = style if style == "captions" else f"captions_{style}"
        read = [""] * len(paths) if style == "empty" else read_captions(root, split, names, kind)
        if read is None:
            raise DataError(
                f"style {style!r}: {root} has neither {kind}/{split} nor {kind}.txt; expected empty"
                f"{''.join(f', {name}' for name in sorted(found))}"
            )
        captions.append(read)
    texts = [caption_beside(path) for path in paths]
    if styles is None and not found and any(texts):
        captions = [[text or "" for text in texts]]
    return [CaptionedImage(path, text, 1) for read in captions for path, text in zip(paths, read, strict=True)]


def _images(paths: Sequence[Path], base: Path) -> list[Path]:
    """The image files that are not hidden, nor in a hidden folder below ``base``."""
    shown = (path for path in paths if not any(part.startswith(".") for part in path.relative_to(base).parts))
    return [path for path in shown if path.suffix.lower() in IMAGE_SUFFIXES]


def _inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())[:8]


class CaptionedFolder(BatchSource):
    """Square images with captions, repeats spelled out.

    Args:
        entries: see `list_captioned`.
        size: side in pixels; images are scaled to cover it and cropped.
        flip: mirror half of the images.
        random_crop: crop anywhere instead of the middle.
        seed: of flips and crops, which also depend on the entry and the epoch.
    """

    def __init__(
        self,
        entries: Sequence[CaptionedImage],
        size: int,
        flip: bool = False,
        random_crop: bool = False,
        seed: int = 0,
    ) -> None:
        self.entries = [entry for entry in entries for _ in range(entry.repeats)]
        self.size, self.flip, self.random_crop, self.seed = size, flip, random_crop, seed

    def __len__(self) -> int:
        return len(self.entries)

    def sample_id(self, index: int) -> str:
        """Folder and name of the image, and its caption."""
        entry = self.entries[index]
        return f"{entry.path.parent.name}/{entry.path.name}: {entry.caption}"

    def __getitem__(self, requests: Sequence[SampleRequest]) -> CaptionedBatch:
        captions = tuple(self.entries[request.index].caption for request in requests)
        return CaptionedBatch(captions, stacked([self._square(request) for request in requests]))

    def _square(self, request: SampleRequest) -> np.ndarray:
        """uint8 (size, size, 3)."""
        image = read_image(self.entries[request.index].path)
        top, left, mirrored = data_generator("captioned", self.seed, request.index, request.epoch).random(3)
        if not self.random_crop:
            top = left = 0.5
        height, width = image.shape[:2]
        scale = self.size / min(height, width)
        new_height, new_width = max(self.size, round(height * scale)), max(self.size, round(width * scale))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image = cv2.resize(image, (new_width, new_height), interpolation=method)
        row, column = int(top * (new_height - self.size)), int(left * (new_width - self.size))
        square = image[row : row + self.size, column : column + self.size]
        return square[:, ::-1] if self.flip and mirrored < 0.5 else square


class CaptionedImages(PretrainingDataModule):
    """Folder of captioned images. The loss is followed on some of them: adapters are meant to fit their images.

    Args:
        root, styles: see `list_captioned`.
        size: side in pixels.
        flip: mirror half of the images in training; captions may speak of left and right.
        random_crop: see `CaptionedFolder`.
        val_length: at most so many entries, spread over all, to follow the loss.
        batch_size, eval_batch_size, num_workers, seed: see `PretrainingDataModule`.
    """

    batch_type = CaptionedBatch

    def __init__(
        self,
        root: str | Path | None,
        size: int = 512,
        flip: bool = False,
        random_crop: bool = False,
        val_length: int = 32,
        styles: Sequence[str] | None = None,
        batch_size: int = 1,
        eval_batch_size: int = 4,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        self.root, self.size, self.flip, self.random_crop = root, whole_number(size, "size", 1), flip, random_crop
        self.val_length, self.styles = whole_number(val_length, "val_length", 1), styles

    def make_source(self, split: str) -> CaptionedFolder:
        """Lists the files."""
        entries = list_captioned(self.root, self.styles)
        if split == "train":
            return CaptionedFolder(entries, self.size, self.flip, self.random_crop, self.seed)
        repeated = [entry for entry in entries for _ in range(entry.repeats)]
        chosen = np.linspace(0, len(repeated) - 1, min(self.val_length, len(repeated))).round().astype(int)
        return CaptionedFolder([replace(repeated[index], repeats=1) for index in chosen], self.size)
