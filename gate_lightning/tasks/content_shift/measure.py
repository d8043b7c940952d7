"""The contract of a measure of content shift, and what most of them have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from gate_lightning.metrics.content_shift.statistic import Reduce, Statistic, single
from gate_lightning.tasks.content_shift.batch import ShiftBatch

__all__ = ["ImageMeasure", "Key", "Measure"]

#: candidate; timestep, or strength of noise, or None where there is one figure for all; layer id or None
Key = tuple[str, int | None, str | None]


class Measure(Protocol):
    """A figure of every candidate; what it is called is the key in ``task.measures``. Derive from it.

    Attributes:
        reads_labels: whether it looks at masks, so that it must not see images that results are measured on.
        relative: whether figures of a timestep and layer are measured against something of that timestep and layer, so
            that they rank techniques only.
    """

    reads_labels: bool = False
    relative: bool = False

    def missing(self, batch: ShiftBatch) -> str | None:
        """Reason why it cannot be measured here (no masks, no text …), asked before the first batch; or None.

        It is then left out, with the reason in table and terminal; so it is where `update` or `result` raises an error
        of this package.
        """

    def update(self, batch: ShiftBatch) -> None:
        """Look at a batch of the sample."""

    def result(self) -> Mapping[Key, Statistic]:
        """Statistics of all images so far, in their order."""


class ImageMeasure(Measure):
    """Base of measures whose statistics of an image need no other image.

    Subclasses define `update`, which calls `add`.

    Attributes:
        higher_is_better: whether a larger figure means less shift.
        reduce: from means of the statistics to the figure.
    """

    higher_is_better: bool = True
    reduce: Reduce = staticmethod(single)

    def __init__(self) -> None:
        self._rows: dict[Key, list[Tensor]] = {}
        self._anchors: dict[Key, str] = {}

    def missing(self, batch: ShiftBatch) -> str | None:
        """Reason why it cannot be measured here, or None; see `Measure`."""
        return None

    def update(self, batch: ShiftBatch) -> None:
        """Count the images of a batch in; see `Measure`."""
        raise NotImplementedError(f"{type(self).__name__}.update")

    def add(
        self, candidate: str, timestep: int | None, layer: str | None, *statistics: Tensor, anchor: str = ""
    ) -> None:
        """Keep statistics (B,) of the images of a batch."""
        key = (candidate, timestep, layer)
        self._rows.setdefault(key, []).append(torch.stack([one.detach().cpu().double() for one in statistics], dim=1))
        self._anchors[key] = anchor

    def result(self) -> dict[Key, Statistic]:
        """Statistics of all images so far; see `Measure`."""
        return {
            key: Statistic(torch.cat(rows), self.higher_is_better, self.reduce, self._anchors[key])
            for key, rows in self._rows.items()
        }
