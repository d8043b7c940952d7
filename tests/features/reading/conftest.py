"""The small network that tests of reading share."""

from __future__ import annotations

import copy

import pytest

from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from tests.support.small_networks import build


@pytest.fixture(scope="module")
def network() -> UNetBackbone:
    """The embedded architecture with random weights, for tests that leave it as it is."""
    return build("tiny")


@pytest.fixture
def backbone(network: UNetBackbone) -> UNetBackbone:
    """A copy of the network that a test may change."""
    return copy.deepcopy(network)
