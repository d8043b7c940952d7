"""Images with captions in several styles, for adapter training: kohya's folder layout, or that of a data set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import Dataset

from gate_lightning.data.files.captions import read_captions
from gate_lightning.data.pretraining.datamodule import EndlessDataModule, to_pixels
from gate_lightning.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})

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
      ``captions_tags.txt``, … (see ``data.captions``). Without any, captions are in ``a.txt`` beside ``a.jpg``, or
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
            f"No image in {folder}. Expected {', '.join(sorted(IMAGE_SUFFIXES))} files there, in images/train, or "
            f"in sub-folders named <repeats>_<style>, e.g. 10_empty, 10_tags, 10_sentences, each with captions in .txt "
            f"files beside them; found {_inside(folder)}."
        )
    return entries


def _repeated(root: Path) -> list[tuple[Path, int]]:
    folders = [(folder, _REPEATS.match(folder.name)) for folder in sorted(root.iterdir()) if folder.is_dir()]
    return [(folder, int(match.group(1))) for folder, match in folders if match]


def _beside(folders: Sequence[tuple[Path, int]]) -> list[CaptionedImage]:
    return [
        CaptionedImage(path, _text_of(path) or "", repeats)
        for folder, repeats in folders
        for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    ]


def _in_styles(root: Path, styles: Sequence[str] | None) -> list[CaptionedImage]:
    split = "train" if (root / "images" / "train").is_dir() else ""
    base = root / "images" / split
    paths = sorted(p for p in base.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
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
    texts = [_text_of(path) for path in paths]
    if styles is None and not found and any(texts):
        captions = [[text or "" for text in texts]]
    return [CaptionedImage(path, text, 1) for read in captions for path, text in zip(paths, read, strict=True)]


def _text_of(image: Path) -> str | None:
    path = image.with_suffix(".txt")
    return path.read_text(encoding="utf-8-sig").strip() if path.exists() else None


def _inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())[:8]


class CaptionedFolder(Dataset[dict[str, Any]]):
    """Square images with captions, repeats spelled out.

    Args:
        root, styles: see `list_captioned`.
        size: side in pixels; images are scaled to cover it and cropped.
        flip: mirror half of the draws.  Off by default: captions may speak of left and right.
        random_crop: crop anywhere instead of the middle.
        seed: of flips and crops.
    """

    def __init__(
        self,
        root: str | Path | None,
        size: int,
        flip: bool = False,
        random_crop: bool = False,
        seed: int = 0,
        styles: Sequence[str] | None = None,
    ) -> None:
        self.entries = [e for entry in list_captioned(root, styles) for e in [entry] * entry.repeats]
        self.size, self.flip, self.random_crop, self.seed = size, flip, random_crop, seed

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        """``pixels`` (3, S, S) float32 in [-1, 1] and ``caption``.

        Raises:
            DataError: the file cannot be read as an image.
        """
        entry = self.entries[draw % len(self)]
        image = cv2.imread(str(entry.path), cv2.IMREAD_COLOR)
        if image is None:
            raise DataError(f"{entry.path} cannot be read as an image; replace or remove it.")
        chance = np.random.default_rng([self.seed, draw]).random(3)
        square = self._square(image[..., ::-1], chance[:2] if self.random_crop else np.array([0.5, 0.5]))
        if self.flip and chance[2] < 0.5:
            square = square[:, ::-1]
        return {"pixels": to_pixels(square), "caption": entry.caption}

    def _square(self, image: np.ndarray, where: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        scale = self.size / min(height, width)
        new_height, new_width = max(self.size, round(height * scale)), max(self.size, round(width * scale))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image = cv2.resize(np.ascontiguousarray(image), (new_width, new_height), interpolation=method)
        top, left = int(where[0] * (new_height - self.size)), int(where[1] * (new_width - self.size))
        return image[top : top + self.size, left : left + self.size]


class CaptionedImages(EndlessDataModule):
    """Folder of captioned images for adapter training.  The images of a fixed choice also give the validation loss.

    Args:
        root, styles: see `list_captioned`.
        size: side in pixels.
        flip, random_crop: see `CaptionedFolder`.
        val_length: entries used to follow the loss; adapters are meant to fit their images, so this is no held-out
            score.
        loading: `EndlessDataModule`'s arguments.
    """

    def __init__(
        self,
        root: str | Path | None,
        size: int = 512,
        flip: bool = False,
        random_crop: bool = False,
        val_length: int = 32,
        styles: Sequence[str] | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(**{"batch_size": 1, "val_batch_size": 4, **loading})
        self.root, self.size, self.flip, self.random_crop = root, size, flip, random_crop
        self.val_length, self.styles = val_length, styles

    def setup(self, stage: str | None = None) -> None:
        """List the files."""
        self.train_set = CaptionedFolder(
            self.root, self.size, self.flip, self.random_crop, self.seed, styles=self.styles
        )
        self.val_set = _EverySoMany(CaptionedFolder(self.root, self.size, styles=self.styles), self.val_length)


class _EverySoMany(Dataset[dict[str, Any]]):
    """At most ``most`` entries, spread over the whole set."""

    def __init__(self, base: CaptionedFolder, most: int) -> None:
        count = min(most, len(base))
        self.base, self.indices = base, np.linspace(0, len(base) - 1, count).round().astype(int).tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.base[self.indices[index]]
