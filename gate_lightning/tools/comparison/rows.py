"""Runs that are compared, and the rows of a comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["BROKEN", "ComparedRun", "Row", "counterpart"]

#: status of a run whose files cannot be read
BROKEN = "broken"


@dataclass(frozen=True)
class ComparedRun:
    """Settings, state and results of a run folder.

    Attributes:
        folder: run folder.
        label: its overrides without seed, bookkeeping and what all runs share, ``defaults`` if there are none.
        seed: differences are taken between runs of equal seed.
        status: done, failed, interrupted, running or broken.
        message: why it failed or stopped, or which of its files is damaged.
        metrics: final metrics by name (fractions), and the median of images per second where the run logged it.
        settings: its overrides without seed and bookkeeping.
    """

    folder: Path
    label: str
    seed: str
    status: str
    message: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """Runs of one label.

    Attributes:
        label: settings that not all runs share.
        runs: of the label.
        values: seed → metric.
        differences: to the baseline, of equal seeds.
        counterparts: seed → the same metric of the other split (test beside val, val beside test).
        baseline: label of the row that differences refer to, or None.
    """

    label: str
    runs: tuple[ComparedRun, ...]
    values: dict[str, float]
    differences: tuple[float, ...] = ()
    counterparts: dict[str, float] = field(default_factory=dict)
    baseline: str | None = None

    @property
    def failures(self) -> tuple[ComparedRun, ...]:
        """Runs without a final metric."""
        return tuple(run for run in self.runs if run.status != "done")


def counterpart(metric: str) -> str:
    """The same metric of the other split: ``test/mIoU`` of ``val/mIoU``, and the other way round."""
    split, slash, name = metric.partition("/")
    return {"val": "test", "test": "val"}.get(split, split) + slash + name
