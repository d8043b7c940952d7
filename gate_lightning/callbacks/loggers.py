"""Loggers of metrics: a CSV file in the run folder, Weights & Biases, TensorBoard.

This module, ``wandb_run.py`` and ``reports/dashboards.py`` are the only ones that know the dashboards, which may be
absent.
"""

from __future__ import annotations

import csv
import errno
import importlib.util
import io
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from gate_lightning.callbacks.description import RunDescription
from gate_lightning.callbacks.wandb_run import WandbRun
from gate_lightning.errors import ConfigError
from gate_lightning.utils.files import write_atomically, write_csv, writing

__all__ = ["RunLog", "tensorboard_logger", "wandb_logger"]


class RunLog(Logger):
    """Metrics as ``metrics.csv`` in the run folder: one row per step, one column per metric.

    A resumed run goes on in the same file: rows behind its first new step go, what it measures again is replaced,
    the rest stays. (Lightning's own CSV logger deletes the file.)

    Args:
        run_folder: of the run.
    """

    def __init__(self, run_folder: str) -> None:
        super().__init__()
        self.path = Path(run_folder) / "metrics.csv"
        self._columns: list[str] = []
        self._row: dict[str, float] = {}
        #: where the row of this step begins in the file; None if it is not there yet
        self._offset: int | None = None

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.path.name

    @property
    def version(self) -> str:
        """Empty string: a run folder has one file."""
        return ""

    @property
    def save_dir(self) -> str:
        """Path of the run folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run folder has the whole configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write to the row of ``step``, at once: a run that is killed leaves all rows up to its last checkpoint."""
        number = int(step or 0)
        if not self._columns:
            self._columns = ["step"]
            self._continue_at(number)
        if self._row.get("step") != number:
            self._row, self._offset = {"step": number}, None
        self._row |= {name: float(value) for name, value in metrics.items() if name not in ("step", "epoch")}
        if self._row.keys() - set(self._columns):
            before = self._read()
            self._rewrite(before if self._offset is None else before[:-1])
            self._offset = None
        self._put_row()

    def _continue_at(self, step: int) -> None:
        """Keep the rows of an existing file before ``step``, and that of ``step`` as the one to add to."""
        rows = self._read()
        for row in rows:
            if int(row["step"]) == step:
                self._row = {"step": step} | {
                    name: float(value) for name, value in row.items() if value and name != "step"
                }
        self._rewrite([row for row in rows if int(row["step"]) < step])

    def _put_row(self) -> None:
        line = io.StringIO(newline="")
        csv.DictWriter(line, self._columns).writerow(self._row)
        with writing(self.path), self.path.open("r+b", buffering=0) as file:
            self._offset = file.seek(0, io.SEEK_END) if self._offset is None else file.seek(self._offset)
            content = line.getvalue().encode()
            try:
                if file.write(content) < len(content):  # what fits
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(self._offset)  # no half row
                raise
            file.truncate()

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Write all rows again, with their columns and those of the current row."""
        names = [name for row in [*rows[:1], self._row] for name in row]
        self._columns = list(dict.fromkeys([*self._columns, *names]))
        write_csv(self.path, self._columns, [[row.get(name, "") for name in self._columns] for row in rows])


def tensorboard_logger(run_folder: str, description: RunDescription | None = None) -> TensorBoardLogger:
    """TensorBoard: event files in ``tensorboard/`` of the run folder; ``tensorboard --logdir outputs`` shows all runs.

    A resumed run adds a file; steps that it does again are shown twice.

    Args:
        run_folder: of the run.
        description: what to tell of the run; its values are the hyperparameters.

    Raises:
        ConfigError: tensorboard is not installed.
    """
    _require("tensorboard")
    return _EventFiles(run_folder, description)


class _EventFiles(TensorBoardLogger):
    """TensorBoard's files, with the settings of the run as hyperparameters."""

    def __init__(self, run_folder: str, description: RunDescription | None) -> None:
        super().__init__(run_folder, "tensorboard", "", default_hp_metric=False)
        self.description = description

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write metrics, the first time settings before them."""
        if self.description is not None:
            self._write_settings(self.description)
            self.description = None
        super().log_metrics(metrics, step)

    def _write_settings(self, description: RunDescription) -> None:
        from torch.utils.tensorboard.summary import hparams

        values = {name: value for name, value in description.values.items() if value is not None}
        writer = self.experiment._get_file_writer()
        for part in hparams(values, {} if description.monitor is None else {description.monitor: None}):
            writer.add_summary(part)


def wandb_logger(
    run_folder: str,
    project: str = "gate-lightning",
    name: str | None = None,
    description: RunDescription | None = None,
) -> WandbRun:
    """Weights & Biases: online where a key is stored and the server answers, else into files of the run folder.

    It never asks, and never stops a training; ``WANDB_MODE`` decides where it is set. A resumed run continues the same
    run there.

    Args:
        run_folder: of the run.
        project: project on the server.
        name: of the run; None for what differs from other runs.
        description: what to tell of the run.

    Raises:
        ConfigError: wandb is not installed.
    """
    _require("wandb")
    folder = Path(run_folder)
    resumed = (folder / "wandb_id.txt").is_file()
    told = description or RunDescription(folder.name)
    return WandbRun(folder, project, _run_id(folder), told, name, resumed)


def _require(package: str) -> None:
    """Raise ConfigError where the package of a logger is not installed."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"logger={package} needs {package}, which is not installed: pip install {package}, or use logger=csv"
        )


def _run_id(folder: Path) -> str:
    path = folder / "wandb_id.txt"
    if not path.is_file():
        write_atomically(path, f"{uuid.uuid4().hex[:12]}\n".encode())
    return path.read_text().strip()
