"""Device and process rank of a tool."""

from __future__ import annotations

import os

import torch

from gate_lightning.errors import ConfigError

__all__ = ["device_of", "place"]


def place() -> tuple[int, int]:
    """(rank, world size) of this process, from RANK and WORLD_SIZE as torchrun and ``tool.processes`` set them."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world:
        raise ConfigError(f"RANK={rank} and WORLD_SIZE={world} in the environment: expected 0 ≤ RANK < WORLD_SIZE")
    return rank, world


def device_of(device: str) -> torch.device:
    """Torch device by name; "auto" is this process's GPU, or the CPU where there is none."""
    if device != "auto":
        try:
            return torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise ConfigError(f"device={device!r}: expected auto, cpu, cuda or cuda:<number>") from error
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
