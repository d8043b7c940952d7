from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gate_lightning.backbones.kernels import winograd
from gate_lightning.backbones.kernels.winograd import winograd_conv2d
from tests.support.small_networks import relative


def operands(count: int, channels: int, outputs: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    inputs = F.silu(torch.randn(count, channels, height, width, generator=generator))
    weight = torch.randn(outputs, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    return inputs, weight, torch.randn(outputs, generator=generator)


@pytest.mark.parametrize(
    ("count", "channels", "outputs", "height", "width"),
    [(1, 16, 24, 8, 8), (2, 24, 16, 13, 10), (3, 8, 8, 1, 5), (1, 300, 130, 65, 64), (5, 130, 128, 16, 16)],
)
def test_it_is_as_exact_as_the_direct_sum(count: int, channels: int, outputs: int, height: int, width: int) -> None:
    inputs, weight, bias = operands(count, channels, outputs, height, width)
    expected = F.conv2d(inputs.double(), weight.double(), bias.double(), padding=1)
    actual = winograd_conv2d(inputs, weight, bias)
    assert actual.shape == expected.shape
    assert relative(actual, expected) < 1e-6


def test_weights_transformed_block_by_block_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, weight, _ = operands(2, 40, 70, 12, 20)
    expected = F.conv2d(inputs.double(), weight.double(), padding=1)
    monkeypatch.setattr(winograd, "_KEPT", 0)
    monkeypatch.setattr(winograd, "_BLOCK", 40 * 16)
    monkeypatch.setattr(winograd, "_BLOCK_TILES", 7)
    assert (
        relative(winograd_conv2d(inputs.contiguous(memory_format=torch.channels_last), weight, None), expected) < 1e-6
    )


def test_borders_see_zeros_not_the_neighbouring_image_or_strip() -> None:
    inputs, weight, bias = operands(4, 8, 8, 30, 9)
    alone = torch.cat([winograd_conv2d(one, weight, bias) for one in inputs.split(1)])
    assert relative(winograd_conv2d(inputs, weight, bias), alone) < 1e-6
