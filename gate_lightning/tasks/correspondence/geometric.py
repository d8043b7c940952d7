"""Geometric correspondence: keypoints of views are matched by frozen features, and a homography or a pose is estimated
from the matches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gate_lightning.amalgamation.base import Amalgamation
from gate_lightning.errors import ConfigError
from gate_lightning.features.descriptors import descriptor_grids
from gate_lightning.heads.descriptors import PlainDescriptors
from gate_lightning.metrics.homography import MeasuredViews, ViewMetrics
from gate_lightning.ops.correspondence.estimators import Estimator
from gate_lightning.ops.correspondence.homographies import corners_of
from gate_lightning.ops.correspondence.neighbours import mutual_pairs
from gate_lightning.ops.correspondence.read_outs import METRICS
from gate_lightning.structures import Extractor, ViewBatch, ViewPair
from gate_lightning.tasks.base import BaseTask
from gate_lightning.tasks.correspondence.open_pairs import OpenPairs, open_pairs, require_measured
from gate_lightning.utils.checks import check_choice

__all__ = ["GeometricCorrespondence", "GeometricResults"]

DESCRIPTORS = ("features", "sift", "position")
SAMPLINGS = ("exact", "released")


class GeometricResults(Protocol):
    """Results of a task that matches views, read by reports after the evaluation of a split.

    Attributes:
        measured_views: split → its pairs with their matches.
        view_metrics: computes the numbers of these.
    """

    measured_views: dict[str, tuple[MeasuredViews, ...]]
    view_metrics: ViewMetrics


@dataclass(frozen=True)
class _Described:
    """Keypoints (N, 2) float64 of an image, in pixels of its file, and their descriptors (N, C)."""

    points: Tensor
    vectors: Tensor


class GeometricCorrespondence(BaseTask):
    """Matches the keypoints of views by their descriptors, and estimates from the matches what maps one onto the other.

    Nothing is trained. Every image passes the backbone once, whatever the number of its pairs; of its features the
    descriptors of its keypoints are kept, until its last pair has been measured.

    The data module gives ``pairs_of(split)``, ``share_of(split)`` (the pairs of this process) and batches of the images
    of these with their keypoints (`ViewBatch`).

    Args:
        extractor: frozen backbone and branches.
        amalgamation: features → pyramid.
        estimator: of homographies and poses.
        head: levels of the pyramid → descriptors; None for the levels themselves, resized to the finest one.
        descriptors: ``features``; or a control: ``sift``, SIFT's own of its keypoints, or ``position``, the place in
            the image by L2.
        metric: by which mutual nearest neighbours are found: ``cosine`` or ``l2``.
        sampling: where a keypoint's descriptor is read on the feature map: at its ``exact`` place, bilinearly, or as in
            the ``released`` code of DIFT, which is off by up to half a position (`FeatureGrid.sample_released`).
        corner_thresholds: pixels at which an estimated homography counts as accurate.
        match_thresholds: pixels at which a match counts as right.

    Raises:
        ConfigError: unknown names, or thresholds out of range.
    """

    batch_type = ViewBatch
    final_splits = ("test",)
    training_free = True
    amalgamation: Amalgamation
    head: nn.Module

    def __init__(
        self,
        extractor: Extractor,
        amalgamation: Amalgamation,
        estimator: Estimator,
        head: nn.Module | None = None,
        descriptors: str = "features",
        metric: str = "cosine",
        sampling: str = "exact",
        corner_thresholds: Sequence[float] = (1, 3, 5),
        match_thresholds: Sequence[float] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
    ) -> None:
        super().__init__()
        check_choice(descriptors, "task.descriptors", DESCRIPTORS)
        check_choice(metric, "task.metric", METRICS)
        check_choice(sampling, "task.sampling", SAMPLINGS)
        self.extractor, self.amalgamation = extractor, amalgamation
        self.head = PlainDescriptors(amalgamation.out_channels) if head is None else head
        self.estimator = estimator
        self.descriptors, self.sampling = descriptors, sampling
        self.metric = "l2" if descriptors == "position" else metric
        self.view_metrics = ViewMetrics(corner_thresholds, match_thresholds)
        self.measured_views: dict[str, tuple[MeasuredViews, ...]] = {}
        self._open: OpenPairs[ViewPair, _Described] = OpenPairs(())

    def frozen_description(self) -> dict[str, Any]:
        """Description of the extractor: all that features depend on."""
        return dict(self.extractor.description)

    def on_test_start(self) -> None:
        """Find the pairs of the test split."""
        self.view_metrics.reset()
        self._open = open_pairs(self.trainer.datamodule, "test")  # type: ignore[attr-defined]

    def test_step(self, batch: ViewBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Describe the keypoints of a batch of images, and measure the pairs that are complete now."""
        return {"measured": list(self._measured_by(batch))}

    def on_test_epoch_end(self) -> None:
        """Log every number of the test split."""
        measured, left = self.view_metrics.measured(), len(self._open)
        self._open = OpenPairs(())
        require_measured(measured, left, "test")
        self.measured_views["test"] = measured
        self.log_dict({f"test/{name}": value for name, value in self.view_metrics.compute(measured).items()})

    def measure(self, number: int, pair: ViewPair, source: _Described, target: _Described) -> MeasuredViews:
        """Match a pair, and estimate its geometry."""
        found = mutual_pairs(source.vectors, target.vectors, self.metric).cpu()
        points, matches = (side.points[index].numpy() for side, index in zip((source, target), found.T, strict=True))
        if pair.pose is None:
            estimate = self.estimator.homography(points, matches, corners_of(pair.source_size))
        else:
            cameras = pair.pose.source_camera.numpy(), pair.pose.target_camera.numpy()
            estimate = self.estimator.pose(points, matches, cameras)
        counts = len(source.points), len(target.points)
        return MeasuredViews(number, pair, counts, points, matches, estimate)

    def _measured_by(self, batch: ViewBatch) -> Iterator[MeasuredViews]:
        names = batch.conditions.sample_ids
        rows = [row for row, name in enumerate(names) if self._open.wants(name)]
        if not rows:  # repeated images, which give all processes equally many batches
            return
        for row, described in zip(rows, self._described(batch, rows), strict=True):
            for found in self._open.arrive(names[row], described):
                measured = self.measure(*found)
                self.view_metrics.update(measured)
                yield measured

    def _described(self, batch: ViewBatch, rows: list[int]) -> list[_Described]:
        """Keypoints of some images of a batch."""
        names = [batch.conditions.sample_ids[row] for row in rows]
        if self.descriptors == "sift":
            return [self._by_detector(batch, row) for row in rows]
        # equal places have equal descriptors, and the order of a file says nothing
        points = [torch.unique(batch.keypoints[row], dim=0) for row in rows]
        sizes = [self._open.sizes[name] for name in names]
        if self.descriptors == "position":
            sides = [one.new_tensor([width, height]) for one, (height, width) in zip(points, sizes, strict=True)]
            return [_Described(one, (one + 0.5) / side) for one, side in zip(points, sides, strict=True)]
        images, conditions = batch.images[rows], batch.conditions[rows]
        grids = descriptor_grids(self.extractor, self.amalgamation, self.head, images, conditions, sizes)
        read = {"exact": "sample", "released": "sample_released"}[self.sampling]
        return [_Described(one, getattr(grid, read)(one)) for grid, one in zip(grids, points, strict=True)]

    def _by_detector(self, batch: ViewBatch, row: int) -> _Described:
        vectors = batch.descriptors[row]
        if vectors is None:
            raise ConfigError(
                "task.descriptors=sift takes SIFT's own descriptors, and these keypoints have none; use "
                "dataset.keypoints.name=sift"
            )
        return _Described(batch.keypoints[row], vectors)
