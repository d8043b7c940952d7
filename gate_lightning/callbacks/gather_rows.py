"""Rows of a table that several processes have measured, each its share of the images."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

__all__ = ["of_all_processes"]

_Row = TypeVar("_Row")


def of_all_processes(rows: list[_Row], world_size: int) -> list[_Row]:
    """The rows of all processes, those of process 0 first. All of them have to call it.

    Args:
        rows: of this process; they must pickle.
        world_size: number of processes.
    """
    if world_size == 1:
        return list(rows)
    gathered: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(gathered, rows)
    return [row for part in gathered for row in part]
