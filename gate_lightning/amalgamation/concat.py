"""Amalgamation by concatenation, without parameters."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize as scaled_to_one

from gate_lightning.amalgamation.base import Amalgamation
from gate_lightning.amalgamation.levels import Level
from gate_lightning.errors import ConfigError
from gate_lightning.structures import Features, FeaturesInfo
from gate_lightning.utils.checks import check_known, number

__all__ = ["ConcatAmalgamation"]


class ConcatAmalgamation(Amalgamation):
    """Concatenation of all branches at each level, in the order of the branches.

    Branches may read different layers: a level holds those that have its stride.

    Args:
        feature_info, concatenated: see `Amalgamation`.
        normalize: scale every branch's vector at every position of a level to length 1, so that no branch outweighs
            the others in distances (sd-dino).
        weights: branch → factor on its maps; 1 for those that are not named.

    Raises:
        ConfigError: see `Amalgamation`; or a weight that is no number of 0 or more, or of no branch.
    """

    def __init__(
        self,
        feature_info: FeaturesInfo,
        concatenated: Collection[str] = (),
        normalize: bool = False,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(feature_info, concatenated)
        if not isinstance(normalize, bool):
            raise ConfigError(f"amalgamation.normalize={normalize!r}: expected true or false")
        self.normalize, self.weights = normalize, dict(weights or {})
        check_known(self.weights, tuple(feature_info), "amalgamation.weights")
        for branch, weight in self.weights.items():
            number(weight, f"amalgamation.weights.{branch}", 0)

    def branch_map(self, level: Level, features: Features, branch: str) -> Tensor:
        """Map (B, C, h, w) of a branch at a level, normalised and weighted."""
        found = super().branch_map(level, features, branch)
        found = scaled_to_one(found, dim=1) if self.normalize else found
        return found * self.weights[branch] if branch in self.weights else found

    def fused_channels(self, level: Level) -> int:
        """Channels of all fused branches together."""
        return sum(level.channels[branch] for branch in level.fused)

    def fuse(self, index: int, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Concatenate (B, C_branch, h, w) over channels."""
        del index
        return torch.cat(tuple(maps), dim=1), None
