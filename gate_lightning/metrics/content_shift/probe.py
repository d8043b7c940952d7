"""Classifiers of positions in closed form: the cheap upper reference where there are masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gate_lightning.errors import ConfigError

__all__ = ["PROBES", "Moments", "class_shares", "iou_counts", "moments", "probe"]

#: weight of the ridge penalty, of channels whose variance is 1
RIDGE = 0.01


@dataclass(frozen=True)
class Moments:
    """Sums over positions x with shares y of K classes, weighted by how much of a position is labelled.

    Attributes:
        weight: () Σ w.
        features: (C,) Σ w x.
        products: (C, C) Σ w x xᵀ.
        classes: (K,) Σ y.
        both: (C, K) Σ x yᵀ.
    """

    weight: Tensor
    features: Tensor
    products: Tensor
    classes: Tensor
    both: Tensor

    def __add__(self, other: Moments) -> Moments:
        return Moments(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def __sub__(self, other: Moments) -> Moments:
        return Moments(**{name: value - getattr(other, name) for name, value in vars(self).items()})


def moments(features: Tensor, shares: Tensor) -> Moments:
    """Moments of a feature map (C, h, w) and the shares (K, h, w) of classes in its positions."""
    x, y = features.double().flatten(1), shares.double().flatten(1)
    weight = y.sum(dim=0)
    return Moments(weight.sum(), (x * weight).sum(dim=1), (x * weight) @ x.T, y.sum(dim=1), x @ y.T)


def probe(kind: str, seen: Moments, features: Tensor) -> Tensor:
    """Scores (K, h, w) of the classes in a feature map (C, h, w), -inf of classes that were not seen.

    Channels are centred and scaled to variance 1 over the positions that were seen. With these z, of n positions:

    * ``ridge``: y ≈ Wᵀz + ȳ with the W that minimises Σ ‖y - Wᵀz - ȳ‖² / n + 0.01 ‖W‖²
    * ``centroid``: 2 z · c_k - ‖c_k‖², largest at the class whose mean c_k is nearest

    Raises:
        ConfigError: an unknown kind, or nothing labelled was seen.
    """
    if not float(seen.weight) > 0:
        raise ConfigError("no labelled position in the images that a probe is fitted to")
    mean = seen.features / seen.weight
    covariance = seen.products / seen.weight - torch.outer(mean, mean)
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    scale = torch.where(deviation > 1e-6 * deviation.max(), 1 / deviation, 0.0)  # constant channels say nothing
    z = (features.double().flatten(1) - mean[:, None]) * scale[:, None]
    scores = PROBES[kind](seen, covariance * torch.outer(scale, scale), mean, scale, z)
    scores[seen.classes <= 0] = -torch.inf
    return scores.view(-1, *features.shape[1:])


def _ridge(seen: Moments, correlation: Tensor, mean: Tensor, scale: Tensor, z: Tensor) -> Tensor:
    share = seen.classes / seen.weight
    target = (seen.both / seen.weight - torch.outer(mean, share)) * scale[:, None]
    penalty = RIDGE * torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
    return torch.linalg.solve(correlation + penalty, target).T @ z + share[:, None]


def _centroid(seen: Moments, correlation: Tensor, mean: Tensor, scale: Tensor, z: Tensor) -> Tensor:
    centres = (seen.both / seen.classes.clamp_min(1e-12) - mean[:, None]) * scale[:, None]
    return 2 * centres.T @ z - centres.square().sum(dim=0)[:, None]


PROBES = {"ridge": _ridge, "centroid": _centroid}


def class_shares(mask: Tensor, classes: int, size: tuple[int, int], ignore_index: int = 255) -> Tensor:
    """Shares (K, h, w) of the classes in the cells of a grid over a mask (H, W) int64; unlabelled pixels have none."""
    labelled = mask != ignore_index
    one_hot = F.one_hot(mask.where(labelled, 0), classes).double() * labelled[..., None]
    return F.adaptive_avg_pool2d(one_hot.permute(2, 0, 1)[None], size)[0]


def iou_counts(predicted: Tensor, mask: Tensor, classes: int, ignore_index: int = 255) -> Tensor:
    """(2K,) intersections, then unions of label maps (H, W), over labelled pixels."""
    labelled = mask != ignore_index
    truth, called = mask[labelled], predicted[labelled]
    both = torch.bincount(truth[truth == called], minlength=classes)
    unions = torch.bincount(truth, minlength=classes) + torch.bincount(called, minlength=classes) - both
    return torch.cat([both, unions]).double()
