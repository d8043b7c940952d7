"""Base of data sets of pairs of views: images with their keypoints, each of them once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch

from gate_lightning.data.correspondence.annotations import Annotated, check_files, first_of
from gate_lightning.data.correspondence.images import ImagesOfPairs, PairImage
from gate_lightning.data.correspondence.paired_images import PairedImagesDataModule
from gate_lightning.data.files.report import SplitReport
from gate_lightning.data.geometric.keypoints import KeypointRule, Points, read_keypoints
from gate_lightning.data.samples import Collate, Sample, SampleSource, collate_images
from gate_lightning.errors import DataError
from gate_lightning.ops.correspondence.homographies import corners_of, fault_of
from gate_lightning.structures import ViewBatch, ViewPair

__all__ = ["ViewDataModule", "ViewSample", "collate_views", "homography_fault"]


@dataclass(frozen=True)
class ViewSample(Sample):
    """An image with its keypoints.

    Attributes:
        keypoints: (N, 2) float64 x, y in pixels of the file, also where ``image`` was resized.
        descriptors: (N, C) float32 of the detector, or None.
    """

    keypoints: Points = field(kw_only=True)
    descriptors: np.ndarray | None = field(kw_only=True)


def collate_views(samples: Sequence[ViewSample], views: Sequence[str] = (), training: bool = False) -> ViewBatch:
    """Batch of images of one size with their keypoints; see `collate_images`."""
    batch = collate_images(samples, views, training)
    found = [sample.descriptors for sample in samples]
    return ViewBatch(
        batch.images,
        batch.conditions,
        tuple(torch.from_numpy(sample.keypoints) for sample in samples),
        tuple(None if one is None else torch.from_numpy(one) for one in found),
    )


class ViewSource(ImagesOfPairs):
    """Images with their keypoints as a `SampleSource`.

    Args:
        images: sample id → image, in the order of the indices.
        keypoints: rule.
        files: sample id → name of its file of keypoints.
    """

    def __init__(self, images: Mapping[str, PairImage], keypoints: KeypointRule, files: Mapping[str, str]) -> None:
        super().__init__(images)
        self._rule, self._files = keypoints, dict(files)

    def load(self, index: int) -> ViewSample:
        """Image ``index``, not resized, with its keypoints.

        Raises:
            DataError: a file that does not decode, or is missing.
        """
        one = super().load(index)
        points, descriptors = self._rule(one.image, self._files[one.sample_id])
        return ViewSample(one.sample_id, one.image, one.caption, keypoints=points, descriptors=descriptors)


class ViewDataModule(PairedImagesDataModule[ViewPair]):
    """Pairs of images whose homography, or cameras and motion, are known. There is nothing but a test split.

    Subclasses set ``card`` and provide ``read``.

    Args:
        size: side of the square that images are resized to for the backbone, aspect not kept; 0 keeps them as they
            are.
        keypoints: rule by which keypoints are chosen; None for OpenCV's SIFT.
        subset: take at most so many pairs, evenly spread over their order; None for all.
        check_level: sanity check at start: ``quick`` or ``full``.
        loading: `ImageDataModule`'s arguments.

    Raises:
        ConfigError: a setting out of range.
    """

    batch_type: type = ViewBatch
    collate: Collate = staticmethod(collate_views)

    def __init__(
        self,
        size: int = 0,
        keypoints: KeypointRule | None = None,
        subset: int | None = None,
        check_level: str = "quick",
        **loading: Any,
    ) -> None:
        super().__init__(size, subset, check_level, **loading)
        self.keypoints = KeypointRule() if keypoints is None else keypoints

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the available splits."""
        return ("test",)

    def keypoint_file(self, name: str) -> str:
        """Name of the file of keypoints of an image."""
        return PurePosixPath(name).with_suffix(".kp").as_posix()

    def make_source(self, split: str) -> SampleSource:
        """The images of a split, in the order in which pairs need them."""
        images = self.annotated(split).images
        return ViewSource(images, self.keypoints, {name: self.keypoint_file(name) for name in images})

    def checked(self, split: str, annotated: Annotated[ViewPair], level: str) -> SplitReport:
        """Faults of a split: images, pairs that are there twice, files of keypoints."""
        seen = Counter((pair.source, pair.target) for pair in annotated.pairs)
        twice = [f"{one[0]} → {one[1]} is there {count} times" for one, count in seen.items() if count > 1]
        errors = [f"{first_of(split, twice, 'pairs')}; keep one of each"] if twice else []
        wrong, empty = self._check_keypoints(annotated)
        errors += [first_of(split, wrong, "files of keypoints")] if wrong else []
        warnings = [f"{first_of(split, empty, 'files')}; nothing is matched there"] if empty else []
        return check_files(split, annotated, level, errors, warnings)

    def _check_keypoints(self, annotated: Annotated[ViewPair]) -> tuple[list[str], list[str]]:
        """Errors about files of keypoints, and warnings about empty ones."""
        wrong, empty = [], []
        sizes = {name: size for pair in annotated.pairs for name, size in _sizes_of(pair)}
        for name in annotated.images:
            path = self.keypoints.file(self.keypoint_file(name))
            if path is None:
                return [], []
            try:
                if not len(read_keypoints(path, sizes[name])):
                    empty.append(f"{path} has no keypoints")
            except DataError as error:
                wrong.append(str(error))
        return wrong, empty

    def counts(self, split: str, annotated: Annotated[ViewPair]) -> tuple[str, ...]:
        """Pairs of a split, by group."""
        groups = Counter(pair.group for pair in annotated.pairs)
        rows = [f"    {name or '(without group)':<28}{count:>8} pairs" for name, count in sorted(groups.items())]
        return (*super().counts(split, annotated), *(rows if len(groups) > 1 else ()))


def homography_fault(matrix: np.ndarray, size: tuple[int, int], where: object) -> str:
    """Sentence about a homography that cannot be the truth of an image of ``size`` (H, W); "" for none."""
    fault = fault_of(matrix, corners_of(size))
    return f"{where}: the homography {fault}; expected source → target in pixels of the files" if fault else ""


def _sizes_of(pair: ViewPair) -> tuple[tuple[str, tuple[int, int]], ...]:
    return (pair.source, pair.source_size), (pair.target, pair.target_size)
