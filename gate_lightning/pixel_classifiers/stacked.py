"""Layers of an ensemble of small networks: every parameter and buffer has the members as its first axis.

A layer is one batched matrix product for all members. A member does not depend on the others: its initial values and
dropout masks are keyed by its number.

Shapes: M members, C channels, N rows (pixels). Tensors are (M, C, N): the layout of the batched product ``weight @ x``,
in which batch normalisation of all members is a single call.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from gate_lightning.errors import ConfigError
from gate_lightning.utils.seeding import keyed_generator

__all__ = ["StackedBatchNorm", "StackedDropout", "StackedLinear"]


class StackedLinear(nn.Module):
    """A linear layer per member. Weights start as N(0, 0.02), biases as 0, as ddpm-segmentation has it.

    Args:
        members: M.
        in_channels, out_channels: channels of one member.
        key: key of the initial weights besides the member's number: the seed and the layer's name.
        bias: add a bias.
    """

    def __init__(
        self, members: int, in_channels: int, out_channels: int, *, key: Sequence[object], bias: bool = True
    ) -> None:
        super().__init__()
        shape = (out_channels, in_channels)
        start = [
            torch.from_numpy(keyed_generator(*key, member).standard_normal(shape, dtype=np.float32))
            for member in range(members)
        ]
        self.weight = nn.Parameter((0.02 * torch.stack(start)).to(torch.get_default_dtype()))  # (M, out, in)
        self.bias = nn.Parameter(torch.zeros(members, out_channels)) if bias else None

    def forward(self, rows: Tensor) -> Tensor:
        """(M, in, N), or (1, in, N) where all members see the same rows → (M, out, N)."""
        members, out_channels, _ = self.weight.shape
        if len(rows) == members:
            product = torch.bmm(self.weight, rows)
            return product if self.bias is None else product + self.bias.unsqueeze(-1)
        if len(rows) != 1:
            raise ConfigError(f"got rows of {len(rows)} members; expected {members}, or 1 for the same rows for all")
        weight = self.weight.flatten(0, 1)
        product = weight @ rows[0] if self.bias is None else torch.addmm(self.bias.view(-1, 1), weight, rows[0])
        return product.view(members, out_channels, -1)


class StackedBatchNorm(nn.Module):
    """Batch normalisation over a member's own rows, with torch's defaults (eps 1e-5, momentum 0.1).

    Args:
        members: M.
        channels: C of one member.
        bias: add a bias.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, members: int, channels: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, channels))
        self.bias = nn.Parameter(torch.zeros(members, channels)) if bias else None
        self.register_buffer("running_mean", torch.zeros(members, channels))
        self.register_buffer("running_var", torch.ones(members, channels))

    def forward(self, rows: Tensor) -> Tensor:
        """(M, C, N) → the same shape; in training N has to be at least 2."""
        if self.training and rows.shape[-1] < 2:
            raise ConfigError("batch normalisation needs at least 2 pixels a batch; raise task.data.pixels_per_batch")
        normed = batch_norm(
            rows.reshape(1, -1, rows.shape[-1]),
            self.running_mean.view(-1),  # views: the running values are updated in place
            self.running_var.view(-1),
            self.weight.view(-1),
            None if self.bias is None else self.bias.view(-1),
            training=self.training,
        )
        return normed.view(rows.shape)


class StackedDropout(nn.Module):
    """Dropout whose masks are keyed by member and draw, and so do not depend on the other members.

    Args:
        members: M.
        probability: probability of dropping a value, in [0, 1).
        key: key of the masks besides the member's number and the draw.
    """

    member: Tensor
    draws: Tensor

    def __init__(self, members: int, probability: float, *, key: Sequence[object]) -> None:
        super().__init__()
        self.probability, self.key = probability, tuple(key)
        self.register_buffer("member", torch.arange(members))
        self.register_buffer("draws", torch.zeros(members, dtype=torch.int64))  # masks drawn so far

    def forward(self, rows: Tensor) -> Tensor:
        """(M, C, N) → the same shape."""
        if not self.training or self.probability == 0.0:
            return rows
        pairs = zip(self.member.tolist(), self.draws.tolist(), strict=True)
        kept = [
            torch.from_numpy(keyed_generator(*self.key, *pair).random(rows.shape[1:], dtype=np.float32))
            for pair in pairs
        ]
        self.draws += 1
        mask = (torch.stack(kept) >= self.probability).to(rows.device)
        return rows * mask / (1.0 - self.probability)
