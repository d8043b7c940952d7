"""What was asked of a pretended GPU: operations, copies between host and GPU, waits of the host; with their places."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

__all__ = ["Record", "place"]

_HERE = str(Path(__file__).parent)
#: packages that work for others: the caller is of interest, not they
_BELOW = ("/torch/", "/importlib/", "/contextlib.py", "/gate_lightning/backbones/kernels/dispatch.py", "<")
_OURS = "/gate_lightning/"


@dataclass
class Record:
    """Counters of what happened since the last `clear`.

    Attributes:
        operations: operation → how often; each is one kernel or more.
        views: the same of operations that write nothing.
        copies: "to GPU <place>" or "to host <place>" → how often.
        waits: "<reason> <place>" → how often the host had to wait until the GPU was done with all it had been given.
        copied_bytes: bytes copied between host and GPU.
        written_bytes: bytes of the results of operations.
    """

    operations: Counter[str] = field(default_factory=Counter)
    views: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    copied_bytes: int = 0
    written_bytes: int = 0

    def clear(self) -> None:
        """Count from zero."""
        self.__init__()  # type: ignore[misc]

    def wait(self, reason: str) -> None:
        """Count a wait, at the place of the call."""
        self.waits[f"{reason}: {place()}"] += 1

    def copy(self, direction: str, size: int, waits: bool) -> None:
        """Count a copy of ``size`` bytes at the place of the call, and whether the host waits for it."""
        self.copies[f"{direction}: {place()}"] += 1
        self.copied_bytes += size
        if waits:
            self.wait(f"copy {direction}")

    def __str__(self) -> str:
        lines = [
            f"{self.operations.total()} operations, {self.views.total()} views, {self.copies.total()} copies of "
            f"{self.copied_bytes} bytes, {self.waits.total()} waits, {self.written_bytes} bytes written"
        ]
        for title, counter in (("wait", self.waits), ("copy", self.copies)):
            lines += [f"  {count} × {title} {where}" for where, count in counter.most_common()]
        return "\n".join(lines)


def place() -> str:
    """File, line and function of the innermost caller; of a library's, the one of ours that called it too."""
    frame: FrameType | None = sys._getframe(1)
    library = ""
    while frame is not None:
        name = frame.f_code.co_filename
        below = name.startswith(_HERE) or any(part in name for part in _BELOW)
        if _OURS in name and not below:
            return f"{_named(frame, name.rsplit(_OURS, 1)[1])}{library and f' → {library}'}"
        if not library and not below:
            library = _named(frame, name.rsplit("/site-packages/", 1)[-1].rsplit("/tests/", 1)[-1])
        frame = frame.f_back
    return library


def _named(frame: FrameType, name: str) -> str:
    return f"{name}:{frame.f_lineno} {frame.f_code.co_name}"
