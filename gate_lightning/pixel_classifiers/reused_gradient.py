"""A product whose large weight gradient is written where the last step's gradient was.

Setting gradients to None frees a large block every step. On a CPU it goes back to the system, and the next gradient is
paid for page by page: for ten members of 128 × 3674 a quarter of the whole step.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

__all__ = ["large_product"]

#: elements of a weight below which the allocator keeps the memory itself
LARGE = 1 << 20


def large_product(weight: Tensor, rows: Tensor) -> Tensor:
    """``weight @ rows``, (M, out, in) and (M, in, N) → (M, out, N), for a parameter ``weight``.

    If ``weight`` has a gradient now and has none any more when the product is differentiated (the optimizer was told to
    forget it in between, as Lightning does), and nobody else refers to it, its memory is used for the new one.
    """
    last = weight.grad
    reusable = last is not None and weight.device.type == "cpu" and weight.numel() >= LARGE
    if not reusable or not torch.is_grad_enabled():
        return torch.bmm(weight, rows)
    product: Tensor = _Product.apply(weight, rows, [last])
    return product


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor, last: list[Tensor]) -> Tensor:
        ctx.save_for_backward(weight, rows)
        ctx.last = last
        return torch.bmm(weight, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight, rows = ctx.saved_tensors
        for_weight = for_rows = None
        if ctx.needs_input_grad[0]:
            out = ctx.last.pop() if ctx.last else None
            # two references: `out` and the argument of getrefcount
            free = out is not None and weight.grad is None and sys.getrefcount(out) == 2 and out.dtype == gradient.dtype
            for_weight = torch.bmm(gradient, rows.transpose(1, 2), out=out if free else None)
        if ctx.needs_input_grad[1]:
            for_rows = torch.bmm(weight.transpose(1, 2), gradient)
        return for_weight, for_rows, None
