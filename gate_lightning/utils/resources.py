"""Checks of free memory, of GPUs too, and disk before a work begins."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import torch

from gate_lightning.errors import ConfigError
from gate_lightning.utils.units import GIB, human_size

__all__ = ["check_disk", "check_memory", "free_on", "share_memory"]


class _Shared:
    """Processes that do the same work on this machine."""

    processes = 1


def share_memory(processes: int) -> None:
    """Say how many processes take memory for the same work at the same time: each may take its share."""
    _Shared.processes = processes


def check_memory(parts: dict[str, float], limit_gib: float | None, advice: str) -> None:
    """Check that there is enough memory.

    Args:
        parts: name of an object → bytes.
        limit_gib: most memory the whole process may take, what it takes already included; None for what is free now.
        advice: what to lower.

    Raises:
        ConfigError: it does not fit; says how much is needed for what, and the advice.
    """
    needed = sum(parts.values())
    if limit_gib is None:
        room, where = float(psutil.virtual_memory().available) / _Shared.processes, "are free"
        if _Shared.processes > 1:
            where = f"are free for each of {_Shared.processes} processes"
    else:
        room = limit_gib * GIB - psutil.Process().memory_info().rss
        where = f"are left of the {limit_gib:g} GiB allowed"
    if needed > room:
        listed = ", ".join(f"{human_size(count)} for {name}" for name, count in parts.items())
        raise ConfigError(
            f"this needs {human_size(needed)} of memory ({listed}), and {human_size(max(room, 0))} {where}. {advice}"
        )


def free_on(gpu: torch.device) -> int:
    """Bytes of a GPU that are free for this process, those included that torch holds and has not given to a tensor."""
    return int(torch.cuda.mem_get_info(gpu)[0] + torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu))


def check_disk(needed: float, folder: Path, what: str, advice: str) -> None:
    """Check that there is enough space on the disk of ``folder``, which need not exist yet.

    Raises:
        ConfigError: it does not fit.
    """
    existing = next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ConfigError(
            f"{what} need {human_size(needed)} below {folder}, and {human_size(free)} are free there. {advice}"
        )
