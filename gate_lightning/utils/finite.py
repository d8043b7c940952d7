"""Numbers that are not finite: found in one reduction and one synchronisation, told apart when there are some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gate_lightning.errors import NotFiniteError

__all__ = ["all_finite", "check_outputs", "damaged_weights", "not_finite_in", "other_precision", "shares"]


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """True if all values of all tensors are finite: one reduction each, and one look at the results.

    A reduction that leaves its range although all values are finite is looked at again, value by value.
    """
    found = [value.detach() for value in tensors if value.is_floating_point() and value.numel() and not value.is_meta]
    if not found:
        return True
    if all(value.dtype == torch.float32 for value in found):
        reduced = list(torch._foreach_norm(found))  # a few launches for all of them
    else:
        reduced = [value.sum(dtype=torch.float32) for value in found]
    together = torch.stack([one.to(found[0].device) for one in reduced])
    return bool(torch.isfinite(together).all()) or all(bool(torch.isfinite(value).all()) for value in found)


def shares(value: Tensor) -> str:
    """Share of a tensor that is not finite, in words: ``3 of 40 values: 2 NaN, 1 infinite``."""
    nan, infinite = int(value.isnan().sum()), int(value.isinf().sum())
    return f"{nan + infinite} of {value.numel()} values: {nan} NaN, {infinite} infinite"


def damaged_weights(module: nn.Module) -> list[str]:
    """Names of parameters and buffers that hold values which are not finite."""
    named = (*module.named_parameters(), *module.named_buffers())
    return [name for name, value in named if value.is_floating_point() and not bool(torch.isfinite(value).all())]


def other_precision(dtype: torch.dtype) -> str:
    """Advice where a frozen backbone, whose weights are of ``dtype``, left the range of its numbers."""
    if dtype == torch.float32:
        return (
            "computed in float32, so no other precision helps (of the others, bfloat16 has its range); look at the "
            "weights, the strength of adapters, and the image"
        )
    better = "bfloat16 or float32" if dtype == torch.float16 else "float32"
    return f"computed in {_name(dtype)}; try backbone.dtype={better}"


def check_outputs(value: Tensor, what: str, names: Sequence[str] = ()) -> None:
    """Raise unless all values of a network's output are finite.

    Args:
        value: any shape.
        what: it, for the message.
        names: of the images it was made from.

    Raises:
        NotFiniteError: some are not.
    """
    if all_finite((value,)):
        return
    of = f" of {', '.join(names[:4])}{' …' if len(names) > 4 else ''}" if names else ""
    raise NotFiniteError(
        f"{what}{of} are not finite ({shares(value)}). The trained weights are damaged or training diverged: "
        "evaluate another checkpoint (checkpoint=last, checkpoint=best), or train anew with a smaller optimizer.lr or "
        "trainer.precision=32-true"
    )


def not_finite_in(content: Any, where: str = "") -> Iterator[str]:
    """Keys of a nested mapping or sequence whose tensors hold values that are not finite."""
    if isinstance(content, Tensor):
        if content.is_floating_point() and not all_finite((content,)):
            yield where
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from not_finite_in(value, f"{where}.{key}" if where else str(key))
    elif isinstance(content, list | tuple):
        for index, value in enumerate(content):
            yield from not_finite_in(value, f"{where}[{index}]")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
