"""Semantic correspondence: keypoints of image pairs are matched by frozen features, as they are or with a network
trained on them, and counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gate_lightning.amalgamation.base import Amalgamation
from gate_lightning.amalgamation.joint_pca import JointPCA
from gate_lightning.errors import ConfigError
from gate_lightning.features.descriptors import ImageFeatures, descriptor_grids, image_features, joint_grids
from gate_lightning.heads.descriptors import PlainDescriptors
from gate_lightning.losses.contrastive import KeypointContrastiveLoss
from gate_lightning.metrics.pck import PCK, KeypointGroups, MeasuredPair
from gate_lightning.metrics.pck_variants import PCKVariant, pck_variants
from gate_lightning.ops.correspondence.grids import FeatureGrid
from gate_lightning.ops.correspondence.neighbours import instance_distance, mutual_distance
from gate_lightning.ops.correspondence.read_outs import ReadOut
from gate_lightning.structures import MIRRORED, Extractor, Features, ImageBatch, Pair, PairBatch
from gate_lightning.tasks.base import BaseTask
from gate_lightning.tasks.correspondence.image_views import (
    Described,
    Views,
    box_mask,
    mirror_images,
    object_lengths,
)
from gate_lightning.tasks.correspondence.open_pairs import OpenPairs, open_pairs, require_measured
from gate_lightning.tasks.correspondence.pair_checks import require_boxes, require_monitored
from gate_lightning.tasks.evaluation import branch_weights
from gate_lightning.utils.checks import check_choice

__all__ = ["CorrespondenceResults", "SemanticCorrespondence"]

log = logging.getLogger(__name__)

FLIPS = ("mutual", "instance")


class CorrespondenceResults(Protocol):
    """Results of a task that matches keypoints, read by reports after the evaluation of a split.

    Attributes:
        measured: split → its pairs with their matches.
        pck: computes the scores of these.
    """

    measured: dict[str, tuple[MeasuredPair, ...]]
    pck: PCK


class SemanticCorrespondence(BaseTask):
    """Matches the keypoints of image pairs by their descriptors, and counts the correct ones.

    Descriptors are frozen features → amalgamation → head. Where these have weights they are trained on the keypoints of
    pairs; where they have none (a single branch, or concatenation, without a convolution) there is nothing to train,
    and features are measured as they are.

    In evaluation every image passes the backbone once, whatever the number of its pairs: a pair is measured when the
    second of its images has come, and features are dropped after their last pair.

    The data module gives ``pairs_of(split)``, ``share_of(split)`` (the pairs of this process) and batches of the images
    of these; where these are padded, ``shown_size(height, width)``: what an image of that size fills of its batch.

    Args:
        extractor: frozen backbone and branches.
        amalgamation: features → pyramid; or `JointPCA`: features of a pair → descriptors.
        read_out: rule by which matches are read off.
        head: levels of the pyramid → descriptors; None for the levels themselves, resized to the finest one.
        loss: descriptors of both images, places of the keypoints in both, larger sides of the targets' objects, in
            positions → scalar; None for the contrastive loss.
        optimizer: takes the trainable parameters; None where nothing is trained.
        scheduler: takes the optimiser and the number of optimiser steps, or None.
        alphas, thresholds, averages, comparisons, reference, subsets: the variants of PCK, in all combinations; see
            `PCKVariant`. ``thresholds`` None: image sizes, and boxes where all pairs have them.
        keypoint_groups: category → groups of keypoints that look alike, for the ``geometry-aware`` subset. None: those
            that the data set knows (``keypoint_groups``), else those that change places in a mirror image.
        flip: None, or the distance by which the source or its mirror image is chosen, of each pair the one that is
            nearer to the target (GeoAware-SC's adaptive pose alignment): ``mutual`` (of mutual nearest neighbours) or
            ``instance`` (of the objects' positions, in their boxes). In the mirror image a keypoint with a partner in
            the pair is looked for at that partner's place. Needs a second pass for images that are sources.

    Raises:
        ConfigError: unknown names.
    """

    batch_type = PairBatch
    final_splits = ("val", "test")
    training_free = True
    amalgamation: Amalgamation | JointPCA
    head: nn.Module
    loss: nn.Module

    def __init__(
        self,
        extractor: Extractor,
        amalgamation: Amalgamation | JointPCA,
        read_out: ReadOut,
        head: nn.Module | None = None,
        loss: nn.Module | None = None,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
        alphas: Sequence[float] = (0.01, 0.05, 0.1, 0.15),
        thresholds: Sequence[str] | None = None,
        averages: Sequence[str] = ("image", "point", "image_by_category"),
        comparisons: Sequence[str] = ("le", "lt"),
        reference: str = "target",
        subsets: Sequence[str] = ("all",),
        keypoint_groups: KeypointGroups | None = None,
        flip: str | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        if flip is not None:
            check_choice(flip, "task.flip", FLIPS)
        self.extractor, self.amalgamation, self.read_out = extractor, amalgamation, read_out
        self.head = PlainDescriptors(amalgamation.out_channels) if head is None else head
        self.loss = KeypointContrastiveLoss() if loss is None else loss
        if isinstance(amalgamation, JointPCA) and list(self.head.parameters()):
            raise ConfigError(
                "amalgamation=joint_pca makes the descriptors of a pair, and no head reads them; use head=descriptors"
            )
        self.flip = flip
        self.measured: dict[str, tuple[MeasuredPair, ...]] = {}
        self._settings = (alphas, averages, comparisons, reference, subsets)
        self._thresholds, self._groups = thresholds, keypoint_groups
        self._variants(thresholds or ("img",))  # wrong settings are told of before anything is read
        self.pck = PCK(())
        self._partners: Mapping[str, Mapping[str, str]] = {}
        self._shown: Callable[[int, int], tuple[int, int]] | None = None
        self._open: OpenPairs[Pair, Views] = OpenPairs(())

    def frozen_description(self) -> dict[str, Any]:
        """Description of the extractor: all that features depend on."""
        return dict(self.extractor.description)

    # training ---------------------------------------------------------------------------------------------------

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Loss of a batch of pairs, and the amalgamation's regularization."""
        sides = (batch.source, batch.target)
        assert isinstance(self.amalgamation, Amalgamation)  # JointPCA has nothing to train
        features = [self.extractor(side.images, side.conditions) for side in sides]
        if batch.source.images.shape == batch.target.images.shape:  # one pass, and one batch for batch normalisation
            pyramids = [self.amalgamation(_joined(*features))]
        else:
            pyramids = [self.amalgamation(one) for one in features]
        described = [part for one in pyramids for part in self.head(one.levels).float().split(len(batch))]
        stride = self.amalgamation.strides[0]
        places = [(points + 0.5) / stride - 0.5 for points in (batch.source_points, batch.target_points)]
        loss: Tensor = self.loss(*described, *places, object_lengths(batch, self._shown).to(places[1]) / stride)
        regularization = [self.amalgamation.regularization(one) for one in pyramids]
        terms = [term for term in regularization if term is not None]
        if terms:
            loss = loss + torch.stack(terms).mean()
        self.log("train/loss", loss.detach(), batch_size=len(batch))
        named = zip(self.amalgamation.levels, pyramids[0].weights, strict=False)
        weights = branch_weights((f"weights/stride{level.stride}", level.fused, found, 2) for level, found in named)
        self.log_dict(weights, batch_size=len(batch))
        return loss

    def on_train_start(self) -> None:
        """Learn how the data module shows images; refuse what cannot be measured, before training rather than after."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self._shown = getattr(data, "shown_size", None)
        if self.trainer.limit_val_batches:
            require_monitored(self.trainer, self._measures(data, data.pairs_of("val")))

    # evaluation -------------------------------------------------------------------------------------------------

    def on_test_start(self) -> None:
        """Find the pairs of the test split."""
        self._begin("test")

    def on_validation_start(self) -> None:
        """Find the pairs of the validation split."""
        self._begin("val")

    def test_step(self, batch: ImageBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Keep the features of a batch of images, and measure the pairs that are complete now."""
        return {"measured": list(self._measured_by(batch))}

    validation_step = test_step

    def on_test_epoch_end(self) -> None:
        """Log every PCK of the test split."""
        self._end("test")

    def on_validation_epoch_end(self) -> None:
        """Log every PCK of the validation split."""
        self._end("val")

    def match(self, pair: Pair, source: Views, target: Described) -> Tensor:
        """Matches (N, 2) of a pair's keypoints, in pixels of the target's file."""
        plain = self._pair(source.plain, target)
        mirrored = None if source.mirrored is None else self._pair(source.mirrored, target)
        if mirrored is None or not self._mirror_is_nearer(pair, plain, mirrored):
            return self.read_out(*plain, pair.source_points)
        partners = self._partners.get(pair.category, {})
        place = {name: index for index, name in enumerate(pair.keypoint_ids)}
        order = [place.get(partners.get(name, name), place[name]) for name in pair.keypoint_ids] or range(len(pair))
        points = pair.source_points[list(order)].clone()
        points[:, 0] = pair.source_size[1] - 1 - points[:, 0]
        return self.read_out(*mirrored, points)

    def _pair(self, source: Described, target: Described) -> tuple[FeatureGrid, FeatureGrid]:
        """Descriptors of both images."""
        if isinstance(source, FeatureGrid) and isinstance(target, FeatureGrid):
            return source, target
        assert isinstance(self.amalgamation, JointPCA)
        assert isinstance(source, ImageFeatures) and isinstance(target, ImageFeatures)
        return joint_grids(self.amalgamation, source, target)

    def _begin(self, split: str) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self._partners, self._shown = getattr(data, "partners", {}), getattr(data, "shown_size", None)
        self.pck = self._measures(data, data.pairs_of(split))
        self._open = open_pairs(data, split)

    def _measures(self, data: Any, pairs: Sequence[Pair]) -> PCK:
        """All variants that are asked for, if they can be computed on these pairs."""
        thresholds = self._thresholds
        if thresholds is None:
            boxes = all(pair.target_box is not None and pair.source_box is not None for pair in pairs)
            thresholds = ("bbox", "img") if boxes else ("img",)
        groups = (
            self._groups
            or getattr(data, "keypoint_groups", None)
            or {
                category: [{name, other} for name, other in partners.items()]
                for category, partners in getattr(data, "partners", {}).items()
            }
        )
        pck = PCK(self._variants(thresholds), groups)
        pck.check(pairs)
        if self.flip == "instance":
            require_boxes(pairs)
        return pck

    def _end(self, split: str) -> None:
        measured, left = self.pck.measured(), len(self._open)
        self._open = OpenPairs(())
        require_measured(measured, left, split)
        self.measured[split] = measured
        self.log_dict({f"{split}/{key}": value for key, value in self.pck.compute(measured).items()})

    def _variants(self, thresholds: Sequence[str]) -> tuple[PCKVariant, ...]:
        alphas, averages, comparisons, reference, subsets = self._settings
        return pck_variants(alphas, thresholds, averages, comparisons, reference, subsets)

    def _measured_by(self, batch: ImageBatch) -> Iterator[MeasuredPair]:
        rows = [row for row, name in enumerate(batch.conditions.sample_ids) if self._open.wants(name)]
        if not rows:  # repeated images, which give all processes equally many batches
            return
        names = [batch.conditions.sample_ids[row] for row in rows]
        plain = self._grids(batch, rows, names)
        mirrored: dict[str, Described] = {}
        if self.flip is not None:
            sources = [row for row, name in zip(rows, names, strict=True) if name in self._open.sources]
            of = [batch.conditions.sample_ids[row] for row in sources]
            mirrored = dict(zip(of, self._grids(batch, sources, of, mirror=True), strict=True)) if sources else {}
        for name, grid in zip(names, plain, strict=True):
            for number, pair, source, target in self._open.arrive(name, Views(grid, mirrored.get(name))):
                yield self.pck.update(number, pair, self.match(pair, source, target.plain))

    def _grids(self, batch: ImageBatch, rows: list[int], names: list[str], mirror: bool = False) -> list[Described]:
        """Features kept of some images of a batch, or of their mirror images."""
        images, conditions = batch.images[rows], batch.conditions[rows]
        sizes = [self._open.sizes[name] for name in names]
        shown = None if self._shown is None else [self._shown(*size) for size in sizes]
        if mirror:
            views = tuple(f"{view}{MIRRORED}" for view in conditions.views)
            conditions = replace(conditions.map_controls(partial(mirror_images, shown=shown)), views=views)
            images = mirror_images(images, shown)
        if isinstance(self.amalgamation, JointPCA):
            return list(image_features(self.extractor, images, conditions, sizes, shown))
        return list(descriptor_grids(self.extractor, self.amalgamation, self.head, images, conditions, sizes, shown))

    def _mirror_is_nearer(
        self, pair: Pair, plain: tuple[FeatureGrid, FeatureGrid], mirrored: tuple[FeatureGrid, FeatureGrid]
    ) -> bool:
        if self.flip == "mutual":
            return mutual_distance(*mirrored) < mutual_distance(*plain)
        assert pair.source_box is not None and pair.target_box is not None
        here, there = box_mask(pair.source_box, pair.source_size), box_mask(pair.target_box, pair.target_size)
        return instance_distance(*mirrored, here.flip(-1), there) < instance_distance(*plain, here, there)


def _joined(first: Features, second: Features) -> Features:
    """Features of two batches as those of one."""
    return {
        branch: {layer: torch.cat([values, second[branch][layer]]) for layer, values in maps.items()}
        for branch, maps in first.items()
    }
