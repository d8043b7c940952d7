"""Pictures with captions in text files beside them, in kohya's folder layout, for adapter training."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import Dataset

from gate_lightning.data.pretraining import EndlessDataModule, to_pixels
from gate_lightning.errors import DataError

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})

_REPEATS = re.compile(r"^(\d+)_.+$")


@dataclass(frozen=True)
class CaptionedPicture:
    """One entry: a picture file, its text and how often it counts in a pass."""

    path: Path
    caption: str
    repeats: int


def list_captioned(root: Path) -> list[CaptionedPicture]:
    """Pictures directly in ``root`` (one repeat) and in sub-folders ``<repeats>_<style>`` (``10_tags``), sorted.

    The caption of ``a.jpg`` is in ``a.txt``; without that file it is empty.

    Raises:
        DataError: the folder is missing or holds no picture.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder. Give a folder of pictures, e.g. dataset.root=data/my_pictures.")
    folders = [(root, 1)]
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        match = _REPEATS.match(folder.name)
        if match:
            folders.append((folder, int(match.group(1))))
    entries: list[CaptionedPicture] = []
    for folder, repeats in folders:
        for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES):
            text = path.with_suffix(".txt")
            words = text.read_text(encoding="utf-8").strip() if text.exists() else ""
            entries.append(CaptionedPicture(path, words, repeats))
    if not any(entry.repeats for entry in entries):
        raise DataError(
            f"No picture in {root}. Expected {', '.join(sorted(PICTURE_SUFFIXES))} files there or in sub-folders named "
            f"<repeats>_<style>, e.g. 10_empty, 10_tags, 10_sentences, each with captions in .txt files beside them."
        )
    return entries


class CaptionedFolder(Dataset[dict[str, Any]]):
    """Square pictures with captions, repeats spelled out.

    Args:
        root: see `list_captioned`.
        size: side in pixels; pictures are scaled to cover it and cropped.
        flip: mirror half of the draws.  Off by default: captions may speak of left and right.
        random_crop: crop anywhere instead of the middle.
        seed: of flips and crops.
    """

    def __init__(self, root: Path, size: int, flip: bool = False, random_crop: bool = False, seed: int = 0) -> None:
        self.entries = [e for entry in list_captioned(root) for e in [entry] * entry.repeats]
        self.size, self.flip, self.random_crop, self.seed = size, flip, random_crop, seed

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        """``pixels`` (3, S, S) float32 in [-1, 1] and ``caption``.

        Raises:
            DataError: the file cannot be read as a picture.
        """
        entry = self.entries[draw % len(self)]
        picture = cv2.imread(str(entry.path), cv2.IMREAD_COLOR)
        if picture is None:
            raise DataError(f"{entry.path} cannot be read as a picture; replace or remove it.")
        chance = np.random.default_rng([self.seed, draw]).random(3)
        square = self._square(picture[..., ::-1], chance[:2] if self.random_crop else np.array([0.5, 0.5]))
        if self.flip and chance[2] < 0.5:
            square = square[:, ::-1]
        return {"pixels": to_pixels(square), "caption": entry.caption}

    def _square(self, picture: np.ndarray, where: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        scale = self.size / min(height, width)
        new_height, new_width = max(self.size, round(height * scale)), max(self.size, round(width * scale))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        picture = cv2.resize(np.ascontiguousarray(picture), (new_width, new_height), interpolation=method)
        top, left = int(where[0] * (new_height - self.size)), int(where[1] * (new_width - self.size))
        return picture[top : top + self.size, left : left + self.size]


class CaptionedPictures(EndlessDataModule):
    """Folder of captioned pictures for adapter training.  The pictures of a fixed choice also give the validation loss.

    Args:
        root: see `list_captioned`.
        size: side in pixels.
        flip, random_crop: see `CaptionedFolder`.
        val_length: entries used to follow the loss; adapters are meant to fit their pictures, so this is no held-out
            score.
        loading: `EndlessDataModule`'s arguments.
    """

    def __init__(
        self,
        root: str | Path,
        size: int = 512,
        flip: bool = False,
        random_crop: bool = False,
        val_length: int = 32,
        **loading: Any,
    ) -> None:
        super().__init__(**{"batch_size": 1, "val_batch_size": 4, **loading})
        self.root, self.size, self.flip, self.random_crop = Path(root), size, flip, random_crop
        self.val_length = val_length

    def setup(self, stage: str | None = None) -> None:
        """List the files."""
        self.train_set = CaptionedFolder(self.root, self.size, self.flip, self.random_crop, self.seed)
        self.val_set = _EverySoMany(CaptionedFolder(self.root, self.size), self.val_length)


class _EverySoMany(Dataset[dict[str, Any]]):
    """At most ``most`` entries, spread over the whole set."""

    def __init__(self, base: CaptionedFolder, most: int) -> None:
        count = min(most, len(base))
        self.base, self.indices = base, np.linspace(0, len(base) - 1, count).round().astype(int).tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.base[self.indices[index]]
