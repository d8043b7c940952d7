"""The paper's classifier as ordinary torch modules, one network per member: what the stacked ensemble must equal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gate_lightning.pixel_classifiers.ensemble import PixelEnsemble


def single_members(ensemble: PixelEnsemble) -> list[nn.Sequential]:
    """A copy of every member as nn.Sequential of Linear, ReLU and BatchNorm1d."""
    return [_single(ensemble, member) for member in range(ensemble.members)]


def _single(ensemble: PixelEnsemble, member: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, stacked in enumerate(ensemble.linears):
        _, out_channels, in_channels = stacked.weight.shape
        linear = nn.Linear(in_channels, out_channels)
        _copy(linear.weight, stacked.weight[member])
        _copy(linear.bias, stacked.bias[member])
        layers.append(linear)
        if index < len(ensemble.norms):
            stacked_norm = ensemble.norms[index]
            norm = nn.BatchNorm1d(out_channels)
            for name in ("weight", "bias", "running_mean", "running_var"):
                _copy(getattr(norm, name), getattr(stacked_norm, name)[member])
            layers += [nn.ReLU(), norm]
    return nn.Sequential(*layers).to(ensemble.first_weight.dtype)


def _copy(to: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        to.copy_(value)
