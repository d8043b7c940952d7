"""Unlabelled pictures: a folder or a single file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import Dataset

from gate_lightning.data.core.required_inputs import Companions, check_control_size
from gate_lightning.data.core.samplers import BatchLoader, EvaluationBatches, group_by_size
from gate_lightning.data.files.captions import read_captions
from gate_lightning.data.files.images import PICTURE_SUFFIXES, picture_size, read_image
from gate_lightning.data.files.pairing import pictures_in
from gate_lightning.data.samples import Draw, Sample, SegmentationViews, Transform, collate
from gate_lightning.data.transforms.basic import Resize, resize_picture
from gate_lightning.errors import DataError
from gate_lightning.structures import Conditions, SegmentationBatch

__all__ = ["PictureSource", "PredictionBatch", "PredictionDataModule", "read_pictures"]


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
        return PredictionBatch(moved.images, None, moved.conditions, paths=self.paths, sizes=self.sizes)


class PictureSource:
    """The pictures below a folder (sorted), or one file, as `SampleSource` without masks.

    Args:
        pictures: file, folder, or pattern (``my_pictures/*/a*.jpg``; names start at its first wildcard). A
            ``captions.txt`` in the folder gives captions (``path<TAB>caption``).
        root: folder that names and sample ids are relative to, where that is not ``pictures``; captions are then not
            looked for.

    Raises:
        DataError: nothing there, no picture in it, or two files whose results would have one name.
    """

    def __init__(self, pictures: str | Path, root: Path | None = None) -> None:
        path = Path(pictures).expanduser()
        folder, self.paths = _found(path)
        self.root = root or folder
        if not self.paths:
            raise DataError(f"input {path} holds no pictures; expected files with {', '.join(PICTURE_SUFFIXES)}")
        self.names = [file.relative_to(self.root).with_suffix("").as_posix() for file in self.paths]
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise DataError(f"input {path} has two pictures called {twice[0]!r}; their results would have one name")
        own = root is None and not path.is_file()
        self.captions: Sequence[str] | None = read_captions(self.root, "", self.names) if own else None

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


def _found(path: Path) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files."""
    if path.is_dir():
        return path, pictures_in(path)
    if path.exists():
        return path.parent, [path]
    wild = next((number for number, part in enumerate(path.parts) if any(sign in part for sign in "*?[")), None)
    if wild is None:
        raise DataError(f"input {path} does not exist (= {path.resolve()}); give a picture or a folder of pictures")
    root = Path(*path.parts[:wild])
    matches = sorted(root.glob("/".join(path.parts[wild:])))
    return root, [file for file in matches if file.is_file() and file.suffix.lower() in PICTURE_SUFFIXES]


class _PictureViews(Dataset[PredictionBatch]):
    """Batches with paths and sizes."""

    def __init__(self, source: PictureSource, transform: Transform, companions: Companions) -> None:
        self.source, self.views = source, SegmentationViews(companions.attach(source), transform)

    def __getitem__(self, draws: Sequence[Draw]) -> PredictionBatch:
        batch = self.views[draws]
        paths = tuple(str(self.source.paths[draw.index]) for draw in draws)
        sizes = tuple(self.source.sizes(draw.index)[0] for draw in draws)
        return PredictionBatch(batch.images, None, batch.conditions, paths=paths, sizes=sizes)


class PredictionDataModule(LightningDataModule):
    """Unlabelled pictures for ``trainer.predict``, or one by one: iterating yields (name, uint8 (H, W, 3) RGB).

    Args:
        pictures: a picture, a folder of pictures (searched with its subfolders), or what has been found there.
        resize: rule by which pictures are resized for the model; None keeps them.
        eval_batch_size: pictures of equal size predicted together; None for 1.
        num_workers: loader processes.
        companions: control pictures and captions that techniques need with the pictures.

    Raises:
        DataError: see `PictureSource`.
    """

    def __init__(
        self,
        pictures: str | Path | PictureSource,
        resize: Resize | None = None,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        companions: Companions | None = None,
    ) -> None:
        super().__init__()
        self.pictures = pictures if isinstance(pictures, PictureSource) else PictureSource(pictures)
        self.companions = companions or Companions()
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
        views = _PictureViews(self.pictures, self.resize, self.companions)
        return BatchLoader(views, sampler=sampler, num_workers=self.num_workers)


def read_pictures(
    paths: str | Path | Sequence[str | Path],
    size: int | tuple[int, int] | None = None,
    captions: Sequence[str] | None = None,
    control_images: Mapping[str, str | Path | Sequence[str | Path]] | None = None,
) -> tuple[torch.Tensor, Conditions]:
    """Picture files as a batch for a feature extractor.

    Args:
        paths: B files, or one.
        size: (height, width) in pixels to resize to, aspect not kept; a number for a square; None keeps the files'
            size, which must then be the same for all.
        captions: one per picture, for the prompt technique.
        control_images: name → B files, each of its picture's size, for ControlNets; they are resized with the pictures.

    Returns:
        images (B, 3, H, W) float32 in [-1, 1], and their Conditions: sample ids are the file names.

    Raises:
        DataError: a file is missing or broken, pictures of different sizes, or not one caption or control picture each.
    """
    files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not files or (captions is not None and len(captions) != len(files)):
        raise DataError(f"{len(files)} pictures and captions={captions!r}; give pictures, and captions for all or none")
    texts = [None] * len(files) if captions is None else list(captions)
    samples = [Sample(path.name, read_image(path), None, text) for path, text in zip(files, texts, strict=True)]
    for name, places in (control_images or {}).items():
        samples = _with_controls(samples, name, places)
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        samples = [sample.map_pictures(lambda image: resize_picture(image, height, width)) for sample in samples]
    shape = samples[0].image.shape
    for path, sample in zip(files, samples, strict=True):
        if sample.image.shape != shape:
            shapes = f"{files[0]} has {shape[:2]} pixels (height, width), {path} {sample.image.shape[:2]}"
            raise DataError(f"{shapes}; give read_pictures a size, or read them one by one")
    batch = collate(samples)
    return batch.images, batch.conditions


def _with_controls(samples: Sequence[Sample], name: str, files: str | Path | Sequence[str | Path]) -> list[Sample]:
    """The pictures, each with its control picture of that name."""
    given = [files] if isinstance(files, str | Path) else files
    if len(given) != len(samples):
        raise DataError(f"control_images {name!r}: {len(given)} files for {len(samples)} pictures; give one for each")
    made = []
    for sample, file in zip(samples, given, strict=True):
        control = read_image(Path(file))
        check_control_size(name, file, control.shape[:2], sample.sample_id, sample.image.shape[:2])
        made.append(replace(sample, controls={**sample.controls, name: control}))
    return made
