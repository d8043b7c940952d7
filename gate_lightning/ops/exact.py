"""Operations whose gradients come out equal every time on a GPU.

Several CUDA kernels add up gradients in the order in which threads happen to arrive. Within a context the torch
functions that need them are replaced; values stay those of the usual kernels, and only gradients are computed in
another way:

* bilinear resizing and adaptive average pooling are linear along each side, so their gradients are two matrix products;
* the cross-entropy of maps is that of a list of pixels, whose kernel writes every value once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["ExactGradients", "exact_gradients"]

#: (maps, options) → maps
_Resize = Callable[[Tensor, Sequence[int]], Tensor]


@contextmanager
def exact_gradients() -> Iterator[None]:
    """Context of these operations for tensors on GPUs, where torch is told to be deterministic; else without effect."""
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    with ExactGradients():
        yield


class ExactGradients(TorchFunctionMode):
    """Context in which torch's inexact operations are replaced by those with exact gradients.

    Args:
        device: type of the devices whose tensors they are for.
    """

    def __init__(self, device: str = "cuda") -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """``func``, or what stands for it."""
        chosen, kwargs = _EXACT.get(func), kwargs or {}
        if chosen is not None and args and args[0].ndim == 4 and args[0].device.type == self.device:
            return chosen(*args, **kwargs)
        return func(*args, **kwargs)


def _interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    given = (size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    if mode != "bilinear" or antialias or scale_factor is not None:
        return F.interpolate(input, *given)
    sides = [size, size] if isinstance(size, int) else list(size)
    # not F.interpolate: on a GPU that is told to be deterministic it gathers four maps instead
    made: Tensor = _Resized.apply(
        input, sides, lambda maps, size: torch.ops.aten.upsample_bilinear2d(maps, size, bool(align_corners))
    )
    return made


def _adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    sides = [output_size] * 2 if isinstance(output_size, int) else list(output_size)
    whole = [own if side is None else side for side, own in zip(sides, input.shape[-2:], strict=True)]
    made: Tensor = _Resized.apply(input, whole, F.adaptive_avg_pool2d)
    return made


class _Resized(torch.autograd.Function):
    """Maps resized by an operation that is linear and the same for rows and columns."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, size: list[int], resize: _Resize) -> Tensor:
        ctx.sides, ctx.resize = tuple(maps.shape[-2:]), resize
        return resize(maps, size)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        rows, columns = (
            _weights(ctx.resize, own, other, gradient)
            for own, other in zip(ctx.sides, gradient.shape[-2:], strict=True)
        )
        return rows.T @ (gradient @ columns), None, None


def _weights(resize: _Resize, source: int, target: int, like: Tensor) -> Tensor:
    """Weights (target, source) of the resize along one side, in the dtype of ``like``."""
    exact = torch.promote_types(like.dtype, torch.float32)
    ones = torch.eye(source, device=like.device, dtype=exact).view(1, source, source, 1)
    return resize(ones, [target, 1])[0, :, :, 0].T.to(like)


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    if reduction != "sum" or target.is_floating_point():
        given = (size_average, ignore_index, reduce, reduction, label_smoothing)
        return F.cross_entropy(input, target, weight, *given)
    pixels, labels = input.movedim(1, -1).flatten(0, -2), target.flatten()
    # summed by torch.sum: the kernel that sums a list of pixels is one block of threads
    options: Any = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "reduction": "none"}
    return F.cross_entropy(pixels, labels, weight, **options).sum()


_EXACT: dict[Callable[..., Any], Callable[..., Any]] = {
    F.interpolate: _interpolate,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    F.cross_entropy: _cross_entropy,
}
