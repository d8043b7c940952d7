"""Pace of a training and the time it has left."""

from __future__ import annotations

import math
import time
from collections import deque

__all__ = ["Clock"]

#: seconds that the pace is the mean of
WINDOW = 60.0


class Clock:
    """Times steps and validations.

    The pace is that of the last minute, without validations and without the first step, which waits for data. What is
    left are the steps at that pace and the validations as long as the last one, as often as they came so far.
    """

    def __init__(self) -> None:
        self.start(0)

    def start(self, step: int) -> None:
        """Begin to count at ``step``."""
        self._marks: deque[tuple[float, int]] = deque()
        self._paused = 0.0
        self._validated_at, self._interval, self._validation = step, 0, 0.0

    def step(self, step: int) -> None:
        """Note the end of a batch; ``step`` is the number of steps done."""
        now = time.monotonic()
        if not self._marks or step != self._marks[-1][1]:
            self._marks.append((now, step))
        while len(self._marks) > 2 and now - self._marks[1][0] > WINDOW:
            self._marks.popleft()

    def pause(self, step: int) -> None:
        """Note the begin of a validation."""
        self._paused = time.monotonic()
        if step > self._validated_at:
            self._interval, self._validated_at = step - self._validated_at, step

    def go_on(self) -> None:
        """Note the end of a validation."""
        self._validation = time.monotonic() - self._paused
        self._marks = deque((when + self._validation, step) for when, step in self._marks)

    @property
    def has_stepped(self) -> bool:
        """True if a batch has ended since `start`."""
        return bool(self._marks)

    @property
    def pace(self) -> float:
        """Seconds a step; NaN before the second one."""
        if len(self._marks) < 2:
            return math.nan
        (began, first), (ended, last) = self._marks[0], self._marks[-1]
        return (ended - began) / (last - first)

    def left(self, step: int, total: float) -> float:
        """Seconds from ``step`` to the last one, validations included; NaN where the pace is not known."""
        ahead = math.floor((total - self._validated_at) / self._interval) if self._interval and total < math.inf else 0
        return self.pace * (total - step) + self._validation * ahead
