"""A weighted sum of losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from gate_lightning.errors import ConfigError

__all__ = ["CompositeLoss"]


class CompositeLoss(nn.Module):
    """Weighted sum of losses, Σ weight · loss.

    Args:
        losses: name → loss, or name → a factory that takes ``ignore_index`` (a loss class, or a partial of one, which
            is what a configuration gives).
        weights: name → factor; 1 for names that are not there.
        ignore_index: mask value of pixels that do not count, for all of them; None for losses that see no masks.

    Raises:
        ConfigError: if there is no loss, a weight has no loss, or a loss was built for another ``ignore_index``.
    """

    def __init__(
        self,
        losses: Mapping[str, nn.Module | Callable[..., nn.Module]],
        weights: Mapping[str, float] | None = None,
        ignore_index: int | None = 255,
    ) -> None:
        super().__init__()
        given = dict(weights or {})
        unknown = [name for name in given if name not in losses]
        if unknown or not losses:
            found = f"weights name {', '.join(unknown)}" if unknown else "there is no loss to add up"
            raise ConfigError(f"{found}; the losses are: {', '.join(losses) or 'none'}")
        self.losses = nn.ModuleDict(
            {
                name: loss if isinstance(loss, nn.Module) else loss(ignore_index=ignore_index)
                for name, loss in losses.items()
            }
        )
        for name, loss in self.losses.items():
            own = getattr(loss, "ignore_index", ignore_index)
            if own != ignore_index:
                raise ConfigError(f"loss {name!r} ignores {own}, the others {ignore_index}; build all with one value")
        self.weights = {name: float(given.get(name, 1.0)) for name in losses}
        self.ignore_index = ignore_index

    def terms(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Every loss by name, without its weight, for logs."""
        return {name: loss(*inputs) for name, loss in self.losses.items()}

    def forward(self, *inputs: Tensor) -> Tensor:
        """Scalar loss of what every single loss takes: logits (B, K, H, W) and masks (B, H, W) int64, or descriptors
        and keypoints."""
        terms = self.terms(*inputs)
        return sum((self.weights[name] * term for name, term in terms.items()), start=inputs[0].new_zeros(()))
