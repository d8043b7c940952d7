"""Regularization of learned branch weights (GATE, arXiv 2410.06719, appendix A.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.utils.checks import whole_number

__all__ = ["check_assigners", "weight_regularization"]


def weight_regularization(weights: Tensor, axis: int, sparsity: float, diversity: float) -> Tensor:
    """-γ1 Σ_j ‖w^j‖₂ - (γ2 / 2) Σ_j Σ_{k≠j} ‖w^j - w^k‖₂, the norms over branches.

    Args:
        weights: (…, assigners, branches, …), w^j the weights of assigner j.
        axis: axis of the assigners; that of the branches is the next one.
        sparsity: γ1 ≥ 0; rewards weights that pick one branch.
        diversity: γ2 ≥ 0; rewards assigners that differ from each other.

    Returns:
        Like ``weights`` without the two axes, ≤ 0.
    """
    sparse = torch.linalg.vector_norm(weights, dim=axis + 1).sum(dim=axis)
    first, second = torch.triu_indices(weights.shape[axis], weights.shape[axis], offset=1)
    before = (slice(None),) * axis
    # each unordered pair stands for two ordered ones, which takes up the formula's 1/2
    diverse = torch.linalg.vector_norm(weights[(*before, first)] - weights[(*before, second)], dim=axis + 1)
    return -sparsity * sparse - diversity * diverse.sum(dim=axis)


def check_assigners(
    num_assigners: int, hidden_channels: int, dropout: float, sparsity: float, diversity: float
) -> None:
    """Raise ConfigError for settings of weight assigners that are out of range."""
    whole_number(num_assigners, "num_assigners", 1)
    whole_number(hidden_channels, "hidden_channels", 1)
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"dropout is {dropout}; expected a probability in [0, 1), for example 0.5")
    if sparsity < 0.0 or diversity < 0.0:
        raise ConfigError(f"sparsity is {sparsity}, diversity {diversity}; expected 0 (off) or a positive weight")
