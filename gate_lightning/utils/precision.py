"""Precision of computation: autocast around frozen networks, and TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["allow_tf32", "own_precision", "rounded_products"]


@contextmanager
def own_precision(device: torch.device) -> Iterator[None]:
    """Context without autocast on ``device``: networks compute in the type of their weights.

    Autocast would convert all weights that are not trained anew in every pass, and those of networks that are to stay
    in float32, too.
    """
    if not torch.amp.is_autocast_available(device.type):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield


def allow_tf32(on: bool) -> None:
    """Choose whether GPUs compute products and convolutions of float32 in TF32, of 10 bits' precision, in this process.

    The only place that says so; the CPU is not concerned.
    """
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


def rounded_products(device: torch.device) -> bool:
    """True if products or convolutions of float32 are computed in TF32 on ``device``.

    Left to itself, torch does so in convolutions alone.
    """
    allowed = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    return allowed and _has_tf32(device)


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda"
