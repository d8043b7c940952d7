"""Unlabelled images: a folder or a single file."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lightning import LightningDataModule
from torch.utils.data import Dataset

from gate_lightning.data.core.required_inputs import (
    RequiredInputs,
)
from gate_lightning.data.core.samplers import BatchLoader, EvaluationBatches, group_by_size, loading
from gate_lightning.data.files.captions import read_captions
from gate_lightning.data.files.images import IMAGE_SUFFIXES, Header, image_header, read_image
from gate_lightning.data.files.listing import Listing, describe_left_out, list_files
from gate_lightning.data.samples import BatchDataset, Sample, SampleRequest, Transform
from gate_lightning.data.transforms.basic import Resize
from gate_lightning.errors import DataError
from gate_lightning.structures import ImageBatch
from gate_lightning.utils.checks import a_path

__all__ = ["ImageSource", "PredictionBatch", "PredictionDataModule"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictionBatch(ImageBatch):
    """Batch of images read from files.

    Attributes:
        paths: B files.
        sizes: B (height, width) as in the files, which predictions are to have.
    """

    paths: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]


class ImageSource:
    """The images below a folder (sorted), or one file, as `SampleSource`.

    Args:
        images: file, folder, or pattern (``my_images/*/a*.jpg``; names start at its first wildcard). A
            ``captions.txt`` in the folder gives captions (``path<TAB>caption``).
        root: folder that names and sample ids are relative to, where that is not ``images``; captions are then not
            looked for.

    Raises:
        DataError: nothing there, no image in it, or two files whose results would have one name.
    """

    def __init__(self, images: str | Path, root: Path | None = None) -> None:
        path = a_path(images, "input")
        listing = _found(path)
        self.paths, self.root = list(listing.files), root or listing.root
        if not self.paths:
            expected = f"expected files with {', '.join(IMAGE_SUFFIXES)}"
            left_out = describe_left_out(listing.root, listing.left_out)
            raise DataError(f"input {path} holds no images; {left_out or expected}")
        listing.say()
        self.names = [file.relative_to(self.root).with_suffix("").as_posix() for file in self.paths]
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise DataError(f"input {path} has two images called {twice[0]!r}; their results would have one name")
        own = root is None and not path.is_file()
        self._headers: dict[int, Header] = {}
        self.captions: Sequence[str] | None = read_captions(self.root, "", self.names) if own else None

    def __len__(self) -> int:
        return len(self.paths)

    def sample_id(self, index: int) -> str:
        """Path of image ``index``, relative to the folder."""
        return self.paths[index].relative_to(self.root).as_posix()

    def load(self, index: int) -> Sample:
        """Image ``index``, not resized."""
        caption = None if self.captions is None else self.captions[index]
        return Sample(self.sample_id(index), read_image(self.paths[index]), caption)

    def sizes(self, index: int) -> tuple[tuple[int, int], ...]:
        """((height, width),) of image ``index``."""
        return (self._header(index).size,)

    @property
    def orientations(self) -> Mapping[str, int]:
        """EXIF orientation of the images that have one, by sample id."""
        return {self.sample_id(i): self._header(i).turn for i in range(len(self)) if self._header(i).turn != 1}

    def _header(self, index: int) -> Header:
        if index not in self._headers:
            self._headers[index] = image_header(self.paths[index])
        return self._headers[index]


def _found(path: Path) -> Listing:
    """Image files; the listing's root is what names are relative to."""
    if path.is_dir():
        return list_files(path)
    if path.exists():
        return Listing(path.parent, (path,), ())
    signs = (number for number, part in enumerate(path.parts) if any(sign in part for sign in "*?["))
    wild = next(
        (number for number in signs if not Path(*path.parts[: number + 1]).exists()), None
    )  # "my [1]" is a name
    if wild is None:
        raise DataError(f"input {path} does not exist (= {path.resolve()}); give an image or a folder of images")
    root = Path(*path.parts[:wild])
    if not root.is_dir():
        raise DataError(f"input {path}: the folder {root} (= {root.resolve()}) does not exist")
    return list_files(root, path.parts[wild:])


class _ImageViews(Dataset[PredictionBatch]):
    """Batches with paths and sizes."""

    def __init__(self, source: ImageSource, transform: Transform, required_inputs: RequiredInputs) -> None:
        self.source, self.views = (
            source,
            BatchDataset(required_inputs.attach(source), transform, edges=required_inputs.edges),
        )

    def __getitem__(self, draws: Sequence[SampleRequest]) -> PredictionBatch:
        batch: ImageBatch = self.views[draws]
        paths = tuple(str(self.source.paths[draw.index]) for draw in draws)
        sizes = tuple(self.source.sizes(draw.index)[0] for draw in draws)
        return PredictionBatch(batch.images, batch.conditions, paths, sizes)


class PredictionDataModule(LightningDataModule):
    """Unlabelled images for ``trainer.predict``, or one by one: iterating yields (name, uint8 (H, W, 3) RGB).

    Args:
        images: an image, a folder of images (searched with its subfolders), or what has been found there.
        resize: rule by which images are resized for the model; None keeps them.
        eval_batch_size: images of equal size predicted together; None for 1.
        num_workers: loader processes; see `ImageDataModule`.
        required_inputs: control images and captions that techniques need with the images.

    Raises:
        DataError: see `ImageSource`.
    """

    def __init__(
        self,
        images: str | Path | ImageSource,
        resize: Resize | None = None,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        required_inputs: RequiredInputs | None = None,
    ) -> None:
        super().__init__()
        self.images = images if isinstance(images, ImageSource) else ImageSource(images)
        self.required_inputs = required_inputs or RequiredInputs()
        self.resize = resize or Resize(0)
        self.eval_batch_size, self.num_workers = eval_batch_size or 1, num_workers

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        for index, name in enumerate(self.images.names):
            yield name, self.images.load(index).image

    def predict_dataloader(self) -> BatchLoader:
        """`PredictionBatch` of every image once, shared between processes without padding."""
        sizes = [self.images.sizes(index) for index in range(len(self.images))]
        for index, (size, *_) in enumerate(sizes):
            self.resize.check(*size, self.images.sample_id(index))
        batches = group_by_size(sizes, self.eval_batch_size, together=1)
        processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        sampler = EvaluationBatches(batches, *processes, pad=False)
        views = _ImageViews(self.images, self.resize, self.required_inputs)
        return BatchLoader(views, sampler=sampler, **loading(self.trainer, self.num_workers))
