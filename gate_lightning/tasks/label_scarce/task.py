"""Label-scarce segmentation: an ensemble of pixel classifiers on frozen features (ddpm-segmentation, GATE)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from gate_lightning.data.card import ClassLabels
from gate_lightning.data.core.prediction import PredictionBatch
from gate_lightning.errors import ConfigError
from gate_lightning.pixel_classifiers.amalgamation import GroupMaps, PixelAmalgamation, PixelFusion
from gate_lightning.pixel_classifiers.ensemble import PixelEnsemble, member_losses
from gate_lightning.pixel_classifiers.members import Members
from gate_lightning.pixel_classifiers.metrics import LabelScarceMetrics
from gate_lightning.pixel_classifiers.stopping import StoppingRule
from gate_lightning.pixel_classifiers.store import PixelStore
from gate_lightning.pixel_classifiers.votes import image_uncertainty, js_divergence, majority_vote, mean_probability
from gate_lightning.structures import Conditions, Features, PixelBatch, SegmentationBatch
from gate_lightning.tasks.base import BaseTask
from gate_lightning.tasks.label_scarce.features import StoreSettings, check_room, labelled_features
from gate_lightning.utils.dtypes import DTYPES

__all__ = ["LabelScarceTask"]

log = logging.getLogger(__name__)

PREDICTIONS = ("majority_vote", "mean_probability")


class LabelScarceTask(BaseTask):
    """Frozen features → amalgamation → classifiers of single pixels, all members of the ensemble trained at once.

    Before the first step the features of the labelled images are computed (or read from the cache) and kept at native
    resolution; a step interpolates only the pixels it trains on. Every member sees its own pixels and stops by itself;
    what has stopped is taken out of the tensors and out of the optimiser. The prediction is the vote of all members.

    Evaluation applies the first layers at the features' own resolution, image by image: no map of all features at
    full resolution is ever made.

    Args:
        extractor: images and conditions → features; frozen.
        amalgamation: backbone_groups of pixel features → fused ones.
        head: the ensemble.
        backbone_groups: group → branches whose features it stacks.
        optimizer: takes the trainable parameters.
        scheduler: takes the optimiser and the number of steps, or None.
        labels: classes and ignored value.
        patience, start_epoch: of the stopping rule, see `StoppingRule`.
        max_steps_per_member: steps after which a member stops whatever the rule says; None for the paper's rule alone.
        prediction: "majority_vote" (the paper's) or "mean_probability".
        store_dtype: of the features that are kept: "float16", "bfloat16" or "float32". Evaluation rounds to it too.
        store_folder: folder on whose disk the training images' features are kept; None for memory.
        memory_gib: most memory that the process may take; None for what is free.

    Attributes:
        uncertainty: (B, H, W) Jensen-Shannon divergence of the members, of the batch evaluated last.

    Raises:
        ConfigError: a number out of range or an unknown name.
    """

    final_splits = ("test",)
    extractor: Any
    amalgamation: PixelAmalgamation
    head: PixelEnsemble

    def __init__(
        self,
        extractor: nn.Module,
        amalgamation: PixelAmalgamation,
        head: PixelEnsemble,
        backbone_groups: Mapping[str, Sequence[str]],
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., Any] | None,
        labels: ClassLabels,
        patience: int = 50,
        start_epoch: int = 4,
        max_steps_per_member: int | None = None,
        prediction: str = "majority_vote",
        store_dtype: str = "float16",
        store_folder: str | None = None,
        memory_gib: float | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        if max_steps_per_member is not None and max_steps_per_member < 1:
            raise ConfigError(f"max_steps_per_member is {max_steps_per_member}; expected at least 1 step, or null")
        if prediction not in PREDICTIONS:
            raise ConfigError(f"prediction is {prediction!r}; expected one of: {', '.join(PREDICTIONS)}")
        self.extractor, self.amalgamation, self.head = extractor, amalgamation, head
        self.backbone_groups = {group: tuple(branches) for group, branches in backbone_groups.items()}
        self.labels, self.prediction = labels, prediction
        self.max_steps_per_member = max_steps_per_member
        self.store_settings = StoreSettings(store_dtype, store_folder, memory_gib)
        self.members = Members(nn.ModuleList([amalgamation, head]), head.members)
        self.stopping = StoppingRule(head.members, patience, start_epoch)
        self.metrics = LabelScarceMetrics(labels.num_classes, labels.ignore_index, labels.classes)
        self.uncertainty: Tensor | None = None
        #: split → class → IoU_ddpm, IoU, Acc, … of the last evaluation
        self.per_class: dict[str, dict[str, dict[str, float]]] = {}
        #: split → (K, K) pixels of the last evaluation, rows: mask, columns: prediction
        self.confusion: dict[str, Tensor] = {}
        self._store: PixelStore | None = None
        self._losses = torch.zeros(head.members)
        self._image_uncertainty = MeanMetric()

    def frozen_description(self) -> dict[str, Any]:
        """The extractor's description."""
        description: dict[str, Any] = self.extractor.description
        return description

    # training ---------------------------------------------------------------------------------------------------

    @property
    def steps_bounds(self) -> tuple[float, float]:
        """Steps after which training ends: at least, and at most as far as the task knows."""
        most = math.inf if self.max_steps_per_member is None else float(self.max_steps_per_member)
        return min(float(self.stopping.fewest_steps(int(self.trainer.num_training_batches))), most), most

    def on_fit_start(self) -> None:
        """Get the features of the labelled images ready.

        Raises:
            ConfigError: they do not fit into memory or onto the disk, or gradients are to be accumulated.
        """
        super().on_fit_start()
        if self.trainer.accumulate_grad_batches != 1:
            raise ConfigError("members stop step by step: use trainer.accumulate_grad_batches=1, and larger batches")
        if self.stopping.finished:
            self.trainer.should_stop = True  # a resumed run that had only its evaluation left
            return
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        trained = sum(parameter.numel() * parameter.element_size() for parameter in self.trained_parameters())
        check_room(self.extractor, datamodule, self.store_settings, trained)
        precision = self.trainer.precision_plugin.forward_context()
        self._store = labelled_features(
            self.extractor, datamodule, self.backbone_groups, self.store_settings, self.device, precision
        )

    def training_step(self, batch: PixelBatch, batch_idx: int) -> Tensor | None:
        """Sum of the losses of the members that still train; they share no parameter."""
        if self.stopping.finished:
            return None
        active = self.members.active
        fusion = self._fuse(batch.images[active], batch.positions[active])
        losses = member_losses(self.head(fusion.features), batch.labels[active])
        self._losses = losses.detach()
        self.log("train/loss", self._losses.mean(), prog_bar=True, batch_size=len(active))
        self.log("train/members", float(len(active)), prog_bar=True, batch_size=len(active))
        self.log_dict(self._branch_weights(fusion), batch_size=len(active))
        return self.amalgamation.losses(losses, fusion).sum()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then take out the members for which this step was the last.

        Here and not in a later hook: a checkpoint that is written after this step must know who has stopped.
        """
        super().optimizer_step(*args, **kwargs)
        if self.stopping.finished:
            return
        stopped = self.stopping.update(self._losses, self.current_epoch)
        if self.max_steps_per_member is not None and int(self.stopping.steps.max()) >= self.max_steps_per_member:
            stopped = torch.ones_like(stopped)
            self.stopping.active[:] = False
        if not bool(stopped.any()):
            return
        gone = self.members.active[stopped].tolist()
        log.info("step %d: member %s stopped", int(self.stopping.steps.max()), ", ".join(map(str, gone)))
        optimizer = self.trainer.optimizers[0]
        self.members.stop(stopped, optimizer)
        self.trainer.should_stop = self.stopping.finished

    def on_train_end(self) -> None:
        """Free the features."""
        self._store = None

    def _fuse(self, images: Tensor, positions: Tensor) -> PixelFusion:
        assert self._store is not None
        sampled = self._store.sample(images, positions)
        fusion: PixelFusion = self.amalgamation({name: value.to(self.device) for name, value in sampled.items()})
        return fusion

    def _branch_weights(self, fusion: PixelFusion) -> dict[str, Tensor]:
        """Mean weight of every branch, where there is a choice."""
        found: dict[str, Tensor] = {}
        for group, weights in fusion.weights.items():
            branches = self.backbone_groups[group]
            if len(branches) > 1:
                axes = [axis for axis in range(weights.dim()) if axis != 3]
                means = weights.detach().float().mean(dim=axes)
                found |= {f"weights/{branch}": means[index] for index, branch in enumerate(branches)}
        return found

    # evaluation -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def member_logits(self, images: Tensor, conditions: Conditions, size: tuple[int, int]) -> list[Tensor]:
        """Logits of every member, image by image.

        Args:
            images: (B, 3, H, W) in [-1, 1], of the size trained on.
            conditions: what belongs to them.
            size: (height, width) of the result.

        Returns:
            B times (M, K, *size).
        """
        features: Features = self.extractor(images, conditions)
        with self.members.whole():
            return [
                self.head.dense(self.amalgamation.dense(self._maps(features, row), self.head.first_weight, size))
                for row in range(len(images))
            ]

    def ensemble(self, images: Tensor, conditions: Conditions, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What the members say together, and how much they disagree; see ``member_logits``.

        Where a result larger than the images is asked for, the members vote at the size of the images: their
        logits at the size of a photograph would take gigabytes.

        Returns:
            Labels (B, *size) int64, and Jensen-Shannon divergence (B, *size) in nats.
        """
        seen = _size(images)
        voting = size if size[0] * size[1] <= seen[0] * seen[1] else seen
        found = self.member_logits(images, conditions, voting)
        labels = torch.stack([self._joined(logits) for logits in found])
        divergences = torch.stack([js_divergence(logits) for logits in found])
        if voting == size:
            return labels, divergences
        enlarged = interpolate(labels[:, None].double(), size, mode="nearest-exact")[:, 0].long()
        return enlarged, interpolate(divergences[:, None], size, mode="bilinear", align_corners=False)[:, 0]

    def label_maps(self, images: Tensor, conditions: Conditions, size: tuple[int, int]) -> Tensor:
        """Label maps (B, *size) int64 of images (B, 3, H, W)."""
        return self.ensemble(images, conditions, size)[0]

    def test_step(self, batch: SegmentationBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Label maps (B, H, W) of a test batch; counts them."""
        assert batch.masks is not None
        labels, self.uncertainty = self.ensemble(batch.images, batch.conditions, _size(batch.masks))
        self.metrics.update(labels, batch.masks)
        for one in self.uncertainty:
            self._image_uncertainty.update(image_uncertainty(one))
        return labels

    def predict_step(self, batch: SegmentationBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Label maps (B, H, W) int64 at the size of the files, or of the images."""
        if isinstance(batch, PredictionBatch) and batch.sizes:
            return self.label_maps(batch.images, batch.conditions, batch.sizes[0])
        return self.label_maps(
            batch.images, batch.conditions, _size(batch.images if batch.masks is None else batch.masks)
        )

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the split: both mIoU conventions, and how unsure the ensemble is of an image."""
        self.log_dict({f"test/{name}": value for name, value in self.metrics.compute().items()}, prog_bar=True)
        self.per_class["test"] = self.metrics.per_class()
        self.confusion["test"] = self.metrics.confusion_matrix().cpu()
        self.metrics.reset()
        self.log("test/uncertainty", self._image_uncertainty.compute())
        self._image_uncertainty.reset()
        steps = self.stopping.steps.double()
        self.log_dict({"train/steps_mean": steps.mean(), "train/steps_most": steps.max()})

    def _joined(self, logits: Tensor) -> Tensor:
        if self.prediction == "majority_vote":
            return majority_vote(logits.argmax(dim=1), logits.shape[1])
        return mean_probability(logits).argmax(dim=0)

    def _maps(self, features: Features, row: int) -> GroupMaps:
        """Maps of one image, rounded as those that were trained on."""
        dtype = DTYPES[self.store_settings.dtype]
        return {
            group: [[value[row].to(dtype) for value in features[branch].values()] for branch in branches]
            for group, branches in self.backbone_groups.items()
        }

    # checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add which members have stopped, when, and with what weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["members"] = self.members.state_dict()
        checkpoint["stopping"] = self.stopping.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over which members have stopped; see BaseTask."""
        self.members.load_state_dict(checkpoint["members"])
        self.stopping.load_state_dict(checkpoint["stopping"])
        super().on_load_checkpoint(checkpoint)


def _size(images: Tensor) -> tuple[int, int]:
    """(height, width)."""
    return images.shape[-2], images.shape[-1]
