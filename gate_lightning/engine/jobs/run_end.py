"""The last lines of a run: what came out, where it is, and what to do next."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from lightning import LightningModule, Trainer

from gate_lightning.callbacks.report import REPORT
from gate_lightning.callbacks.state.checkpoint import RunCheckpoint
from gate_lightning.callbacks.state.export import Export
from gate_lightning.tasks.base import BaseTask, SegmentationResults
from gate_lightning.tasks.correspondence.semantic import CorrespondenceResults
from gate_lightning.utils.commands import override, quoted
from gate_lightning.utils.console import HEADLINE
from gate_lightning.utils.protocols import missing_members
from gate_lightning.utils.units import duration, human_size, measured

__all__ = ["headline", "tell", "tell_callbacks"]

log = logging.getLogger(__name__)

One = TypeVar("One")

#: metrics that a headline without a monitored one names
_MOST = 4


def tell(
    trainer: Trainer, task: BaseTask, metrics: Mapping[str, float], seconds: float, monitor: str | None = None
) -> None:
    """Log the headline, then the places of images, report and metrics, and the next command.

    Args:
        trainer: of the run; its ``default_root_dir`` is the run folder.
        task: that was trained.
        metrics: final ones, shares as fractions.
        seconds: that the run has taken.
        monitor: metric that the headline is about where there was no validation to choose by.
    """
    if not trainer.is_global_zero:
        return
    folder = Path(trainer.default_root_dir)
    keeper = _callback(trainer, RunCheckpoint)
    best = None if keeper is None or keeper.best_step is None else keeper
    text = task.headline() or headline(metrics, best.monitor if best else monitor, best.best_step if best else None)
    log.info("done in %s: %s", duration(seconds), text, extra=HEADLINE)
    for line in _places(folder):
        log.info("%s", line)
    export = _callback(trainer, Export)
    if export is not None and export.written is not None:
        log.info("%s", task.usage(export.written))
    if not missing_members(task, SegmentationResults):
        log.info("label your own images: python eval.py %s input=<image or folder>", override("run", folder))
    if not missing_members(task, CorrespondenceResults):
        log.info("compare it with another run: python eval.py tool=compare %s", _with_another(folder))


def headline(metrics: Mapping[str, float], monitor: str | None = None, step: int | None = None) -> str:
    """The monitored metric and what it is, then its counterpart on the test images; else the metrics of the last split.

    >>> headline({"val/mIoU": 0.6779, "test/mIoU": 0.6711, "test/loss": 0.5}, "val/mIoU", 500)
    'val/mIoU 67.8 % (the best in validation, at step 500), test/mIoU 67.1 %'
    """
    test = f"test/{(monitor or '').partition('/')[2]}"
    if monitor is not None and monitor not in metrics and test in metrics:  # only measured on test images
        monitor = test
    if monitor is not None and monitor in metrics:
        chosen = "" if step is None else f" (the best in validation, at step {step})"
        parts = [f"{monitor} {measured(monitor, metrics[monitor])}{chosen}"]
        other = f"test/{monitor.partition('/')[2]}"
        if other != monitor and other in metrics:
            parts.append(f"{other} {measured(other, metrics[other])}")
        return ", ".join(parts)
    for split in ("test/", "val/", ""):
        shares_first = sorted(metrics, key=lambda name: (not measured(name, 0.0).endswith("%"), name))
        names = [name for name in shares_first if name.startswith(split) and "/" in name]
        if names:
            return ", ".join(f"{name} {measured(name, metrics[name])}" for name in names[:_MOST])
    return "no metric was measured"


def tell_callbacks(trainer: Trainer, task: LightningModule, metrics: Mapping[str, float]) -> None:
    """Call ``on_run_end(trainer, task, metrics)`` of every callback that has it: the run's files are complete."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        hook = getattr(callback, "on_run_end", None)
        if hook is not None:
            hook(trainer, task, metrics)


def _places(folder: Path) -> list[str]:
    found = []
    if any((folder / "images").glob("*.png")):
        found.append(f"images: {folder / 'images'}")
    report = folder / REPORT
    if report.is_file():
        found.append(f"report: {report} ({human_size(report.stat().st_size)})")
    return [*found, f"all metrics, as fractions: {folder / 'metrics.json'}"]


def _with_another(folder: Path) -> str:
    """Override that names a run and a place for another one, for a shell."""
    named = str(folder) if override("run", folder) == f"run={folder}" else quoted(str(folder))
    return f'"run=[{named},<another run>]"'


def _callback(trainer: Trainer, kind: type[One]) -> One | None:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((one for one in callbacks if isinstance(one, kind)), None)
