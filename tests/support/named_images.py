"""Images under the names that caches go by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gate_lightning.structures import PairBatch


def named_equally(loader: Callable[[int], Iterable[Any]]) -> int:
    """Images that are shown again under the names that caches go by, all of them with equal pixels."""
    known: dict[tuple[object, ...], Tensor] = {}
    again = 0
    for batch in (batch for epoch in range(2) for batch in loader(epoch)):
        for side in (batch.source, batch.target) if isinstance(batch, PairBatch) else (batch,):
            own = side.conditions
            assert own.source is not None
            for index, image in enumerate(side.images):
                name = (own.source, own.sample_ids[index], own.views[index], own.windows[index], image.shape)
                again += name in known
                assert torch.equal(known.setdefault(name, image), image)
    return again
