"""One image with what belongs to it, and how images become batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gate_lightning.data.card import IGNORE_INDEX
from gate_lightning.structures import Conditions, SegmentationBatch
from gate_lightning.utils.seeding import data_generator

__all__ = [
    "Sample",
    "SampleRequest",
    "SampleSource",
    "SegmentationDataset",
    "Transform",
    "collate",
    "to_tensor",
]


@dataclass(frozen=True)
class Sample:
    """An image before it becomes a tensor.

    Attributes:
        sample_id: name of the image, unique in its data set; noise and augmentation are keyed by it.
        image: uint8 (H, W, 3) RGB.
        mask: uint8 (H, W) class indices, 255 ignored; None for unlabelled images. In evaluation it keeps the size of
            the file while ``image`` may be resized.
        caption: description of the image, or None.
        controls: control name → uint8 (H, W, 3) image that is cropped and flipped along.
        window: (top, left) of a crop in the resized image, in pixels.
        category: name of what the image shows, or None.
    """

    sample_id: str
    image: np.ndarray
    mask: np.ndarray | None
    caption: str | None = None
    controls: Mapping[str, np.ndarray] = field(default_factory=dict)
    window: tuple[int, int] = (0, 0)
    category: str | None = None

    def map_images(self, function: Callable[[np.ndarray], np.ndarray]) -> Sample:
        """``function`` applied to the image and its controls."""
        controls = {name: function(control) for name, control in self.controls.items()}
        return replace(self, image=function(self.image), controls=controls)

    def map_all(self, function: Callable[[np.ndarray], np.ndarray]) -> Sample:
        """``function`` applied to image, controls and mask: for geometry without interpolation."""
        mapped = self.map_images(function)
        return replace(mapped, mask=None if self.mask is None else function(self.mask))


#: random numbers come from the generator only, so that a draw is a function of its key
Transform = Callable[[Sample, np.random.Generator], Sample]


class SampleSource(Protocol):
    """A split of a data set, readable by index from several processes."""

    def __len__(self) -> int:
        """Number of images."""

    def sample_id(self, index: int) -> str:
        """Name of image ``index``."""

    def load(self, index: int) -> Sample:
        """Image ``index`` as it is in the file."""

    def sizes(self, index: int) -> tuple[tuple[int, int], tuple[int, int] | None]:
        """(height, width) of the image and of its mask, without decoding them."""


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """What the samplers hand to the data set.

    Attributes:
        index: which image.
        epoch: which augmentation draw of it.
        padding: repeated only so that all processes have equally many batches: its mask becomes ignored.
    """

    index: int
    epoch: int = 0
    padding: bool = False


class SegmentationDataset(Dataset[SegmentationBatch]):
    """Reads, transforms and collates whole batches.

    Args:
        source: the split.
        transform: applied to every sample.
        seed: of the augmentation.
        random: whether something is drawn anew in every epoch. If so, the view of a sample is ``draw<epoch>`` (see
            ``cycle``), else "".
        training: whether a head is trained on these batches (``Conditions.training``).
        cycle: how many views of an image there are, taken in turn by epoch; None for another one in every epoch.
    """

    def __init__(
        self,
        source: SampleSource,
        transform: Transform,
        seed: int = 0,
        random: bool = False,
        training: bool = False,
        cycle: int | None = None,
    ) -> None:
        self.source, self.transform, self.seed, self.random = source, transform, seed, random
        self.training, self.cycle = training, cycle

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draws: Sequence[SampleRequest]) -> SegmentationBatch:
        """The batch of ``draws``, one image each."""
        views = tuple(self.view(draw.epoch) for draw in draws)
        samples = [self._read(draw, view) for draw, view in zip(draws, views, strict=True)]
        return collate(samples, views, self.training)

    def view(self, epoch: int) -> str:
        """Name of the view that an epoch sees; noise and augmentation are keyed by it."""
        if not self.random:
            return ""
        return f"draw{epoch if self.cycle is None else epoch % self.cycle}"

    def _read(self, draw: SampleRequest, view: str) -> Sample:
        sample = self.source.load(draw.index)
        sample = self.transform(sample, data_generator("augmentation", self.seed, sample.sample_id, view))
        if draw.padding and sample.mask is not None:
            sample = replace(sample, mask=np.full_like(sample.mask, IGNORE_INDEX))
        return sample


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) in 0 … 255 → float32 (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(127.5).sub_(1.0)


def _to_control(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255.0)


def collate(samples: Sequence[Sample], views: Sequence[str] = (), training: bool = False) -> SegmentationBatch:
    """Samples of one size → batch. Either all samples have a mask (a caption, a category) or none has.

    Args:
        samples: at least one.
        views: name of the augmentation draw of each; () for plain images.
        training: whether a head is trained on them.
    """
    masks = [sample.mask for sample in samples if sample.mask is not None]
    captions = [sample.caption for sample in samples if sample.caption is not None]
    categories = [sample.category for sample in samples if sample.category is not None]
    conditions = Conditions(
        sample_ids=tuple(sample.sample_id for sample in samples),
        views=tuple(views),
        windows=tuple(sample.window for sample in samples),
        captions=tuple(captions) if captions else None,
        categories=tuple(categories) if categories else None,
        control_images={
            name: torch.stack([_to_control(sample.controls[name]) for sample in samples])
            for name in samples[0].controls
        },
        training=training,
    )
    return SegmentationBatch(
        images=torch.stack([to_tensor(sample.image) for sample in samples]),
        masks=torch.from_numpy(np.stack(masks)).long() if masks else None,
        conditions=conditions,
    )
