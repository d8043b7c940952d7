"""End-point error of keypoints found by a soft argmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from gate_lightning.errors import ConfigError
from gate_lightning.losses.contrastive import rounded_places
from gate_lightning.utils.checks import number

__all__ = ["EndPointLoss"]


class EndPointLoss(nn.Module):
    """Mean distance, in positions, between keypoints of the target and where the similarities put them.

    A source keypoint k is put at Σ_p p · softmax_p(cos(s_k, t_p) / τ), the mean over all places p of the target. In
    training Gaussian noise is added to the target's keypoints (GeoAware-SC's dense objective, Zhang et al., CVPR 2024).

    Args:
        temperature: τ > 0.
        noise: its standard deviation, as a share of the larger side of the target's object; 0 for none.

    Raises:
        ConfigError: a number out of range.
    """

    def __init__(self, temperature: float = 0.02, noise: float = 0.05) -> None:
        super().__init__()
        self.temperature = number(temperature, "loss.temperature", 1e-6)
        self.noise = number(noise, "loss.noise", 0.0)

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        source_places: Tensor,
        target_places: Tensor,
        target_lengths: Tensor | None = None,
    ) -> Tensor:
        """Mean loss of a batch of pairs; each pair counts alike.

        Args:
            source, target, source_places, target_places: see `KeypointContrastiveLoss`.
            target_lengths: (B,) larger side of the target's object in positions, for the noise; NaN where unknown.

        Returns:
            Scalar; 0 for a batch without keypoints.

        Raises:
            ConfigError: noise is to be added, and an object's size is not known.
        """
        losses = []
        for index, (here, there) in enumerate(zip(source, target, strict=True)):
            first, second = source_places[index], target_places[index]
            known = ~(first.isnan().any(dim=-1) | second.isnan().any(dim=-1))
            if not known.any():
                continue
            goals = rounded_places(second[known], there).to(there)
            if self.training and self.noise:
                length = None if target_lengths is None else target_lengths[index]
                if length is None or length.isnan():
                    raise ConfigError("loss.noise is a share of the target's box, and a pair has none; set it to 0")
                goals = goals + torch.randn_like(goals) * (self.noise * length).to(goals)
            losses.append((self._found(here, there, first[known]) - goals).norm(dim=1).mean())
        return torch.stack(losses).mean() if losses else (source.sum() + target.sum()) * 0.0

    def _found(self, here: Tensor, there: Tensor, points: Tensor) -> Tensor:
        """x, y (N, 2) in positions of ``there``."""
        x, y = rounded_places(points, here).unbind(dim=1)
        similarities = normalize(here[:, y, x].T, dim=1) @ normalize(there.flatten(1), dim=0)
        chances = (similarities / self.temperature).softmax(dim=1).view(-1, *there.shape[1:])
        rows, columns = (torch.arange(length).to(there) for length in there.shape[1:])
        return torch.stack([chances.sum(dim=1) @ columns, chances.sum(dim=2) @ rows], dim=1)
