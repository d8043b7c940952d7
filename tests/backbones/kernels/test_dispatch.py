from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from gate_lightning.backbones.kernels import dispatch as module
from gate_lightning.backbones.kernels.dispatch import fast_ops
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from tests.support.small_networks import build, conditions, random_images, relative


@pytest.fixture
def winograd_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the convolutions that were computed by Winograd's algorithm."""
    calls: list[tuple[int, ...]] = []
    original: Callable[..., Tensor] = module.winograd_conv2d

    def listened(inputs: Tensor, *others: Tensor) -> Tensor:
        calls.append(tuple(inputs.shape))
        return original(inputs, *others)

    monkeypatch.setattr(module, "winograd_conv2d", listened)
    return calls


@torch.no_grad()
def test_a_residual_block_gives_the_same_and_hooks_see_its_convolutions(winograd_calls: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=128, out_channels=160, temb_channels=32).eval()
    inputs, time = torch.randn(2, 128, 24, 20), torch.randn(2, 32)
    seen: list[Tensor] = []
    handle = block.conv2.register_forward_hook(lambda own, given, output: seen.append(output))
    expected = block(inputs, time)
    assert not winograd_calls
    with fast_ops():
        actual = block(inputs, time)
    handle.remove()
    assert winograd_calls == [(2, 128, 24, 20), (2, 160, 24, 20)]
    assert relative(actual, expected) < 2e-6
    assert relative(seen[1], seen[0]) < 2e-6
    block(inputs, time)
    assert len(winograd_calls) == 2  # the context is closed


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(128, 128, 3, stride=2, padding=1),
        nn.Conv2d(128, 128, 3, padding=0),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2),
        nn.Conv2d(256, 256, 3, padding=1, groups=2),
        nn.Conv2d(128, 128, 3, padding="same"),
        nn.Conv2d(128, 128, 1),
        nn.Conv2d(4, 128, 3, padding=1),
    ],
    ids=str,
)
@torch.no_grad()
def test_other_convolutions_run_as_they_are(layer: nn.Conv2d, winograd_calls: list[tuple[int, ...]]) -> None:
    inputs = torch.randn(1, layer.in_channels, 32, 32)
    with fast_ops():
        actual = layer(inputs)
    assert relative(actual, layer(inputs)) < 2e-6
    assert not winograd_calls


@pytest.mark.thorough
@torch.no_grad()
def test_half_precision_is_bit_equal(winograd_calls: list[tuple[int, ...]]) -> None:
    layer, inputs = nn.Conv2d(128, 128, 3, padding=1).bfloat16(), torch.randn(1, 128, 32, 32).bfloat16()
    with fast_ops():
        actual = layer(inputs)
    assert torch.equal(actual, layer(inputs))
    assert not winograd_calls


def test_nothing_changes_where_gradients_are_wanted(winograd_calls: list[tuple[int, ...]]) -> None:
    layer = nn.Conv2d(128, 128, 3, padding=1)
    with fast_ops():
        layer(torch.randn(1, 128, 32, 32)).sum().backward()
    assert layer.weight.grad is not None
    assert not winograd_calls


@torch.no_grad()
def test_large_maps_in_channels_last_are_normalised_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GROUP_VALUES", 64)
    norm = nn.GroupNorm(4, 16, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    inputs = (torch.randn(2, 16, 30, 20) * 1.5 + 3).contiguous(memory_format=torch.channels_last)
    expected = F.group_norm(inputs.double(), 4, norm.weight.double(), norm.bias.double(), 1e-6)
    with fast_ops():
        actual = norm(inputs)
    assert relative(actual, expected) < 1e-6
    assert actual.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_attention_in_bfloat16_is_as_exact_as_the_fused_kernel() -> None:
    generator = torch.Generator().manual_seed(0)
    # as attention processors hand them over: (B, N, heads, d) underneath
    query, key, value = (torch.randn(2, count, 3, 40, generator=generator) for count in (300, 320, 320))
    given = [one.bfloat16().transpose(1, 2) for one in (query, key, value)]
    expected = F.scaled_dot_product_attention(*(one.double() for one in given))
    fused = F.scaled_dot_product_attention(*given, attn_mask=None, dropout_p=0.0, is_causal=False)
    with fast_ops():
        actual = F.scaled_dot_product_attention(*given, attn_mask=None, dropout_p=0.0, is_causal=False)
        causal = F.scaled_dot_product_attention(*given, is_causal=True)
    assert not torch.equal(actual, fused)  # it was computed in the other way
    assert relative(actual, expected) < 3 * relative(fused, expected) < 0.02
    assert torch.equal(causal, F.scaled_dot_product_attention(*given, is_causal=True))


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 3), (1, 1)])
def test_a_convolution_of_a_doubled_map_reads_the_map_itself(
    height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MIN_DOUBLED", 1)
    generator = torch.Generator().manual_seed(0)
    upsampler = torch.nn.Conv2d(12, 20, 3, padding=1).bfloat16()
    maps = torch.randn(2, 12, height, width, generator=generator).bfloat16()
    doubled = F.interpolate(maps, scale_factor=2.0, mode="nearest")
    expected = F.conv2d(doubled.double(), upsampler.weight.double(), upsampler.bias.double(), padding=1)
    sizes: list[tuple[int, ...]] = []
    plain = torch.conv2d

    def counted(input: torch.Tensor, weight: torch.Tensor, *others: Any) -> torch.Tensor:
        sizes.append(tuple(weight.shape[2:]))
        return plain(input, weight, *others)

    monkeypatch.setattr(torch, "conv2d", counted)
    with fast_ops():
        actual = upsampler(F.interpolate(maps, scale_factor=2.0, mode="nearest"))
        changed = upsampler(F.interpolate(maps, scale_factor=2.0, mode="nearest") * 2)
    assert sizes == [(2, 2)] * 4 + [(3, 3)]  # what was done to the doubled map in between is not lost
    assert relative(actual, expected) < 0.01
    assert relative(changed, upsampler(doubled * 2).double()) < 0.01


@torch.no_grad()
def test_only_a_division_by_one_is_left_out() -> None:
    value, counts = torch.tensor([2.0, 3.0]), torch.tensor([2, 3])
    with fast_ops():
        assert (value / 1.0) is value
        assert (value / 2.0).tolist() == [1.0, 1.5]
        assert (counts / 1).dtype == torch.float32
        assert (value / torch.ones(2)).tolist() == [2.0, 3.0]


def test_features_are_the_same_without_it() -> None:
    backbone = build("tiny")
    branch = Branch("plain", 50, tuple(layer for layer in backbone.layers if layer.endswith("-out")))
    images, given = random_images(2), conditions(2)
    fast, slow = (FeatureExtractor(backbone, [branch], fast=fast)(images, given)["plain"] for fast in (True, False))
    assert max(relative(fast[layer], slow[layer]) for layer in slow) < 1e-5


def test_switched_off_nothing_of_it_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("fast operations are on")

    for name in ("_mallopt", "_FastOps"):
        monkeypatch.setattr(f"gate_lightning.backbones.kernels.dispatch.{name}", refuse)
    branches = [Branch("a", 50, ("unet-after-conv-in",))]
    backbone, images = build("tiny"), random_images(1)
    FeatureExtractor(backbone, branches, fast=False)(images, conditions(1))
    with pytest.raises(AssertionError, match="fast operations are on"):
        FeatureExtractor(backbone, branches)(images, conditions(1))
