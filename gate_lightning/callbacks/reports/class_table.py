"""Scores of every class: CSV in the run folder, text in the log, dashboards."""

from __future__ import annotations

import logging
import math
from typing import Any, ClassVar

from lightning import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from gate_lightning.callbacks.reports.base import SplitReport
from gate_lightning.callbacks.reports.dashboards import publish_table
from gate_lightning.tasks.base import SegmentationResults

__all__ = ["ClassTable"]

log = logging.getLogger(__name__)


class ClassTable(SplitReport[SegmentationResults, Any]):
    """Writes ``classes_<split>.csv`` after every evaluation; logs the table after those outside training.

    It holds the task's ``per_class``: IoU, Acc, … of every class as fractions, NaN where a class has none.
    """

    during_training: ClassVar[bool] = True

    def on_split_end(self, trainer: Trainer, task: SegmentationResults, split: str, rows: list[Any]) -> None:
        """Write the table, and log it outside training."""
        scores = task.per_class[split]
        columns = ["class", *next(iter(scores.values()))]
        rows = [[name, *values.values()] for name, values in scores.items()]
        publish_table(trainer, f"classes_{split}", columns, rows)
        if trainer.state.fn != TrainerFn.FITTING:
            log.info("classes of %s, in percent\n%s", split, _text(columns, rows))


def _text(columns: list[str], rows: list[list[Any]]) -> str:
    """A table in columns of equal width, fractions as percentages."""
    percent = [["–" if math.isnan(value) else f"{100 * value:.1f}" for value in values] for _, *values in rows]
    lines = [columns, *([row[0], *values] for row, values in zip(rows, percent, strict=True))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [name.ljust(widths[0]), *(value.rjust(width) for value, width in zip(values, widths[1:], strict=True))]
        )
        for name, *values in lines
    )
