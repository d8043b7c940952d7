"""Memory that torch takes, for the benchmarks of this folder."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

__all__ = ["peak"]


def peak(way: Callable[[], object]) -> int:
    """Most bytes that torch held at once while it ran, beyond those it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        way()
    held = highest = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda one: one.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest
