"""Label-scarce segmentation: classifiers of single pixels on frozen features (ddpm-segmentation, GATE)."""

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
from gate_lightning.data.label_scarce.datamodule import LabelScarceDataModule
from gate_lightning.errors import ConfigError
from gate_lightning.pixel_classifiers.amalgamation import PixelAmalgamation, PixelFusion
from gate_lightning.pixel_classifiers.base import PixelClassifier
from gate_lightning.pixel_classifiers.members import Members
from gate_lightning.pixel_classifiers.metrics import LabelScarceMetrics
from gate_lightning.pixel_classifiers.stopping import StoppingRule
from gate_lightning.pixel_classifiers.store import PixelStore, group_maps
from gate_lightning.pixel_classifiers.votes import PREDICTIONS, image_uncertainty, joint_labels, js_divergence
from gate_lightning.structures import Conditions, Extractor, PixelBatch, SegmentationBatch
from gate_lightning.tasks.evaluation import DenseTask, branch_weights
from gate_lightning.tasks.inference import height_width
from gate_lightning.tasks.label_scarce.features import StoreSettings, check_room, labelled_features
from gate_lightning.utils.checks import check_choice, whole_number
from gate_lightning.utils.dtypes import DTYPES
from gate_lightning.utils.finite import check_outputs

__all__ = ["LabelScarceTask"]

log = logging.getLogger(__name__)


class LabelScarceTask(DenseTask):
    """Frozen features → amalgamation → classifiers of single pixels, all members of the ensemble trained at once.

    Before the first step the features of the labelled images are computed (or read from the cache) and kept at native
    resolution; a step interpolates only the pixels it trains on. Every member sees its own pixels and stops by itself;
    it is then taken out of the tensors and out of the optimiser. Evaluation applies the first layers at the features'
    own resolution, image by image: no map of all features at full resolution is ever made.

    Args:
        extractor: images and conditions → features; frozen.
        amalgamation: backbone_groups of pixel features → fused ones.
        head: the members.
        backbone_groups: group → branches whose features it stacks.
        optimizer: takes the trainable parameters.
        scheduler: takes the optimiser and the number of steps, or None.
        labels: classes and ignored value.
        patience, start_epoch: of the stopping rule, see `StoppingRule`.
        max_steps_per_member: steps after which a member stops whatever the rule says; None for the paper's rule alone.
        prediction: "majority_vote" (the paper's) or "mean_probability".
        store_dtype: of the features that are kept: "float16", "bfloat16" or "float32". Evaluation rounds to it too.
        store_folder: folder on whose disk the training images' features are kept; None for memory: the GPU's where they
            fit, else the host's.
        memory_gib: most of the host's memory that the process may take; None for what is free.

    Attributes:
        uncertainty: (B, H, W) Jensen-Shannon divergence of the members, of the batch evaluated last.

    Raises:
        ConfigError: a number out of range or an unknown name.
    """

    batch_type = PixelBatch
    shown = ("train/loss", "train/members")
    final_splits = ("test",)
    amalgamation: PixelAmalgamation
    head: PixelClassifier

    def __init__(
        self,
        extractor: Extractor,
        amalgamation: PixelAmalgamation,
        head: PixelClassifier,
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
        if max_steps_per_member is not None:
            whole_number(max_steps_per_member, "max_steps_per_member", 1, optional="no cap")
        check_choice(prediction, "prediction", PREDICTIONS)
        self.extractor, self.amalgamation, self.head = extractor, amalgamation, head
        self.backbone_groups = {group: tuple(branches) for group, branches in backbone_groups.items()}
        self.labels, self.prediction = labels, prediction
        self.max_steps_per_member = max_steps_per_member
        self.store_settings = StoreSettings(store_dtype, store_folder, memory_gib)
        self.members = Members(nn.ModuleList([amalgamation, head]), head.members)
        self.stopping = StoppingRule(head.members, patience, start_epoch)
        metrics = LabelScarceMetrics(labels.num_classes, labels.ignore_index, labels.classes)
        self.metrics = nn.ModuleDict({"test": metrics})  # type: ignore[assignment]
        self.uncertainty: Tensor | None = None
        self._store: PixelStore | None = None
        self._losses = torch.zeros(head.members)
        self._image_uncertainty = MeanMetric()

    # training ---------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """See BaseTask; None where the head learns without gradients.

        Raises:
            ConfigError: the amalgamation has something to train and the head has not.
        """
        if any(parameter.requires_grad for parameter in self.head.parameters()):
            return super().configure_optimizers()
        if self.trained_parameters():
            raise ConfigError(f"{type(self.head).__name__} trains no amalgamation: use amalgamation=concat_pixels")
        return None

    @property
    def most_steps(self) -> float:
        """Steps after which every member stops, whatever the stopping rule says."""
        datamodule: LabelScarceDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        limits = (self.max_steps_per_member, self.head.most_steps(datamodule.pixels_per_batch))
        return min((float(limit) for limit in limits if limit is not None), default=math.inf)

    @property
    def steps_bounds(self) -> tuple[float, float]:
        """Steps after which training ends: at least, and at most as far as the task knows."""
        fewest = float(self.stopping.fewest_steps(int(self.trainer.num_training_batches)))
        return min(fewest, self.most_steps), self.most_steps

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
        datamodule: LabelScarceDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        trained = sum(parameter.numel() * parameter.element_size() for parameter in self.trained_parameters())
        place = check_room(self.extractor, datamodule, self.store_settings, trained, self.device)
        with self.trainer.precision_plugin.forward_context():  # evaluation, too, reads features in this precision
            self._store = labelled_features(
                self.extractor, datamodule, self.backbone_groups, self.store_settings, self.device, place
            )

    def training_step(self, batch: PixelBatch, batch_idx: int) -> Tensor | None:
        """Sum of the losses of the members that still train, which share no parameter; None if it has no gradient."""
        if self.stopping.finished:
            return None
        active = self.members.active
        assert self._store is not None
        whole = len(active) == len(batch.labels)  # members that all train are not picked
        images, positions, labels = (
            part if whole else part[active] for part in (batch.images, batch.positions, batch.labels)
        )
        sampled = self._store.sample(images, positions)
        fusion: PixelFusion = self.amalgamation({group: _on(self.device, value) for group, value in sampled.items()})
        losses = self.head.losses(fusion.features, labels)
        self._losses = losses.detach()
        self.log("train/loss", self._losses.mean(), batch_size=len(active))
        self.log("train/members", float(len(active)), batch_size=len(active))
        found = (("weights", self.backbone_groups[group], weights, 3) for group, weights in fusion.weights.items())
        self.log_dict(branch_weights(found), batch_size=len(active))
        loss = self.amalgamation.losses(losses, fusion).sum()
        return loss if loss.requires_grad else None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then take out the members for which this step was the last.

        Here and not in a later hook: a checkpoint that is written after this step must know who has stopped.
        """
        super().optimizer_step(*args, **kwargs)
        if self.stopping.finished:
            return
        stopped = self.stopping.update(self._losses, self.current_epoch)
        if int(self.stopping.steps.max()) >= self.most_steps:
            stopped = torch.ones_like(stopped)
            self.stopping.active[:] = False
        if not bool(stopped.any()):
            return
        gone = self.members.active[stopped].tolist()
        log.info("step %d: member %s stopped", int(self.stopping.steps.max()), ", ".join(map(str, gone)))
        self.members.stop(stopped, self.trainer.optimizers[0])
        self.trainer.should_stop = self.stopping.finished

    def on_train_end(self) -> None:
        """Free the memory that the features of the labelled images take."""
        self._store = None

    # evaluation -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def member_logits(self, images: Tensor, conditions: Conditions, size: tuple[int, int]) -> list[Tensor]:
        """Logits of every member, B times (M, K, *size), for images (B, 3, H, W) in [-1, 1]."""
        features = self.extractor(images, conditions)
        dtype = DTYPES[self.store_settings.dtype]  # rounded as those that were trained on
        maps = [group_maps(features, self.backbone_groups, row, dtype) for row in range(len(images))]
        with self.members.whole():
            weight = self.head.first_weight
            found = [self.head.dense(self.amalgamation.dense(one, weight, size)) for one in maps]
        for logits, name in zip(found, conditions.sample_ids, strict=True):
            check_outputs(logits, "predictions", (name,))
        return found

    def ensemble(self, images: Tensor, conditions: Conditions, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Labels (B, *size) int64 of the ensemble, and its uncertainty (B, *size): Jensen-Shannon divergence in nats.

        If ``size`` is larger than the images, members vote at the size of the images: their logits at the size of a
        photograph would take gigabytes.
        """
        seen = height_width(images)
        voting = size if size[0] * size[1] <= seen[0] * seen[1] else seen
        found = self.member_logits(images, conditions, voting)
        labels = torch.stack([joint_labels(logits, self.prediction) for logits in found])
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
        labels, self.uncertainty = self.ensemble(batch.images, batch.conditions, height_width(batch.masks))
        self.metrics["test"].update(labels, batch.masks)
        for one in self.uncertainty:
            self._image_uncertainty.update(image_uncertainty(one))
        return labels

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the split: both mIoU conventions, and how unsure the ensemble is of an image."""
        self.report("test")
        self.log("test/uncertainty", self._image_uncertainty.compute())
        self._image_uncertainty.reset()
        steps = self.stopping.steps.double()
        self.log_dict({"train/steps_mean": steps.mean(), "train/steps_most": steps.max()})

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


def _on(device: torch.device, value: Tensor) -> Tensor:
    """``value`` on a device; from the host, a GPU does not wait for it."""
    if device.type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)
