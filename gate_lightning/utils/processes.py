"""Values of all processes of a distributed run."""

from __future__ import annotations

from typing import TypeVar

import torch

__all__ = ["gathered"]

Value = TypeVar("Value")


def gathered(value: Value) -> list[Value]:
    """The values of all processes, in the order of their ranks; every process has to call it.

    Args:
        value: of this process; must pickle.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Value | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # all are there now
