"""The HTML report at the end of a run, or of several."""

from __future__ import annotations

import logging
from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from gate_lightning.errors import GateError
from gate_lightning.tools.report.page import INSTALL
from gate_lightning.tools.report.report import REPORT, write_report
from gate_lightning.utils.commands import override
from gate_lightning.utils.console import HEADLINE
from gate_lightning.utils.units import human_size

__all__ = ["REPORT", "Report", "try_report"]

log = logging.getLogger(__name__)


class Report(Callback):
    """Writes ``report.html`` into the run folder when the run is over."""

    def on_run_end(self, trainer: Trainer, pl_module: LightningModule, metrics: dict[str, float]) -> None:
        """Write the report; the run's own files are complete, and its last lines name this one."""
        try_report(Path(trainer.default_root_dir), told=False)


def try_report(folder: Path, metric: str | None = None, told: bool = True) -> None:
    """Write the report of a run or sweep, or say in one line why there is none: its results are there without it.

    Args:
        folder: of a run, or of runs.
        metric: of several runs: what they are compared by.
        told: whether the log has a line on a report that was written.
    """
    try:
        path = write_report([folder], folder, metric)
        if told:
            log.info("report: %s (%s)", path, human_size(path.stat().st_size), extra=HEADLINE)
    except Exception as error:
        # at the end of a training of days, nothing that goes wrong in a page about it may count as its failure
        if isinstance(error.__cause__, ImportError):
            log.info("no report: jinja2 is not installed (%s)", INSTALL)
            return
        log.debug("report of %s", folder, exc_info=error)
        again = f"python eval.py tool=report {override('run', folder)}"
        kind = "" if isinstance(error, GateError) else f"{type(error).__name__}: "
        log.warning("no report: %s%s. Make it again with: %s", kind, error, again)
