"""Base of reports on an evaluated split."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, ClassVar, Generic, TypeVar

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.structures import ClassificationBatch, SegmentationBatch
from gate_lightning.tasks.base import SegmentationResults
from gate_lightning.utils.processes import gathered
from gate_lightning.utils.protocols import missing_members

__all__ = ["SplitReport"]

Row = TypeVar("Row")
Results = TypeVar("Results")


class SplitReport(Callback, Generic[Results, Row]):
    """Collects rows from the batches of a split and writes a report after the last one.

    Subclasses define `on_split_end`, and `rows_of` where they need the images. Lightning's sanity check is never
    reported, a validation of a training only where `during_training` says so.

    Attributes:
        during_training: whether validations of a training are reported, too.
        splits: splits that are reported.
        reads: protocol that the task has to satisfy.
        of_masks: whether it compares label maps with masks, which images with one class each have not.
        count: number of rows that are kept: the first ones of the first process. None: all rows of all processes.

    Raises:
        ConfigError: when the trainer starts, if the task lacks what is reported.
    """

    during_training: ClassVar[bool] = False
    splits: ClassVar[tuple[str, ...]] = ("val", "test")
    reads: ClassVar[type] = SegmentationResults
    of_masks: ClassVar[bool] = False

    count: int | None = None

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def rows_of(self, task: Results, batch: SegmentationBatch, outputs: Tensor) -> Iterable[Row]:
        """Rows of the images of a batch, in their order, from the label maps (B, H, W) that the task returned."""
        return ()

    def kept(self, rows: list[Row]) -> list[Row]:
        """Rows, of those collected so far, that the report needs; asked after every batch, and of all processes."""
        return rows

    def on_split_end(self, trainer: Trainer, task: Results, split: str, rows: list[Row]) -> None:
        """Write the report; called in the first process."""
        raise NotImplementedError

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a task that lacks what is reported, before anything is computed."""
        missing = missing_members(pl_module, self.reads)
        if missing:
            names = ", ".join(missing)
            raise ConfigError(
                f"the callback {type(self).__name__} reports on tasks that have {names}, and "
                f"{type(pl_module).__name__} has none; switch it off: callbacks=quiet, or callbacks.<its name>=null"
            )
        if self.of_masks and issubclass(getattr(pl_module, "batch_type", object), ClassificationBatch):
            raise ConfigError(
                f"the callback {type(self).__name__} reports on masks, and {type(pl_module).__name__} classifies whole "
                "images; use callbacks=classification"
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the rows of an evaluation that was interrupted."""
        self._rows = []

    on_test_start = on_validation_start

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Collect rows of a validation batch."""
        self._collect(trainer, pl_module, "val", batch, outputs)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Collect rows of a test batch."""
        self._collect(trainer, pl_module, "test", batch, outputs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the validation split."""
        self._report(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the test split."""
        self._report(trainer, pl_module, "test")

    def _collect(self, trainer: Trainer, task: Any, split: str, batch: SegmentationBatch, outputs: Tensor) -> None:
        if not self._reported(trainer, split):
            return
        if self.count is None:
            self._rows = self.kept([*self._rows, *self.rows_of(task, batch, outputs)])
        elif trainer.is_global_zero and len(self._rows) < self.count:
            self._rows.extend(islice(self.rows_of(task, batch, outputs), self.count - len(self._rows)))

    def _report(self, trainer: Trainer, task: Any, split: str) -> None:
        if not self._reported(trainer, split):
            return
        rows, self._rows = self._rows, []
        if self.count is None:
            rows = self.kept([row for part in gathered(rows) for row in part])
        if trainer.is_global_zero:
            self.on_split_end(trainer, task, split, rows)

    def _reported(self, trainer: Trainer, split: str) -> bool:
        if split not in self.splits or trainer.sanity_checking:
            return False
        return self.during_training or trainer.state.fn != TrainerFn.FITTING
