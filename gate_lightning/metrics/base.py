"""Base class of metrics that count pixels per class over a whole data set."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from torchmetrics import Metric

from gate_lightning.errors import ConfigError

__all__ = ["ClassMetric"]


class ClassMetric(Metric):
    """Counts per class, summed over all images and processes.

    Args:
        num_classes: K.
        ignore_index: mask value of pixels that do not count.
        class_names: K different names for ``per_class``; "0" … "K-1" if not given.

    Raises:
        ConfigError: if there are not K different names.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, num_classes: int, ignore_index: int = 255, class_names: Sequence[str] | None = None) -> None:
        super().__init__()
        names = [str(index) for index in range(num_classes)] if class_names is None else list(class_names)
        if num_classes < 2 or len(names) != num_classes or len(set(names)) != num_classes:
            raise ConfigError(
                f"num_classes is {num_classes} and class_names are {names}; expected two or more classes, and as many "
                "different names"
            )
        self.num_classes, self.ignore_index, self.class_names = num_classes, ignore_index, tuple(names)

    def summed(self) -> AbstractContextManager[Any]:
        """Context in which the counts are those of all processes, each of which must enter it."""
        context: AbstractContextManager[Any] = self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        )
        return context
