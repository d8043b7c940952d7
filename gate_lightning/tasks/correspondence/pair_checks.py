"""Checks of pairs before they are measured, with errors that say what is missing."""

from __future__ import annotations

from collections.abc import Sequence

from lightning import Trainer

from gate_lightning.errors import ConfigError
from gate_lightning.metrics.pck import PCK
from gate_lightning.structures import Pair
from gate_lightning.utils.checks import did_you_mean

__all__ = ["require_boxes", "require_monitored"]


def require_monitored(trainer: Trainer, pck: PCK) -> None:
    """Raise ConfigError where validation does not give the metric that chooses the checkpoint."""
    known = [f"val/{variant.key}" for variant in pck.variants]
    wanted = [getattr(one, "monitor", None) for one in trainer.checkpoint_callbacks]
    for monitor in wanted:
        if monitor is not None and monitor not in known and not monitor.startswith(("train/", "weights/")):
            boxes = "" if any("_bbox_" in name for name in known) else "; bbox needs a box in all pairs"
            raise ConfigError(
                f"monitor={monitor}: validation on these pairs gives no such metric{boxes}; "
                f"{did_you_mean(monitor, known)}there are: {', '.join(known)}"
            )


def require_boxes(pairs: Sequence[Pair]) -> None:
    """Raise ConfigError where a pair lacks a box by which its mirror image could be chosen."""
    missing = [pair for pair in pairs if pair.source_box is None or pair.target_box is None]
    if missing:
        raise ConfigError(
            f"task.flip=instance compares objects in their boxes, and {len(missing)} of {len(pairs)} pairs lack "
            f"one, the first {missing[0].source} → {missing[0].target}; use task.flip=mutual"
        )
