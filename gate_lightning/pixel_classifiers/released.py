"""Amalgamation of pixels in GATE's released code, which differs from the paper.

One assigner per group with a weight per channel; no diversity; the weight of the sparsity term is not tuned but
walks at random while the ensemble trains.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gate_lightning.ops.rows import on_device
from gate_lightning.pixel_classifiers.amalgamation import PixelFusion
from gate_lightning.pixel_classifiers.weighted import WeightedPixels
from gate_lightning.utils.seeding import keyed_generator

__all__ = ["ReleasedPixels"]

#: steps of training between two steps of the walk
EVERY = 5
STEP = 1e-5
DECAY = 0.9
CHANCE = 1 / 20


class ReleasedPixels(WeightedPixels):
    """Weights per entry and channel, with a sparsity term whose weight s is a random walk, one for each member.

    The loss is L - s · L₀ · N / N₀: N is the norm of the weights over entries, averaged over pixels and channels and
    added up over backbone_groups (1 for a group of one entry); L₀ and N₀ are L and N without gradient. s starts at 0.
    Every 5 steps the present s is judged: it is accepted if the loss has fallen, since 5 steps ago, by more than the
    remembered fall, or else with a chance of 1 in 20; an accepted fall is remembered, and fades by a tenth from one
    judgement to the next. Then s becomes the last accepted one, plus -1e-5, 0 or 1e-5, at least 0. That no fall is
    remembered at the start means 0 here.

    Args:
        backbone_groups: name → (entries, channels of an entry).
        members: M.
        seed: of initial weights, dropout and the walk.
        hidden_channels: width of the assigners.
        dropout: of the assigners, in [0, 1).
    """

    walk_member: Tensor
    walk_steps: Tensor
    walk_weight: Tensor
    walk_accepted: Tensor
    walk_fall: Tensor
    walk_loss: Tensor

    def __init__(
        self,
        backbone_groups: Mapping[str, tuple[int, int]],
        members: int = 10,
        *,
        seed: int = 0,
        hidden_channels: int = 128,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(
            backbone_groups, members, seed=seed, per_channel=True, hidden_channels=hidden_channels, dropout=dropout
        )
        self.register_buffer("walk_member", torch.arange(members))
        self.register_buffer("walk_steps", torch.zeros(members, dtype=torch.int64))
        for name in ("weight", "accepted", "fall", "loss"):
            self.register_buffer(f"walk_{name}", torch.zeros(members))

    def losses(self, losses: Tensor, fusion: PixelFusion) -> Tensor:
        """The members' losses (M,) with the sparsity term; moves the walk on, so once per step."""
        self._trajectory(losses.detach())
        norm = self.norms(fusion)
        return losses - self.walk_weight * losses.detach() * norm / norm.detach()

    def norms(self, fusion: PixelFusion) -> Tensor:
        """N of every member (M,), or (1,) where no group has an assigner."""
        norms = [torch.linalg.vector_norm(weights, dim=3).flatten(1).mean(dim=1) for weights in fusion.weights.values()]
        return torch.stack([norm.expand(max(map(len, norms))) for norm in norms]).sum(dim=0)

    @torch.no_grad()
    def _trajectory(self, losses: Tensor) -> None:
        steps = int(self.walk_steps[0])  # members that still train have made the same number of steps
        self.walk_steps += 1
        if steps % EVERY:
            return
        draws = [keyed_generator("sparsity_walk", self.seed, member, steps) for member in self.walk_member.tolist()]
        chances = on_device([draw.random() for draw in draws], losses.device, losses.dtype)
        moves = losses.new_tensor([STEP * float(draw.integers(-1, 2)) for draw in draws])
        if steps > 0:
            fall = self.walk_loss - losses
            self.walk_fall *= DECAY
            accept = (fall > self.walk_fall) | (chances < CHANCE)
            self.walk_accepted.copy_(torch.where(accept, self.walk_weight, self.walk_accepted))
            self.walk_fall.copy_(torch.where(accept, fall, self.walk_fall))
        self.walk_loss.copy_(losses)
        self.walk_weight.copy_((self.walk_accepted + moves).clamp(min=0))
