"""Ensemble predictions and their uncertainty (ddpm-segmentation, arXiv 2112.03126).

Shapes: M members, K classes, then any shape of pixels, (H, W) or (N,).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gate_lightning.errors import ConfigError

__all__ = ["PREDICTIONS", "image_uncertainty", "joint_labels", "js_divergence", "majority_vote", "mean_probability"]

#: ways to join the members' logits to one label map
PREDICTIONS = ("majority_vote", "mean_probability")


def joint_labels(logits: Tensor, prediction: str) -> Tensor:
    """Labels int64 (...) of the ensemble from its members' logits (M, K, ...), by one of ``PREDICTIONS``."""
    if prediction == "majority_vote":
        return majority_vote(logits.argmax(dim=1), logits.shape[1])
    return mean_probability(logits).argmax(dim=0)


def majority_vote(labels: Tensor, num_classes: int) -> Tensor:
    """The class that most members predict; of equally frequent ones the smallest.

    Args:
        labels: int64 (M, ...), classes 0 … K - 1.
        num_classes: K.

    Returns:
        int64 (...).
    """
    counts = torch.zeros(num_classes, *labels.shape[1:], dtype=torch.int16, device=labels.device)
    counts.scatter_add_(0, labels, torch.ones_like(labels, dtype=torch.int16))
    return counts.argmax(dim=0)  # the first of equal ones


def mean_probability(logits: Tensor) -> Tensor:
    """Mean of the members' softmax probabilities: logits (M, K, ...) → (K, ...)."""
    return logits.softmax(dim=1).mean(dim=0)


def js_divergence(logits: Tensor) -> Tensor:
    """Jensen-Shannon divergence of the members' class distributions: H(mean_m p_m) - mean_m H(p_m).

    In nats, from 0 (all members alike, however uncertain) to log min(M, K).

    Args:
        logits: (M, K, ...).

    Returns:
        (...).
    """
    logs = logits.log_softmax(dim=1)
    probabilities = logs.exp()
    mean = probabilities.mean(dim=0)
    entropies = -(probabilities * logs).nan_to_num().sum(dim=1)  # 0 · log 0 is 0
    return torch.special.entr(mean).sum(dim=0) - entropies.mean(dim=0)


def image_uncertainty(divergence: Tensor, share: float = 0.1) -> Tensor:
    """Uncertainty of an image: mean divergence of its most uncertain pixels.

    Args:
        divergence: one value per pixel, any shape.
        share: share of the pixels that enter the mean, in (0, 1]; rounded down to whole pixels, at least one.

    Returns:
        Scalar.

    Raises:
        ConfigError: if ``share`` is out of range.
    """
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"share is {share}; expected a share of the pixels in (0, 1], for example 0.1")
    count = max(1, math.floor(divergence.numel() * share + 1e-9))
    return divergence.flatten().topk(count).values.mean()
