"""Where a tool computes, and which share of the work is this process's."""

from __future__ import annotations

import os

import torch

from gate_lightning.errors import ConfigError

__all__ = ["device_of", "place"]


def place() -> tuple[int, int]:
    """This process's number and how many there are, as torchrun and ``tool.processes`` set RANK and WORLD_SIZE."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world:
        raise ConfigError(f"RANK={rank} and WORLD_SIZE={world} in the environment: expected 0 ≤ RANK < WORLD_SIZE")
    return rank, world


def device_of(device: str) -> torch.device:
    """The device named, or for "auto" this process's GPU where there is one, else the CPU."""
    if device != "auto":
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise ConfigError(f"device={device!r}: expected auto, cpu, cuda or cuda:<number>") from error
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
