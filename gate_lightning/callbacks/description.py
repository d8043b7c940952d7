"""Description of a run for dashboards, beside its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["RunDescription"]


@dataclass(frozen=True)
class RunDescription:
    """Name and settings of a run, as plain values without secrets.

    Attributes:
        name: says what differs from other runs.
        group: sweep or protocol that the run belongs to; None for a run by itself.
        job_type: ``train``, or ``summary`` of a sweep.
        tags: words to find it by.
        values: name → number, text or truth value: what runs are filtered, grouped and compared by.
        settings: the whole resolved configuration, nested.
        monitor: the metric that picks the best checkpoint; None where there is no best.
        mode: ``max`` or ``min``: which values of it are better.
    """

    name: str
    group: str | None = None
    job_type: str = "train"
    tags: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    monitor: str | None = None
    mode: str = "max"
