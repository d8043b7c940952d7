"""Training samples of pairs: both images resized and mirrored with their points, and their batches."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from gate_lightning.data.samples import Sample, SampleSource, collate_images
from gate_lightning.data.transforms.basic import Resize, resize_bicubic
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import MIRRORED, Pair, PairBatch
from gate_lightning.utils.checks import number, whole_number

__all__ = [
    "Groups",
    "PaddedSquare",
    "PairSample",
    "PairSource",
    "PairTransform",
    "Partners",
    "SquareBicubic",
    "collate_pairs",
]

#: category → keypoint → keypoint that is in its place in a mirror image; one that is not named stays what it is
Partners = Mapping[str, Mapping[str, str]]
#: category → groups of keypoints that look alike but for their place (four paws), for the geometry-aware subset
Groups = Mapping[str, Sequence[Collection[str]]]


class SquareBicubic(Resize):
    """Resize to a square with PIL's bicubic filter, aspect not kept, as in the released code of DIFT.

    Args:
        side: in pixels; 0 keeps images as they are.
    """

    def __init__(self, side: int) -> None:
        super().__init__(whole_number(side, "dataset.size"))

    def size(self, height: int, width: int, ratio: float = 1.0) -> tuple[int, int]:
        """(side, side): height and width after resizing."""
        return (self.short, self.short) if self.short else (height, width)

    def shown(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the image has after resizing, without padding."""
        return self.size(height, width)

    def _image(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        return image if image.shape[:2] == (height, width) else resize_bicubic(image, height, width)


class PaddedSquare(SquareBicubic):
    """Resize the longer side with PIL's bicubic filter, aspect kept, and pad to a square with black at the bottom and
    the right, where no coordinate changes.

    Args:
        side: in pixels, 1 or more.
    """

    def shown(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the image in the square."""
        scale = self.short / max(height, width)
        return max(round(height * scale), 1), max(round(width * scale), 1)

    def _image(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        rows, columns = self.shown(*image.shape[:2])
        square = np.zeros((height, width, image.shape[2]), dtype=image.dtype)
        square[:rows, :columns] = super()._image(image, rows, columns)
        return square


@dataclass(frozen=True)
class PairSample:
    """Two images and their keypoints.

    Attributes:
        sample_id: name of the pair, unique in its split.
        source, target: the images.
        source_points, target_points: (N, 2) float32 x, y in pixels of these images; NaN where there is nothing.
        pair: as it is in the files.
        views: of source and target: "" or `MIRRORED`.
    """

    sample_id: str
    source: Sample
    target: Sample
    source_points: Tensor
    target_points: Tensor
    pair: Pair
    views: tuple[str, str] = ("", "")

    def ignored(self) -> Self:
        """The same pair without keypoints, for batches that only pad the share of a process."""
        nothing = torch.full_like(self.source_points, torch.nan)
        return replace(self, source_points=nothing, target_points=nothing)


class PairSource:
    """The pairs of a split as `SampleSource`.

    Args:
        pairs: the pairs.
        images: source of all their images.
    """

    def __init__(self, pairs: Sequence[Pair], images: SampleSource) -> None:
        self.pairs, self.images = tuple(pairs), images
        self._index = {images.sample_id(index): index for index in range(len(images))}

    def __len__(self) -> int:
        return len(self.pairs)

    def sample_id(self, index: int) -> str:
        """Names of both images, and of what tells pairs of the same images apart."""
        pair = self.pairs[index]
        flip = "flipped" if pair.attributes.get("flip") else ""
        return " ".join(part for part in (pair.source, pair.target, pair.category, pair.group, flip) if part)

    def load(self, index: int) -> PairSample:
        """Both images and their points, as they are in the files.

        Raises:
            DataError: an image that does not decode.
        """
        pair = self.pairs[index]
        source, target = (self.images.load(self._index[name]) for name in (pair.source, pair.target))
        return PairSample(self.sample_id(index), source, target, pair.source_points, pair.target_points, pair)

    def sizes(self, index: int) -> tuple[tuple[int, int], ...]:
        """(height, width) of source and target."""
        pair = self.pairs[index]
        return self.images.sizes(self._index[pair.source])[0], self.images.sizes(self._index[pair.target])[0]


class PairTransform:
    """Resize both images with their points, and mirror them.

    If both are mirrored, points go with their images. If one is, its points change names as well: the left ear of a
    mirrored cat is the right ear of the other. Points whose partner is not among the pair's become absent.
    Draws two random numbers.

    Args:
        resize: of images, to a square.
        flip: probability that both images are mirrored.
        flip_one: probability that one alone is, either by half; needs ``partners`` of the pair's category.
        partners: keypoints that change places in a mirror image.

    Raises:
        ConfigError: a probability out of range, or ``flip_one`` without ``partners``.
    """

    def __init__(
        self, resize: SquareBicubic, flip: float = 0.0, flip_one: float = 0.0, partners: Partners | None = None
    ) -> None:
        # a plain dict: loader workers that are not forked get it pickled
        self.resize, self.partners = resize, dict(partners or {})
        self.flip, self.flip_one = (
            number(flip, "dataset.flip", 0.0, 1.0),
            number(flip_one, "dataset.flip_one", 0.0, 1.0),
        )
        if flip_one and not self.partners:
            raise ConfigError(
                f"dataset.flip_one={flip_one}: it is not known which keypoints of this data set change places in a "
                "mirror image; use dataset.flip, which mirrors both images of a pair"
            )

    @property
    def random(self) -> bool:
        """True if anything is drawn."""
        return bool(self.flip or self.flip_one)

    def __call__(self, sample: PairSample, rng: np.random.Generator) -> PairSample:
        """The sample for training."""
        one, both = rng.random(2)
        source, source_points = self._resized(sample.source, sample.source_points)
        target, target_points = self._resized(sample.target, sample.target_points)
        # a data set may list the mirror images of its pairs as further pairs
        mirrored = [bool(sample.pair.attributes.get("flip")) != bool(both < self.flip)] * 2
        swap = None
        if one < self.flip_one:
            side = int(one < self.flip_one / 2)
            mirrored[side] = not mirrored[side]
            swap = self._places(sample.pair)
        if mirrored[0]:
            source, source_points = _mirror(source, source_points)
        if mirrored[1]:
            target, target_points = _mirror(target, target_points)
        if swap is not None:
            target_points = torch.where((swap >= 0)[:, None], target_points[swap], torch.nan)
            source_points = torch.where((swap >= 0)[:, None], source_points, torch.nan)
        views = (MIRRORED if mirrored[0] else "", MIRRORED if mirrored[1] else "")
        return replace(
            sample,
            source=source,
            target=target,
            source_points=source_points,
            target_points=target_points,
            views=views,
        )

    def _resized(self, sample: Sample, points: Tensor) -> tuple[Sample, Tensor]:
        height, width = sample.image.shape[:2]
        new = self.resize.shown(height, width)
        scale = torch.tensor([new[1] / width, new[0] / height])
        return self.resize(sample, np.random.default_rng(0)), (points + 0.5) * scale - 0.5

    def _places(self, pair: Pair) -> Tensor:
        """(N,) for every point the place of its partner, or -1.

        Raises:
            DataError: the pair's keypoints have no names, or the partners of its category are not known.
        """
        known = self.partners.get(pair.category)
        if known is None or len(pair.keypoint_ids) != len(pair):
            raise DataError(
                f"{pair.source} → {pair.target}: it is not known which keypoints of {pair.category!r} change places in "
                "a mirror image; leave dataset.flip_one out"
            )
        place = {name: index for index, name in enumerate(pair.keypoint_ids)}
        return torch.tensor([place.get(known.get(name, name), -1) for name in pair.keypoint_ids], dtype=torch.long)


def _mirror(sample: Sample, points: Tensor) -> tuple[Sample, Tensor]:
    width = sample.image.shape[1]
    return sample.map_all(lambda array: array[:, ::-1]), torch.stack([width - 1 - points[:, 0], points[:, 1]], dim=1)


def collate_pairs(samples: Sequence[PairSample], views: Sequence[str] = (), training: bool = False) -> PairBatch:
    """Batch of pairs whose images have one size.

    Args:
        samples: at least one.
        views: not used: the view of an image is whether it is mirrored.
        training: whether a head is trained on them.
    """
    most = max(len(sample.source_points) for sample in samples)

    def padded(points: Tensor) -> Tensor:
        return torch.nn.functional.pad(points, (0, 0, 0, most - len(points)), value=torch.nan)

    return PairBatch(
        source=collate_images([sample.source for sample in samples], [sample.views[0] for sample in samples], training),
        target=collate_images([sample.target for sample in samples], [sample.views[1] for sample in samples], training),
        pairs=tuple(sample.pair for sample in samples),
        source_points=torch.stack([padded(sample.source_points) for sample in samples]),
        target_points=torch.stack([padded(sample.target_points) for sample in samples]),
    )
