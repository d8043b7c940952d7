"""Unlabelled pictures: a folder or a single file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import Dataset

from gate_lightning.data.captions import read_captions
from gate_lightning.data.folder_scan import pictures_in
from gate_lightning.data.pictures import PICTURE_SUFFIXES, picture_size, read_image
from gate_lightning.data.samplers import BatchLoader, EvaluationBatches, group_by_size
from gate_lightning.data.samples import Draw, Sample, SegmentationViews, Transform
from gate_lightning.data.transforms import Resize
from gate_lightning.errors import DataError
from gate_lightning.structures import SegmentationBatch

__all__ = ["PictureSource", "PredictionBatch", "PredictionDataModule"]


@dataclass(frozen=True)
class PredictionBatch(SegmentationBatch):
    """Pictures without masks.

    Attributes:
        paths: B files.
        sizes: B (height, width) as in the files, which predictions are to have.
    """

    paths: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()

    def to(self, device: torch.device | str, **kwargs: Any) -> PredictionBatch:
        """A copy on ``device``."""
        moved = super().to(device, **kwargs)
        return PredictionBatch(moved.images, None, moved.conditions, self.paths, self.sizes)


class PictureSource:
    """The pictures below a folder (sorted), or one file, as `SampleSource` without masks.

    Args:
        pictures: file or folder. A ``captions.txt`` in the folder gives captions (``path<TAB>caption``).

    Raises:
        DataError: nothing there, no picture in it, or two files whose results would have one name.
    """

    def __init__(self, pictures: str | Path) -> None:
        path = Path(pictures).expanduser()
        if not path.exists():
            raise DataError(f"input {path} does not exist (= {path.resolve()}); give a picture or a folder of pictures")
        self.root = path if path.is_dir() else path.parent
        self.paths = pictures_in(path) if path.is_dir() else [path]
        if not self.paths:
            raise DataError(f"input {path} holds no pictures; expected files with {', '.join(PICTURE_SUFFIXES)}")
        self.names = [file.relative_to(self.root).with_suffix("").as_posix() for file in self.paths]
        twice = [name for number, name in enumerate(self.names) if name in self.names[:number]]
        if twice:
            raise DataError(f"input {path} has two pictures called {twice[0]!r}; their results would have one name")
        self.captions = read_captions(self.root, "", self.names) if path.is_dir() else None

    def __len__(self) -> int:
        return len(self.paths)

    def sample_id(self, index: int) -> str:
        """Path relative to the folder."""
        return self.paths[index].relative_to(self.root).as_posix()

    def load(self, index: int) -> Sample:
        """The picture as it is in the file."""
        caption = None if self.captions is None else self.captions[index]
        return Sample(self.sample_id(index), read_image(self.paths[index]), None, caption)

    def sizes(self, index: int) -> tuple[tuple[int, int], tuple[int, int] | None]:
        """(height, width), and None for the mask."""
        return picture_size(self.paths[index]), None


class _PictureViews(Dataset[PredictionBatch]):
    """Batches with paths and sizes."""

    def __init__(self, source: PictureSource, transform: Transform) -> None:
        self.source, self.views = source, SegmentationViews(source, transform)

    def __getitem__(self, draws: Sequence[Draw]) -> PredictionBatch:
        batch = self.views[draws]
        paths = tuple(str(self.source.paths[draw.index]) for draw in draws)
        sizes = tuple(self.source.sizes(draw.index)[0] for draw in draws)
        return PredictionBatch(batch.images, None, batch.conditions, paths, sizes)


class PredictionDataModule(LightningDataModule):
    """Unlabelled pictures for ``trainer.predict``, or one by one: iterating yields (name, uint8 (H, W, 3) RGB).

    Args:
        pictures: a picture or a folder of pictures (searched with its subfolders).
        resize: rule by which pictures are resized for the model; None keeps them.
        eval_batch_size: pictures of equal size predicted together; None for 1.
        num_workers: loader processes.

    Raises:
        DataError: see `PictureSource`.
    """

    def __init__(
        self,
        pictures: str | Path,
        resize: Resize | None = None,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.pictures = PictureSource(pictures)
        self.resize = resize or Resize(0)
        self.eval_batch_size, self.num_workers = eval_batch_size or 1, num_workers

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        for index, name in enumerate(self.pictures.names):
            yield name, self.pictures.load(index).image

    def predict_dataloader(self) -> BatchLoader:
        """`PredictionBatch` of every picture once, shared between processes without padding."""
        sizes = [self.pictures.sizes(index) for index in range(len(self.pictures))]
        batches = group_by_size(sizes, self.eval_batch_size, together=1)
        processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        sampler = EvaluationBatches(batches, *processes, pad=False)
        return BatchLoader(_PictureViews(self.pictures, self.resize), sampler=sampler, num_workers=self.num_workers)
