"""Samples of a data set (image, mask, caption, control images) and their collation to batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from gate_lightning.data.card import IGNORE_INDEX
from gate_lightning.ops.edges import CannySettings
from gate_lightning.structures import Conditions, ImageBatch, SegmentationBatch
from gate_lightning.structures.conditions import Movable
from gate_lightning.utils.seeding import data_generator

__all__ = [
    "BatchDataset",
    "Collate",
    "Sample",
    "SampleRequest",
    "SampleSource",
    "SegmentationSample",
    "Subset",
    "Transform",
    "collate_images",
    "collate_masks",
    "map_mask",
    "to_tensor",
]


@dataclass(frozen=True)
class Sample:
    """Image as an array, with its caption and control images. Subclasses add annotations, such as a mask.

    Attributes:
        sample_id: name of the image, unique in its data set; noise and augmentation are keyed by it.
        image: uint8 (H, W, 3) RGB.
        caption: description of the image, or None.
        controls: control name → uint8 (H, W, 3) image that is cropped and flipped along.
        window: (top, left) of a crop in the resized image, in pixels.
        category: name of what the image shows, or None.
        edges: `CannySettings.key` → uint8 (H, W) edge map of the image.
    """

    sample_id: str
    image: np.ndarray
    caption: str | None = None
    controls: Mapping[str, np.ndarray] = field(default_factory=dict)
    window: tuple[int, int] = (0, 0)
    category: str | None = None
    edges: Mapping[str, np.ndarray] = field(default_factory=dict)

    def map_images(self, function: Callable[[np.ndarray], np.ndarray]) -> Self:
        """``function`` applied to the image and its controls."""
        controls = {name: function(control) for name, control in self.controls.items()}
        return replace(self, image=function(self.image), controls=controls)

    def map_all(self, function: Callable[[np.ndarray], np.ndarray]) -> Self:
        """``function`` applied to image, controls and mask: for geometry without interpolation."""
        return map_mask(self.map_images(function), function)

    def ignored(self) -> Self:
        """The same image with an ignored mask, for batches that only pad the share of a process."""
        return map_mask(self, lambda mask: np.full_like(mask, IGNORE_INDEX))


@dataclass(frozen=True)
class SegmentationSample(Sample):
    """An image with its mask.

    Attributes:
        mask: uint8 (H, W) class indices, 255 ignored. In evaluation it keeps the size of the file while ``image`` may
            be resized.
    """

    mask: np.ndarray = field(kw_only=True)


AnySample = TypeVar("AnySample", bound=Sample)


def map_mask(sample: AnySample, function: Callable[[np.ndarray], np.ndarray]) -> AnySample:
    """``function`` applied to the mask of a sample; a sample without mask is unchanged."""
    return replace(sample, mask=function(sample.mask)) if isinstance(sample, SegmentationSample) else sample


#: a sample → one of the same kind; random numbers come from the generator only, so that it is a function of its key
Transform = Callable[[Any, np.random.Generator], Any]
#: samples, names of their views, whether a head is trained on them → batch
Collate = Callable[[Sequence[Any], Sequence[str], bool], Any]

AnyLoaded = TypeVar("AnyLoaded", covariant=True)

#: of data sets in this process; the copies that its loaders' workers have keep theirs
_numbers = itertools.count(1)


class SampleSource(Protocol[AnyLoaded]):
    """A split of a data set, readable by index from several processes."""

    def __len__(self) -> int:
        """Number of samples."""

    def sample_id(self, index: int) -> str:
        """Name of sample ``index``."""

    def load(self, index: int) -> AnyLoaded:
        """Sample ``index``, not transformed; has the members ``sample_id`` and ``ignored()``."""

    def sizes(self, index: int) -> tuple[tuple[int, int], ...]:
        """(height, width) of the image and of its mask, without decoding them.

        Samples are evaluated together where all of these are equal.
        """


class Subset:
    """Samples of other sources, chosen by position, as a `SampleSource`.

    Args:
        places: source and index of each.
    """

    def __init__(self, places: Sequence[tuple[SampleSource, int]]) -> None:
        self.places = tuple(places)

    def __len__(self) -> int:
        return len(self.places)

    def sample_id(self, index: int) -> str:
        """Name of the sample in its data set."""
        source, place = self.places[index]
        return source.sample_id(place)

    def load(self, index: int) -> Any:
        """Sample ``index`` of its source, not transformed."""
        source, place = self.places[index]
        return source.load(place)

    def sizes(self, index: int) -> tuple[tuple[int, int], ...]:
        """(height, width) of the image and of its mask, without decoding them."""
        source, place = self.places[index]
        return source.sizes(place)


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """Request of one sample, which samplers give to the data set.

    Attributes:
        index: position of the image in its split.
        epoch: number of the augmentation draw.
        padding: whether it is a repetition that gives all processes equally many batches; see `Sample.ignored`.
    """

    index: int
    epoch: int = 0
    padding: bool = False


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) in 0 … 255 → float32 (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(127.5).sub_(1.0)


def _to_control(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255.0)


def collate_images(samples: Sequence[Sample], views: Sequence[str] = (), training: bool = False) -> ImageBatch:
    """Batch of images of one size. Either all samples have a caption (a category) or none has.

    Args:
        samples: at least one.
        views: name of the augmentation draw of each; () for plain images.
        training: whether a head is trained on them.
    """
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
        edges={
            name: torch.from_numpy(np.stack([sample.edges[name] for sample in samples])) for name in samples[0].edges
        },
        training=training,
    )
    return ImageBatch(torch.stack([to_tensor(sample.image) for sample in samples]), conditions)


def collate_masks(
    samples: Sequence[SegmentationSample], views: Sequence[str] = (), training: bool = False
) -> SegmentationBatch:
    """Batch of images of one size and masks of one size; see `collate_images`."""
    batch = collate_images(samples, views, training)
    masks = torch.from_numpy(np.stack([sample.mask for sample in samples])).long()
    return SegmentationBatch(batch.images, batch.conditions, masks)


class BatchDataset(Dataset[Any]):
    """Data set of whole batches: reads, transforms and collates samples.

    Args:
        source: the split.
        transform: applied to every sample.
        collate: makes a batch of samples.
        seed: seed of the augmentation.
        random: whether the transform draws random numbers in every epoch. If so, the view of a sample is
            ``draw<epoch>`` (see ``cycle``), else "".
        training: whether a head is trained on these batches (``Conditions.training``).
        cycle: how many views of an image there are, taken in turn by epoch; None for another one in every epoch.
        edges: edge maps that go with the images where worker processes read them. Without workers they are made when
            they are needed, which they are not where features are known.
    """

    def __init__(
        self,
        source: SampleSource,
        transform: Transform,
        collate: Collate = collate_images,
        seed: int = 0,
        random: bool = False,
        training: bool = False,
        cycle: int | None = None,
        edges: Sequence[CannySettings] = (),
    ) -> None:
        self.source, self.transform, self.collate, self.seed = source, transform, collate, seed
        self.random, self.training, self.cycle = random, training, cycle
        self.edges = edges
        self.number = next(_numbers)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draws: Sequence[SampleRequest]) -> Any:
        """The batch of ``draws``, one image each."""
        views = tuple(self.view(draw.epoch) for draw in draws)
        samples = [self._read(draw, view) for draw, view in zip(draws, views, strict=True)]
        batch = self.collate(samples, views, self.training)
        return batch.read_by(self.number) if isinstance(batch, Movable) else batch

    def view(self, epoch: int) -> str:
        """Name of the view that an epoch sees; noise and augmentation are keyed by it."""
        if not self.random:
            return ""
        return f"draw{epoch if self.cycle is None else epoch % self.cycle}"

    def _read(self, draw: SampleRequest, view: str) -> Any:
        sample = self.source.load(draw.index)
        sample = self.transform(sample, data_generator("augmentation", self.seed, sample.sample_id, view))
        if self.edges and isinstance(sample, Sample) and get_worker_info() is not None:
            sample = replace(sample, edges={one.key: one.edges(sample.image) for one in self.edges})
        return sample.ignored() if draw.padding else sample
