"""Scores of every class: CSV in the run folder, text in the log, dashboards."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lightning import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from gate_lightning.callbacks.reports.base import SplitReport
from gate_lightning.callbacks.reports.dashboards import publish_table
from gate_lightning.tasks.base import SegmentationResults

__all__ = ["ClassTable"]

log = logging.getLogger(__name__)

#: the log shows those of these columns that there are, sorted by the first one: all classes up to so many, else so many
#: at both ends, and so many characters of a name
COLUMNS = ("IoU", "Acc", "share")
MOST, SHOWN, WIDEST = 30, 10, 16


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
        path = publish_table(trainer, f"classes_{split}", columns, rows)
        if trainer.state.fn != TrainerFn.FITTING:
            log.info("classes of %s in percent (more: %s)\n%s", split, path, class_text(scores))


def class_text(scores: Mapping[str, Mapping[str, float]]) -> str:
    """IoU, Acc and share of the classes in percent, in columns side by side; of more than 30 classes the worst and the
    best, by IoU (by Acc, where there is none)."""
    names = list(scores)
    if len(names) <= MOST:
        return "\n".join(_blocks(names, scores))
    first = _columns(scores)[0]
    known = sorted((name for name in names if not math.isnan(scores[name][first])), key=lambda one: scores[one][first])
    worst, best = known[:SHOWN], known[-SHOWN:][::-1]
    lowest = [f"the {len(worst)} lowest {first}s of {len(names)} classes", *_blocks(worst, scores)]
    return "\n".join([*lowest, f"the {len(best)} highest", *_blocks(best, scores)])


def _columns(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [column for column in COLUMNS if column in next(iter(scores.values()))]


def _blocks(names: Sequence[str], scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Rows of the classes, the second half beside the first, and a line of titles."""
    width = min(max(len(name) for name in [*names, "class"]), WIDEST)
    title = "  ".join(["class".ljust(width), *(column.rjust(5) for column in _columns(scores))])
    rows = [_row(name, scores[name], width) for name in names]
    half = math.ceil(len(rows) / 2)
    right = [*rows[half:], ""]
    pairs = zip([title, *rows[:half]], [title if rows[half:] else "", *right], strict=False)
    return [f"{one}    {other}".rstrip() for one, other in pairs]


def _row(name: str, values: Mapping[str, float], width: int) -> str:
    shown = name if len(name) <= width else f"{name[: width - 1]}…"
    cells = [
        "–" if math.isnan(values[column]) else f"{100 * values[column]:.1f}" for column in COLUMNS if column in values
    ]
    return "  ".join([shown.ljust(width), *(cell.rjust(5) for cell in cells)])
