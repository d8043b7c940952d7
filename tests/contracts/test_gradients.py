"""Every trainable parameter of every amalgamation and head receives a gradient within two optimiser steps.

(The released amalgamation fails this: of its refiners, only the last normalisation's bias ever moves.)
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest
import torch
from torch import nn

import gate_lightning.amalgamation
import gate_lightning.heads
from gate_lightning.amalgamation.base import Amalgamation
from gate_lightning.amalgamation.concat import ConcatAmalgamation
from gate_lightning.amalgamation.hyperfeatures import HyperfeaturesAggregation
from gate_lightning.amalgamation.released import ReleasedConcat, ReleasedJoined, ReleasedWeighted
from gate_lightning.amalgamation.weighted import WeightedAmalgamation
from gate_lightning.heads.base import Head
from gate_lightning.heads.linear import LinearHead
from gate_lightning.heads.mmseg import WORKING_TYPES, MMSegHead
from gate_lightning.heads.resnet import ResNetHead
from gate_lightning.structures import FeatureInfo

THRESHOLD = 1e-9
BATCH = 3
CLASSES = 5

LAYERS = {
    "fine": FeatureInfo(8, 4),
    "fine2": FeatureInfo(16, 4),
    "coarse": FeatureInfo(24, 8),
    "top": FeatureInfo(32, 32),
}
BRANCHES = {
    "plain": LAYERS,
    "steered": LAYERS,
    "strong": LAYERS,
    "edges": {"edges-4": FeatureInfo(4, 4), "edges-16": FeatureInfo(6, 16)},
}

AMALGAMATIONS = {
    "concat": (ConcatAmalgamation, {}),
    "hyperfeatures": (HyperfeaturesAggregation, {}),
    "hyperfeatures-geoaware": (HyperfeaturesAggregation, {"shared": False, "stride": 8}),
    "weighted": (WeightedAmalgamation, {}),
    "weighted-per_channel": (WeightedAmalgamation, {"per_channel": True}),
    "weighted-bn": (WeightedAmalgamation, {"norm": "BN"}),
    "weighted-as-released": (WeightedAmalgamation, {"norm": "BN", "per_channel": True, "refiner_blocks": 2}),
    "weighted-two-assigners": (WeightedAmalgamation, {"num_assigners": 2, "sparsity": 0.1, "diversity": 0.1}),
    "weighted-per_channel-regularised": (
        WeightedAmalgamation,
        {"num_assigners": 3, "per_channel": True, "sparsity": 0.1, "diversity": 0.1, "hidden_channels": 10},
    ),
    "weighted-joined": (WeightedAmalgamation, {"joined": True}),
    "weighted-refined": (WeightedAmalgamation, {"refiner_blocks": 2}),
    "weighted-spatial": (WeightedAmalgamation, {"spatial": True, "num_assigners": 2, "diversity": 0.1}),
    "released_concat": (ReleasedConcat, {}),
    "released_joined": (ReleasedJoined, {}),
    "released_weighted": (ReleasedWeighted, {}),
}

HEAD_OPTIONS = {
    "EMAHead": {"ema_channels": 16, "num_bases": 8, "num_stages": 2},
    "UPerHead": {"pool_scales": (1, 2, 3)},
}
NORMS = ("GN", "BN")


def gradient_maxima(module: nn.Module, loss, steps: int = 2) -> dict[str, float]:
    """Largest absolute gradient of every trainable parameter over the first optimiser steps."""
    largest = {name: 0.0 for name, parameter in module.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2) if largest else None
    for _ in range(steps if optimizer else 0):
        optimizer.zero_grad()
        loss().backward()
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and parameter.grad is not None:
                largest[name] = max(largest[name], parameter.grad.abs().max().item())
        optimizer.step()
    return largest


def assert_all_learn(largest: dict[str, float]) -> None:
    dead = {name: value for name, value in largest.items() if not value > THRESHOLD}
    assert not dead


def subclasses(package, base: type) -> set[type]:
    """Concrete classes of a package that derive from ``base``."""
    found = set()
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        for _, member in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(member, base) and not inspect.isabstract(member):
                found.add(member)
    return found


def random_features(size: int = 32) -> dict[str, dict[str, torch.Tensor]]:
    return {
        branch: {
            layer: torch.randn(BATCH, info.channels, size // info.stride, size // info.stride, dtype=torch.float64)
            for layer, info in layers.items()
        }
        for branch, layers in BRANCHES.items()
    }


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_every_amalgamation_and_head_of_the_package_is_in_this_contract():
    assert subclasses(gate_lightning.amalgamation, Amalgamation) == {cls for cls, _ in AMALGAMATIONS.values()}
    # ResNetHead reads images only: its test is in tests/heads/test_resnet_head.py
    assert subclasses(gate_lightning.heads, Head) == {LinearHead, MMSegHead, ResNetHead}


@pytest.mark.parametrize("name", AMALGAMATIONS)
def test_every_parameter_of_an_amalgamation_learns(name):
    cls, options = AMALGAMATIONS[name]
    if cls is WeightedAmalgamation:
        options = {"dropout": 0.0, **options}
    amalgamation = cls(BRANCHES, {"edges"}, **options).double().train()
    features = random_features()
    targets = [torch.randn_like(level) for level in amalgamation(features).levels]

    def loss():
        pyramid = amalgamation(features)
        total = sum((level - target).square().mean() for level, target in zip(pyramid.levels, targets, strict=True))
        regularization = amalgamation.regularization(pyramid)
        return total if regularization is None else total + regularization

    assert_all_learn(gradient_maxima(amalgamation, loss))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("levels", ["all", "middle"])
@pytest.mark.parametrize("type_", WORKING_TYPES)
def test_every_parameter_of_an_mmseg_head_learns(type_, levels, norm):
    options = {"dropout_ratio": 0.0, "levels": levels, **HEAD_OPTIONS.get(type_, {})}
    head = MMSegHead([24, 40, 56], [4, 8, 16], CLASSES, type=type_, channels=32, norm=norm, **options)
    assert_all_learn(head_gradients(head))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_parameter_of_the_linear_head_learns(batch_norm):
    assert_all_learn(head_gradients(LinearHead([24, 40, 56], [4, 8, 16], CLASSES, batch_norm=batch_norm)))


def head_gradients(head: Head) -> dict[str, float]:
    head = head.double().train()
    levels = [
        torch.randn(BATCH, c, 64 // s, 64 // s, dtype=torch.float64)
        for c, s in zip(head.in_channels, head.strides, strict=True)
    ]
    masks = torch.randint(0, CLASSES, (BATCH, 16, 16))
    return gradient_maxima(head, lambda: nn.functional.cross_entropy(head(levels), masks))


def test_the_check_sees_a_dead_block():
    """Zero convolutions before a zero normalisation, as released: all but the last bias stay where they are."""
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)).double()
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x, target = torch.randn(2, 2, 4, 6, 6, dtype=torch.float64)
    largest = gradient_maxima(block, lambda: (x + block(x) - target).square().mean())
    assert [name for name, value in largest.items() if value > THRESHOLD] == ["1.bias"]


def test_the_check_sees_a_bias_before_a_softmax():
    """A bias that all branches share leaves rounding, not zero; the threshold must tell it from a gradient."""
    linear = nn.Linear(4, 3).double()
    x, target = torch.randn(5, 7, 4, dtype=torch.float64), torch.randn(5, 7, 3, dtype=torch.float64)
    largest = gradient_maxima(linear, lambda: (linear(x).softmax(dim=1) - target).square().mean())
    assert largest["bias"] < THRESHOLD < largest["weight"]
