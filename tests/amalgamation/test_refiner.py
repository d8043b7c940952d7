"""Residual refiners."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gate_lightning.amalgamation.weighted import ResidualBlock, build_norm
from gate_lightning.errors import ConfigError
from tests.support.paths import GOLDEN


@pytest.mark.parametrize("norm", ["GN", "BN"])
def test_a_block_is_the_identity_at_the_start_and_not_after_one_step(norm):
    torch.manual_seed(0)
    block, x = ResidualBlock(16, norm), torch.randn(2, 16, 5, 4)
    assert torch.equal(block(x), x)
    block(x).square().mean().backward()
    torch.optim.SGD(block.parameters(), lr=1.0).step()
    assert not torch.equal(block(x), x)


def test_an_unknown_norm_is_refused():
    with pytest.raises(ConfigError, match="expected GN"):
        build_norm("LN", 8)


def test_a_block_computes_what_the_released_one_does():
    """Its convolutions have a bias, which the batch normalisation's mean takes up."""
    arrays = np.load(GOLDEN / "o_amalgamation_level.npz")
    x = torch.from_numpy(arrays["summed"]).double()
    for name in ("res.0", "res.1"):
        x = released_block(arrays, f"w_amalgemated/{name}")(x)
    # values reach 5, where single precision, in which the reference was computed, has steps of 5e-7
    torch.testing.assert_close(x.float(), torch.from_numpy(arrays["out"]), rtol=1e-6, atol=1e-6)


def released_block(arrays, prefix: str) -> ResidualBlock:
    weights = {
        key.removeprefix(f"{prefix}."): torch.from_numpy(arrays[key]) for key in arrays if key.startswith(prefix)
    }
    state = {}
    for conv, norm, name in ((0, 1, "conv1"), (3, 4, "conv2")):
        state[f"layers.{conv}.weight"] = weights[f"{name}.0.weight"]
        for part in ("weight", "bias", "running_var", "num_batches_tracked"):
            state[f"layers.{norm}.{part}"] = weights[f"{name}.1.{part}"]
        state[f"layers.{norm}.running_mean"] = weights[f"{name}.1.running_mean"] - weights[f"{name}.0.bias"]
    block = ResidualBlock(24, "BN").eval()
    block.load_state_dict(state)
    return block.double()
