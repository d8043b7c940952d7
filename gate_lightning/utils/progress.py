"""Progress of a tool in the log."""

from __future__ import annotations

import logging
import time

from gate_lightning.utils.units import human_size

__all__ = ["Progress"]

log = logging.getLogger(__name__)

_REPORT_EVERY = 10.0  # seconds


class Progress:
    """Logs images done, pace and time left of this process every few seconds."""

    def __init__(self, total: int, rank: int, world: int, what: str) -> None:
        self.total, self.what = total, what
        self.who = f"process {rank + 1} of {world}: " if world > 1 else ""
        self.computed = self.there = self.bytes = 0
        self.start = self.said = time.monotonic()

    def step(self, computed: int, there: int) -> None:
        """Count images that were computed or stored already."""
        self.computed, self.there = self.computed + computed, self.there + there
        now, done = time.monotonic(), self.computed + self.there
        if now - self.said < _REPORT_EVERY or not self.computed:
            return
        self.said = now
        rate = self.computed / (now - self.start)
        minutes = (self.total - done) / rate / 60
        log.info("%s%d/%d images, %.2f a second, %.1f minutes left", self.who, done, self.total, rate, minutes)

    def summary(self) -> str:
        """Sentence about the images written."""
        there = f", of {self.there} there already" if self.there else ""
        return f"{self.who}{self.what} of {self.computed} images written ({human_size(self.bytes)}){there}"
