"""Types that features can be stored in."""

from __future__ import annotations

import torch
from torch import Tensor

from gate_lightning.errors import CacheError

__all__ = ["DTYPES", "storable"]

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def storable(value: Tensor, dtype: torch.dtype, what: str, device: torch.device | str = "cpu") -> Tensor:
    """Contiguous copy of a tensor in ``dtype`` on a device.

    Raises:
        CacheError: it is not finite there.
    """
    cast = value.detach().to(device, dtype).contiguous()
    if not bool(torch.isfinite(cast).all()):
        largest = float(value.abs().max())
        raise CacheError(
            f"{what} has values that {str(dtype).removeprefix('torch.')} cannot hold (largest {largest:g}); "
            "store another dtype (float32, or bfloat16 for its range)"
        )
    return cast
