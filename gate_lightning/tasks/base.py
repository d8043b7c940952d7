"""Base class of tasks with frozen parts: optimiser, small checkpoints, exact resume.

A checkpoint holds the trainable part's weights and buffers, optimiser, schedule, random state of every process, and a
description of the frozen parts instead of their weights.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from lightning import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer

from gate_lightning.data.card import ClassLabels
from gate_lightning.data.core.resume import batches_per_epoch
from gate_lightning.errors import ConfigError, NotFiniteError, ResumeError
from gate_lightning.structures import Conditions, Extractor, ImageBatch
from gate_lightning.tasks.random_state import capture_random_state, restore_random_state
from gate_lightning.utils.files import differences, plain_json
from gate_lightning.utils.finite import all_finite, not_finite_in
from gate_lightning.utils.lightning_private import is_attached
from gate_lightning.utils.processes import gathered
from gate_lightning.utils.state_dicts import misfits

__all__ = ["BaseTask", "ReadsFeatures", "SegmentationResults", "UncertainResults"]

log = logging.getLogger(__name__)


class SegmentationResults(Protocol):
    """Results of a task that classifies pixels, read by reports after the evaluation of a split.

    Attributes:
        labels: classes, palette and ignored value.
        per_class: split → class → score → fraction, NaN where a class has none.
        confusion: split → (K, K) pixels, rows: truth, columns: prediction.
    """

    labels: ClassLabels
    per_class: dict[str, dict[str, dict[str, float]]]
    confusion: dict[str, Tensor]


class UncertainResults(SegmentationResults, Protocol):
    """Results of an ensemble, read by reports.

    Attributes:
        uncertainty: (B, H, W) disagreement of the members on the last batch, in nats.
    """

    uncertainty: Tensor | None


class ReadsFeatures(Protocol):
    """A task on frozen features.

    Attributes:
        extractor: images (B, 3, H, W) in [-1, 1] and conditions → features.
    """

    extractor: Extractor


class BaseTask(LightningModule):
    """A LightningModule that trains some of its parts and never saves the others.

    The random numbers of training (dropout) are a stream of their own, which validation, reports and data loaders
    between two training steps do not advance, so a resumed run draws the numbers of an uninterrupted one.

    Args:
        optimizer: takes the trainable parameters; None for a task that trains nothing.
        scheduler: takes the optimiser and the number of optimiser steps; stepped once per optimiser step. None for a
            constant learning rate.

    Attributes:
        batch_type: class of the training batches; the data module's must be that, or one derived from it.
        allowed_changes: what may differ between a checkpoint and this task: "frozen" (other frozen parts),
            "world_size".
        final_splits: splits that a training run evaluates at its end.
        shown: metrics of training that the display shows. Not ``prog_bar`` of `log`: Lightning would wait for their
            values in every step.
        training_free: where its parts have no weights to be trained, it is evaluated as it is configured (``eval.py``
            without ``run``).
        without_weights: options that leave such a task no weights, for messages.
        classifies_images: whether its result is a class of every image (`class_shares`), no label map (`label_maps`).
        continues_evaluation: whether an evaluation that was stopped can be gone on with (`go_on`).
        steps_bounds: optimiser steps after which the task itself stops training, at least and at most; infinite where
            only the trainer ends it.
    """

    #: names of children that are frozen: not saved, but for those of their parameters that are trainable
    frozen_parts: tuple[str, ...] = ("extractor",)
    #: whether parts of the backbone are trained, which then takes weights in float32
    trains_backbone: bool = False
    batch_type: type = ImageBatch
    final_splits: tuple[str, ...] = ()
    shown: tuple[str, ...] = ("train/loss",)
    training_free: bool = False
    without_weights: str = "amalgamation=concat head=descriptors"
    classifies_images: bool = False
    continues_evaluation: bool = False

    def label_maps(self, images: Tensor, conditions: Conditions, size: tuple[int, int]) -> Tensor:
        """Label maps (B, *size) int64 of images (B, 3, H, W) in [-1, 1]; ConfigError where the task makes none."""
        raise ConfigError(f"{type(self).__name__} makes no label maps")

    def class_shares(self, images: Tensor, conditions: Conditions) -> Tensor:
        """Shares (B, K) of the classes of images (B, 3, H, W) in [-1, 1]; ConfigError where the task gives none."""
        raise ConfigError(f"{type(self).__name__} gives images no classes")

    def remember(self, data: Any) -> None:
        """Read the training images of a data module that predictions compare with, where there are such."""

    def go_on(self, folder: Path, split: str, data: Any) -> None:
        """Take over what a stopped evaluation of a split, in a run folder, has finished."""
        raise ConfigError(f"{type(self).__name__} measures all at once")

    def usage(self, folder: Path) -> str:
        """Last words of a run on the part it has exported below ``folder``: where it is, how it is used."""
        return f"trained part: {folder}"

    def headline(self) -> str | None:
        """Result that the last lines of a run begin with; None: the monitored metric."""
        return None

    @property
    def steps_bounds(self) -> tuple[float, float]:
        """Optimiser steps after which the task itself stops training, at least and at most; infinite: it does not."""
        return math.inf, math.inf

    def __init__(
        self,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        self.allowed_changes: frozenset[str] = frozenset()
        self._make_optimizer, self._make_scheduler = optimizer, scheduler
        self._random_state: dict[str, Any] | None = None
        self._loss: Tensor | None = None
        self._batch: Any = None
        # the frozen parts' weights are not in the file; `on_load_checkpoint` checks all others
        self.strict_loading = False

    def frozen_description(self) -> dict[str, Any]:
        """Identity and settings of the frozen parts, JSON-able; compared when a checkpoint is loaded."""
        return {}

    def trained_parameters(self) -> list[nn.Parameter]:
        """Parameters that the optimiser moves."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @property
    def has_weights(self) -> bool:
        """True if there is anything to be trained that results depend on; a loss's own weights are nothing by
        themselves."""
        return any(one.requires_grad for name, one in self.named_parameters() if name.split(".", 1)[0] != "loss")

    def parameter_groups(self) -> list[Any]:
        """Argument of the optimiser: parameters, or groups of parameters with settings of their own."""
        return self.trained_parameters()

    def configure_optimizers(self) -> Any:
        """Optimiser over the trainable parameters, schedule per optimiser step (not per batch or epoch).

        Raises:
            ConfigError: if nothing is trainable, or a schedule is asked for a run without an end.
        """
        if self._make_optimizer is None or not self.trained_parameters():
            raise ConfigError("nothing to train: no part of this task has trainable parameters")
        optimizer = self._make_optimizer(self.parameter_groups())
        if self._make_scheduler is None:
            return optimizer
        scheduler = self._make_scheduler(optimizer, total_steps=_total_steps(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def setup(self, stage: str) -> None:
        """Tell processes that train together to leave out of their exchange what nobody changes.

        Every process reads the frozen weights itself; sent around they would cost their size at the start, and their
        buffers at every step. What they compute of is compared by `frozen_description`.
        """
        state = {*dict(self.named_parameters()), *dict(self.named_buffers())}
        frozen = {name for name in state if name.split(".", 1)[0] in self.frozen_parts}
        trained = {name for name, one in self.named_parameters() if one.requires_grad}
        # the name that torch's DistributedDataParallel looks for
        self._ddp_params_and_buffers_to_ignore = sorted(frozen - trained)

    # random state -----------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Begin the stream of training's random numbers here, unless a checkpoint has restored it."""
        # frozen parts stay in evaluation mode on purpose
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
        if self._random_state is None:
            self._random_state = capture_random_state(self.device)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Restore the stream of random numbers to the end of the last training step."""
        self._batch = batch
        if self._random_state is not None:
            restore_random_state(self._random_state, self.device)

    def on_after_backward(self) -> None:
        """Save the stream of random numbers (training draws none after the backward pass), and check the step."""
        self._random_state = capture_random_state(self.device)
        loss, self._loss = self._loss, None
        # loss scaling (trainer.precision=16-mixed) leaves out steps of infinite gradients by itself
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        groups = [] if scaled else [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        gradients = [one.grad for group in groups for one in group["params"] if one.grad is not None]
        if not all_finite([*([] if loss is None else [loss]), *gradients]):
            self.check_labels(self._batch)
            raise self._diverged(loss)

    def check_labels(self, batch: Any) -> None:
        """Raise DataError for labels that are no class; of a batch whose loss is not finite (see `PixelLoss`)."""

    def on_before_backward(self, loss: Tensor) -> None:
        """Keep the loss for the check behind the backward pass."""
        self._loss = loss.detach()

    def _diverged(self, loss: Tensor | None) -> NotFiniteError:
        """Error that ends training before the optimiser has stepped, so that weights and checkpoints are whole."""
        what = f"the loss is {float(loss)}" if loss is not None and not all_finite((loss,)) else ""
        named = (name for name, one in self.named_parameters() if one.grad is not None and not all_finite((one.grad,)))
        what = what or f"the gradient of {next(named, 'a weight')} is not finite"
        optimizer: Any = self.trainer.optimizers[0]
        precision = self.trainer.precision
        lower = "" if precision == "32-true" else f"; of precisions, 32-true in place of {precision}"
        names = getattr(getattr(self._batch, "conditions", None), "sample_ids", getattr(self._batch, "captions", ()))
        of = f" (images {', '.join(names[:4])}{' …' if len(names) > 4 else ''})" if names else ""
        return NotFiniteError(
            f"step {self.trainer.global_step + 1}: {what}{of}; nothing of this step is saved. "
            f"Lower optimizer.lr ({optimizer.param_groups[0]['lr']:g} now), or set trainer.gradient_clip_val=1.0{lower}"
        )

    # checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Drop frozen weights; add their description and the random state of every process.

        Raises:
            NotFiniteError: weights or moments of the optimiser are not finite: such a state is never written.
        """
        checkpoint["state_dict"] = dict(self._saved_tensors(checkpoint["state_dict"]))
        trained = {"state_dict": checkpoint["state_dict"], "optimizer_states": checkpoint.get("optimizer_states", [])}
        bad = list(not_finite_in(trained))
        if bad:
            raise NotFiniteError(
                f"step {checkpoint.get('global_step')}: {len(bad)} of the trained tensors are not finite, first "
                f"{bad[0]}; no checkpoint of it is written. Lower optimizer.lr, or set trainer.gradient_clip_val=1.0"
            )
        checkpoint["frozen"] = plain_json(self.frozen_description())
        state = self._random_state or capture_random_state(self.device)
        checkpoint["random_state"] = gathered(state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is one of this task, and take over the random state where training goes on.

        Raises:
            ResumeError: other frozen parts, other trainable weights, or another number of processes.
        """
        self._check_frozen(checkpoint.get("frozen"))
        self._check_weights(checkpoint["state_dict"])
        if is_attached(self) and self.trainer.state.fn == TrainerFn.FITTING:
            self._take_random_state(checkpoint.get("random_state", []))

    def _saved_tensors(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        frozen = self.frozen_parts
        return (
            (name, value) for name, value in state.items() if name in trained or name.split(".", 1)[0] not in frozen
        )

    def _check_frozen(self, saved: Any) -> None:
        changes = differences(saved, plain_json(self.frozen_description()))
        if not changes:
            return
        listed = "\n  ".join(changes)
        text = f"the checkpoint was trained on other features than this run has (checkpoint → now):\n  {listed}"
        if "frozen" not in self.allowed_changes:
            raise ResumeError(
                f"{text}\nUse the backbone, techniques and layers it was trained with, or train anew; or add "
                f"allow_changes=true if you mean it (in Python, load_run(…, allow_changes=True))."
            )
        log.warning("%s", text)

    def _check_weights(self, saved: Mapping[str, Tensor]) -> None:
        own = dict(self._saved_tensors(self.state_dict()))
        problems = misfits(saved, own, "the checkpoint")
        if problems:
            listed = "\n  ".join(problems[:8]) + (f"\n  and {len(problems) - 8} more" if len(problems) > 8 else "")
            raise ResumeError(f"the checkpoint's trained weights do not fit this task:\n  {listed}")

    def _take_random_state(self, states: list[dict[str, Any]]) -> None:
        if len(states) != self.trainer.world_size:
            if "world_size" in self.allowed_changes:
                return
            raise ResumeError(
                f"the checkpoint was written by {len(states)} processes, there are {self.trainer.world_size} now; "
                "go on with as many (trainer.devices), or allow the change"
            )
        self._random_state = states[self.global_rank]


def _total_steps(trainer: Trainer) -> int:
    """Optimiser steps of the whole run.

    Lightning's own ``estimated_stepping_batches`` starts the training data's iterator, which is too early: where a
    resumed run goes on is not known yet.
    """
    limits = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        source = trainer.datamodule if trainer.datamodule is not None else trainer.lightning_module  # type: ignore[attr-defined]
        batches = batches_per_epoch(trainer, len(source.train_dataloader()))
        limits.append(math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs)
    if not limits:
        raise ConfigError("a learning-rate schedule needs an end: set trainer.max_steps or trainer.max_epochs")
    return min(limits)
