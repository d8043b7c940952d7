"""An ensemble of small networks on single pixels, all members at once (ddpm-segmentation, arXiv 2112.03126)."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gate_lightning.errors import ConfigError
from gate_lightning.pixel_classifiers.base import PixelClassifier
from gate_lightning.pixel_classifiers.stacked import StackedBatchNorm, StackedLinear
from gate_lightning.utils.checks import check_choice

__all__ = ["PixelEnsemble", "Variant", "member_losses"]

Variant = Literal["small", "large", "linear"]
#: classes from which on the paper takes the larger network
MANY_CLASSES = 30
#: widths of the hidden layers
HIDDEN: dict[str, tuple[int, ...]] = {"small": (128, 32), "large": (256, 128), "linear": ()}


class PixelEnsemble(PixelClassifier):
    """Members that each map the features of a pixel to class logits: linear → ReLU → batch norm, twice, then linear.

    ``pixel_classifiers.members`` narrows it to the members that still train. A member depends on ``seed`` and its own
    number only.

    Args:
        in_channels: D, channels of a pixel's features.
        num_classes: K, at least 2.
        members: M; the paper has 10.
        variant: ``small`` (D-128-32-K, the paper's for fewer than 30 classes), ``large`` (D-256-128-K, for 30 and
            more), ``linear`` (D-K, a linear probe); None for the paper's choice by K.
        seed: of the initial weights.

    Raises:
        ConfigError: if a number is out of range or the variant unknown.
    """

    def __init__(
        self, in_channels: int, num_classes: int, members: int = 10, variant: Variant | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        if num_classes < 2 or members < 1 or in_channels < 1:
            raise ConfigError(
                f"num_classes is {num_classes}, members {members}, in_channels {in_channels}; expected 2 or more "
                "classes, one or more members and channels"
            )
        if variant is None:
            variant = "large" if num_classes >= MANY_CLASSES else "small"
        check_choice(variant, "variant", HIDDEN)
        self.in_channels, self.num_classes, self.variant = in_channels, num_classes, variant
        widths = (in_channels, *HIDDEN[variant], num_classes)
        self.linears = nn.ModuleList(
            StackedLinear(members, before, after, key=("pixel_ensemble", seed, index))
            for index, (before, after) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(StackedBatchNorm(members, width) for width in widths[1:-1])

    @property
    def members(self) -> int:
        """M, number of the members that still train."""
        return len(self.first_weight)

    @property
    def first_weight(self) -> Tensor:
        """Weight (M, hidden or K, D) of the first layer."""
        return self._first.weight

    def forward(self, rows: Tensor) -> Tensor:
        """Class logits of pixels.

        Args:
            rows: features (M, P, D) of P pixels for each member, or (1, P, D) where all look at the same ones.

        Returns:
            (M, P, K).

        Raises:
            ConfigError: if channels or members do not fit.
        """
        if rows.dim() != 3 or rows.shape[-1] != self.in_channels:
            raise ConfigError(f"got rows {tuple(rows.shape)}; expected (members, pixels, {self.in_channels})")
        return self._later_layers(self._first(rows.transpose(1, 2))).transpose(1, 2)

    def tail(self, projected: Tensor) -> Tensor:
        """Logits (M, K, N) from the first layer's products (M, hidden, N), without its bias."""
        bias = self._first.bias
        assert bias is not None
        return self._later_layers(projected + bias.unsqueeze(-1))

    def losses(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of every member over its own pixels; see ``member_losses``."""
        return member_losses(self(features), labels)

    @property
    def _first(self) -> StackedLinear:
        first = self.linears[0]
        assert isinstance(first, StackedLinear)
        return first

    def _later_layers(self, hidden: Tensor) -> Tensor:
        for norm, linear in zip(self.norms, list(self.linears)[1:], strict=True):
            hidden = linear(norm(hidden.relu()))
        return hidden


def member_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of every member over its own pixels.

    Args:
        logits: (M, P, K).
        labels: (M, P) int64 classes 0 … K - 1; pixels that do not count are not sampled in the first place.

    Returns:
        (M,). The sum over members trains each as if it were alone: their parameters do not meet.
    """
    return cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(dim=1)
