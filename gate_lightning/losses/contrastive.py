"""Contrastive loss on the keypoints of image pairs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from gate_lightning.errors import ConfigError
from gate_lightning.ops.rows import on_device, rows_of
from gate_lightning.utils.checks import check_choice

__all__ = ["KeypointContrastiveLoss", "rounded_places"]

NEGATIVES = ("places", "keypoints")


class KeypointContrastiveLoss(nn.Module):
    """Symmetric contrastive loss: every keypoint is told from all other places of the other image.

    With s_k the descriptor of source keypoint k, t_p that of place p of the target, and p_k the place of the target's
    keypoint, the loss of a pair is the mean over k of -log softmax_p(cos(s_k, t_p) / τ) at p_k, averaged with the same
    from target to source (Luo et al., Diffusion Hyperfeatures, NeurIPS 2023; GATE trains with it, too).

    Args:
        temperature: τ > 0. Published runs: 0.07.
        learned: train τ (its logarithm), as GeoAware-SC does; the released runs of Hyperfeatures and GATE do not.
        negatives: what a keypoint is told from: all other ``places`` of the other image, or the pair's other
            ``keypoints`` there (GeoAware-SC's sparse objective).

    Raises:
        ConfigError: a temperature out of range, or unknown negatives.
    """

    def __init__(self, temperature: float = 0.07, learned: bool = False, negatives: str = "places") -> None:
        super().__init__()
        self.negatives = negatives
        check_choice(negatives, "loss.negatives", NEGATIVES)
        if not 0.0 < temperature < math.inf:
            raise ConfigError(f"loss.temperature is {temperature}; expected a positive number, for example 0.07")
        scale = torch.tensor(-math.log(temperature))
        if learned:
            self.log_scale = nn.Parameter(scale)
        else:
            self.register_buffer("log_scale", scale, persistent=False)

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
            source, target: descriptors (B, C, h, w); the two may differ in h, w.
            source_places, target_places: (B, N, 2) x, y of the keypoints in positions of the maps; they are rounded to
                the nearest one inside. NaN where a pair has fewer than N.
            target_lengths: not used.

        Returns:
            Scalar; 0 for a batch without keypoints.
        """
        # one look at all of them
        known = (~(source_places.isnan().any(dim=-1) | target_places.isnan().any(dim=-1))).tolist()
        losses = []
        for here, there, *points, marks in zip(source, target, source_places, target_places, known, strict=True):
            both = [place for place, mark in enumerate(marks) if mark]
            if both:
                first, second = (rows_of(places, both) for places in points)
                rows, columns = _places(first, here), _places(second, there)
                losses.append(
                    (self._one_way(here, there, rows, columns) + self._one_way(there, here, columns, rows)) / 2
                )
        return torch.stack(losses).mean() if losses else (source.sum() + target.sum()) * 0.0

    def _one_way(self, here: Tensor, there: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        queries, others = normalize(here.flatten(1).T[rows], dim=1), there.flatten(1)
        if self.negatives == "keypoints":
            others, columns = others[:, columns], torch.arange(len(columns), device=columns.device)
        similarities = queries @ normalize(others, dim=0)
        return cross_entropy(self.log_scale.exp() * similarities, columns)


def rounded_places(points: Tensor, maps: Tensor) -> Tensor:
    """Whole x, y (N, 2) int64 of the positions nearest to points in a map (C, h, w)."""
    last = on_device([maps.shape[-1] - 1, maps.shape[-2] - 1], points.device, points.dtype)
    return points.round().clamp(min=0).minimum(last).long()


def _places(points: Tensor, maps: Tensor) -> Tensor:
    """Positions row · w + column of points x, y in a map (C, h, w)."""
    x, y = rounded_places(points, maps).unbind(dim=1)
    return y * maps.shape[-1] + x
