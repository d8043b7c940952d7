"""Processes of this machine that share out work, and values of all processes of a distributed run."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

__all__ = ["gathered", "run_in_processes"]

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


def run_in_processes(work: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> int:
    """Call ``work`` in a process of its own for each of the arguments, and wait for all; where one fails, the others
    get SIGTERM.

    Args:
        work: a function of a module; it leaves by SystemExit where it fails.
        arguments: its positional arguments, by process; must pickle.

    Returns:
        Exit status of the first process that failed, negative for a signal; 0 if none did.
    """
    # spawned, not forked: a child must not inherit threads, nor a GPU that was looked at
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=work, args=given) for given in arguments]
    try:
        for child in children:
            child.start()
        waiting = set(children)
        while waiting:
            multiprocessing.connection.wait([child.sentinel for child in waiting])
            waiting = {child for child in waiting if child.is_alive()}
            failed = [child.exitcode for child in children if child.exitcode]
            if failed:
                return failed[0] or 0
        return 0
    finally:
        for child in children:
            if child.is_alive():
                child.terminate()
        for child in children:
            if child.pid is not None:
                child.join()
