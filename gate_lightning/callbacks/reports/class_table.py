"""Per-class results as a table: CSV in the run folder, text in the log, dashboards."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.table import Table

from gate_lightning.callbacks.reports.dashboards import publish_table

__all__ = ["ClassTable"]

log = logging.getLogger(__name__)


class ClassTable(Callback):
    """Writes ``classes_<split>.csv`` after every evaluation; logs the table after those that are no part of training.

    It reads the task's ``per_class``: split → class → IoU, Acc, … (fractions; NaN where a class has none).
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The table of the validation split."""
        if not trainer.sanity_checking:
            self._report(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The table of the test split."""
        self._report(trainer, pl_module, "test")

    def _report(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        per_class: Any = pl_module.per_class
        if not trainer.is_global_zero or split not in per_class:
            return
        columns = ("class", *next(iter(per_class[split].values())))
        rows = [(name, *row.values()) for name, row in per_class[split].items()]
        path = Path(trainer.default_root_dir) / f"classes_{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)
        publish_table(trainer, f"classes_{split}", columns, rows)
        if trainer.state.fn != TrainerFn.FITTING:
            log.info("classes of %s, in percent\n%s", split, _text(columns, rows))


def _text(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> str:
    table = Table(box=None, header_style="", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column == "class" else "right", no_wrap=True)
    for name, *values in rows:
        table.add_row(name, *("–" if math.isnan(value) else f"{100 * value:.1f}" for value in values))
    console = Console(file=io.StringIO(), width=100, no_color=True)
    console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())
