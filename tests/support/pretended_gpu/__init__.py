"""A GPU that is not there, for tests of what would go wrong or be slow on one; see `pretended_gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo  # lists the functions of torch.cuda once, before any is replaced

from tests.support.pretended_gpu.record import Record
from tests.support.pretended_gpu.tensors import GPU, Calls, GpuTensor, MixedDevicesError, Operations

__all__ = ["GPU", "GpuTensor", "MixedDevicesError", "Record", "pretended_gpu"]

_GIB = 2**30


@contextmanager
def pretended_gpu() -> Iterator[Record]:
    """Context in which there is one GPU, ``cuda:0``, whose operations, copies and waits are recorded.

    Tensors get there by ``.to("cuda:0")`` and ``device="cuda:0"`` as usual, also in Lightning's Trainer. Operations on
    tensors of both devices raise `MixedDevicesError`, ``.numpy()`` of one on the GPU raises TypeError.
    """
    record = Record()
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # weights that move are other objects
    try:
        with patch.multiple(torch.cuda, **_cuda(record)), _accelerator(), Calls(), Operations(record):
            yield record
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)


def _cuda(record: Record) -> dict[str, Any]:
    """What `torch.cuda` says and does where there is a GPU."""

    def nothing(*_: Any, **__: Any) -> None:
        return None

    def size(*_: Any, **__: Any) -> int:
        return _GIB

    generator = torch.Generator()
    properties = SimpleNamespace(name="pretended", total_memory=80 * _GIB, major=9, minor=0, multi_processor_count=132)
    return {
        "_lazy_init": nothing,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": nothing,
        "get_device_name": lambda *_: "pretended",
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: properties,
        "get_rng_state": lambda *_: generator.get_state(),
        "set_rng_state": lambda state, *_: generator.set_state(state),
        "manual_seed": nothing,
        "manual_seed_all": nothing,
        "synchronize": lambda *_: record.wait("synchronize"),
        "empty_cache": nothing,
        "mem_get_info": lambda *_: (70 * _GIB, 80 * _GIB),
        "memory_allocated": size,
        "max_memory_allocated": size,
        "memory_reserved": size,
        "max_memory_reserved": size,
        "memory_stats": lambda *_: {},
        "reset_peak_memory_stats": nothing,
    }


def _accelerator() -> Any:
    """Loaders without workers pin their batches where there is an accelerator; those with workers do so in a thread,
    which the modes do not reach. Others who ask which one it is have streams of it in mind, and find none."""
    return patch.multiple(torch.accelerator, is_available=lambda: True, current_accelerator=lambda *_, **__: None)
