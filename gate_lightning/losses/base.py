"""Base class of losses on pixels: ignored pixels, class weights, checks of arguments and inputs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gate_lightning.errors import ConfigError
from gate_lightning.ops.labels import check_label_range, in_range

__all__ = ["PixelLoss", "mean_over_pixels", "mean_over_shares", "require"]


class PixelLoss(nn.Module, ABC):
    """A loss of logits against masks in which pixels of ``ignore_index`` do not count.

    Args:
        ignore_index: mask value of pixels that do not count.
        class_weight: K finite weights ≥ 0, not all of them 0; None for equal ones. They move with the loss and are not
            in checkpoints.

    Raises:
        ConfigError: for other weights.
    """

    class_weight: Tensor | None

    def __init__(self, ignore_index: int = 255, class_weight: Sequence[float] | None = None) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        weights = None if class_weight is None else [float(weight) for weight in class_weight]
        usable = weights is None or (all(0.0 <= weight < math.inf for weight in weights) and sum(weights) > 0.0)
        require(usable, "class_weight", weights, "finite weights ≥ 0, not all of them 0")
        values = None if weights is None else torch.tensor(weights)
        self.register_buffer("class_weight", values, persistent=False)

    @abstractmethod
    def compute(self, logits: Tensor, masks: Tensor, valid: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of inputs that are checked.

        Args:
            logits: (B, K, H, W) float32 or wider: sums over a million pixels need the digits.
            masks: (B, H, W) int64.
            valid: (B, H, W) bool, which pixels count.
            weight: (K,) like ``logits``, or None.
        """

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Scalar loss; 0 if no pixel counts.

        On an accelerator nothing is looked at, which would cost a wait: there the loss is NaN if a mask has a value
        that is no class, and those who find a loss that is not finite call `check_label_range`.

        Args:
            logits: (B, K, H, W).
            masks: (B, H, W) int64, 0 … K - 1 or ``ignore_index``.

        Raises:
            ConfigError: if shapes do not fit, or there are not K class weights.
            DataError: if a mask value on the CPU is neither a class nor ``ignore_index``.
        """
        if logits.dim() != 4 or masks.shape != (logits.shape[0], *logits.shape[2:]) or masks.dtype != torch.int64:
            raise ConfigError(
                f"a loss got logits {tuple(logits.shape)} and masks {tuple(masks.shape)} of {masks.dtype}; expected "
                "(B, K, H, W) and (B, H, W) of torch.int64. Resize the logits to the masks first"
            )
        if masks.device.type == "cpu":
            valid, wrong = check_label_range(masks, logits.shape[1], self.ignore_index), None
        else:
            valid, wrong = in_range(masks, logits.shape[1], self.ignore_index)
            # a value that is no class would be a failed assertion on the device, after which nothing works any more
            masks, valid = masks.masked_fill(wrong, self.ignore_index), valid & ~wrong
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        if self.class_weight is not None and len(self.class_weight) != logits.shape[1]:
            raise ConfigError(
                f"class_weight has {len(self.class_weight)} entries for {logits.shape[1]} classes; give one per class"
            )
        weight = None if self.class_weight is None else self.class_weight.to(logits)
        loss = self.compute(logits, masks, valid, weight)
        return loss if wrong is None else loss.masked_fill(wrong.any(), math.nan)


def require(allowed: bool, name: str, value: object, expected: str) -> None:
    """Raise ConfigError unless ``allowed``.

    Raises:
        ConfigError: not allowed; the message has the argument's name, its value and the expected range.
    """
    if not allowed:
        raise ConfigError(f"{name} is {value}; expected {expected}")


def mean_over_pixels(losses: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
    """Σ w_y · loss / Σ w_y over pixels; 0 where no weight is left.

    Args:
        losses: (P,) unweighted.
        targets: (P,) int64 classes.
        weight: (K,), or None for equal ones.
    """
    return mean_over_shares(losses, torch.ones_like(losses) if weight is None else weight[targets])


def mean_over_shares(losses: Tensor, shares: Tensor) -> Tensor:
    """Σ share · loss / Σ share over the last axis; 0 where no share is left."""
    total, count = (shares * losses).sum(dim=-1), shares.sum(dim=-1)
    # the sum is 0 where the count is, so any other divisor keeps it 0, and its gradient finite
    return total / torch.where(count > 0, count, torch.ones_like(count))
