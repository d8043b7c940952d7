"""The kernels of group norm against torch's in float64; as a command, with TRITON_INTERPRET=1, interpreted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gate_lightning.backbones.kernels import group_norm

__all__ = ["check", "maps"]

#: relative L2 distance; the interpreter cuts bfloat16 off
TOLERANCES = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 5e-3}
#: by which float32 is off at most, in means
ROUNDING = 5e-7
#: groups of 10, 4 and 30 channels, in several parts and in one; means in standard deviations
INTERPRETED = [
    ((2, 320, 8, 12), 0, torch.float32),
    ((1, 128, 33, 17), 100, torch.float32),
    ((1, 128, 33, 17), 0, torch.bfloat16),
    ((1, 960, 5, 3), 0, torch.float32),
    ((1, 960, 5, 3), 100, torch.float16),
]


def maps(*shape: int, mean: float = 0.0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """Random channels_last maps whose channels differ in their standard deviations, 0.5 to 1.5."""
    values = torch.randn(shape, device=device).mul_(torch.rand(shape[1], 1, 1, device=device) + 0.5) + mean
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def check(shape: Sequence[int], mean: float, dtype: torch.dtype, affine: torch.dtype, device: str = "cpu") -> None:
    """Assert that the kernels compute group norm with 32 groups."""
    torch.manual_seed(0)
    given = maps(*shape, mean=mean, dtype=dtype, device=device)
    weight, bias = torch.randn(2, shape[1], device=device).to(affine)
    actual = group_norm.fused_group_norm(given, 32, weight, bias, 1e-5)
    expected = F.group_norm(given.double().contiguous(), 32, weight.double(), bias.double(), 1e-5)
    assert actual.dtype == dtype and actual.is_contiguous(memory_format=torch.channels_last)
    distance = float((actual - expected).norm() / expected.norm())
    assert distance < TOLERANCES[dtype] + mean * ROUNDING, (shape, mean, dtype, distance)


def _bounds(*given: Any) -> range:
    """Of a kernel's loop: Triton 3.6 itself gives numpy's arrays, which numpy 2.4 does not take for numbers."""
    return range(*(int(one.handle.data.item()) if hasattr(one, "handle") else one for one in given))


if __name__ == "__main__":
    vars(group_norm)["range"] = _bounds
    for one, offset, kind in INTERPRETED:
        check(one, offset, kind, torch.float32)
