"""Converted guided-diffusion checkpoints against a plain U-Net of the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gate_lightning.backbones.adm.backbone import ADM_SCHEDULE, ADMBackbone
from gate_lightning.backbones.adm.convert import adm_unet, read_architecture
from gate_lightning.backbones.noise_schedule import DiffusionSchedule
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.features.reading.hooks import FeatureRecorder
from gate_lightning.structures import Identity
from tests.support.adm_oracle import OracleUNet, random_oracle
from tests.support.small_networks import relative

# the published structure: six levels, attention on the coarsest three, two blocks a level; two widths and head sizes
PUBLISHED = {"multipliers": (1, 1, 2, 2, 4, 4), "attention": (8, 16, 32)}
WIDE = {"multipliers": (1, 2, 3), "width": 64, "attention": (2,), "head_channels": 64, "res_blocks": 1}
PLAIN = {"scale_shift": False, "residual_resampling": False, "attention": (1, 2), "res_blocks": 3, "out_channels": 3}
MEMBERS = {"published": (PUBLISHED, 16), "wide": (WIDE, 64), "plain": (PLAIN, 16)}


def converted(oracle: OracleUNet, head_channels: int) -> ADMBackbone:
    return ADMBackbone(
        adm_unet(oracle.state_dict(), head_channels, 64), DiffusionSchedule(ADM_SCHEDULE), Identity("oracle", "", "")
    )


def outputs_of_blocks(oracle: OracleUNet, images: Tensor, timestep: int) -> dict[str, Tensor]:
    """Output of every block, and of every part of a block, by its path in guided-diffusion."""
    seen: dict[str, Tensor] = {}
    for path, module in oracle.named_modules():
        if path.startswith(("input_blocks.", "middle_block", "output_blocks.")):
            module.register_forward_hook(lambda _, inputs, output, path=path: seen.__setitem__(path, output))
    seen["unet-out"] = oracle(images, timestep)
    return seen


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), pytest.param(torch.float64, 1e-13, marks=pytest.mark.thorough)]
)
@pytest.mark.parametrize("member", MEMBERS)
@torch.no_grad()
def test_output_and_all_places_agree(member: str, dtype: torch.dtype, tolerance: float) -> None:
    settings, head_channels = MEMBERS[member]
    oracle = random_oracle(**settings)
    backbone = converted(oracle, head_channels).to(dtype)
    oracle.to(dtype)
    deepest = backbone.size_multiple
    images = torch.randn(1, 3, 2 * deepest, deepest, dtype=dtype, generator=torch.Generator().manual_seed(1))
    with FeatureRecorder(backbone, backbone.layers, stop=False) as recorder:
        prediction = backbone.denoise(images, 261, backbone.encode_text([""]))
    expected = outputs_of_blocks(oracle, images, 261)
    blocks = [f"input_blocks.{index}" for index in range(len(oracle.input_blocks))]
    blocks += ["middle_block", *(f"output_blocks.{index}" for index in range(len(oracle.output_blocks))), "unet-out"]
    errors = {block: relative(recorder.features[block], expected[block]) for block in blocks}
    assert max(errors.values()) < tolerance, errors
    assert torch.equal(prediction, recorder.features["unet-out"][:, :3])
    assert [block for block in backbone.layers if block in expected] == blocks


@torch.no_grad()
def test_inner_parts_agree() -> None:
    oracle = random_oracle(**PUBLISHED)
    backbone = converted(oracle, 16)
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with FeatureRecorder(backbone, backbone.layers, stop=False) as recorder:
        backbone.denoise(images, 51, backbone.encode_text([""]))
    expected = outputs_of_blocks(oracle, images, 51)
    places = {
        "output_blocks.2-res-increment": "output_blocks.2.0.out_layers.3",
        "output_blocks.2-res-out": "output_blocks.2.0",
        "output_blocks.2-self-out": "output_blocks.2.1",
        "output_blocks.11-res-out": "output_blocks.11.0",
        "output_blocks.11-up-increment": "output_blocks.11.1.out_layers.3",
        "input_blocks.12-down-increment": "input_blocks.12.0.out_layers.3",
        "middle_block-repeat0-res-out": "middle_block.0",
        "middle_block-self-out": "middle_block.1",
        "middle_block-res-increment": "middle_block.2.out_layers.3",
    }
    for layer, path in places.items():
        assert relative(recorder.features[layer], expected[path]) < 1e-5, layer
    # fused, by head: 4 heads of 16 channels, each its q, k, v
    fused = expected["output_blocks.8.1.qkv"].unflatten(1, (-1, 3, 16))
    for part, name in enumerate("qkv"):
        ours = recorder.features[f"output_blocks.8-self-{name}"].flatten(2)
        assert relative(ours, fused[:, :, part].flatten(1, 2)) < 1e-5


def test_the_split_by_head_matters() -> None:
    # the oracle would agree with a plain three-way split only if there were one head
    oracle = random_oracle(head_channels=32, attention=(2,))
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    wrong = converted(oracle, 64).denoise(images, 51, converted(oracle, 64).encode_text([""]))
    assert relative(wrong, oracle(images, 51)[:, :3]) > 1e-3


def test_the_architecture_is_read_off_the_tensors() -> None:
    state = random_oracle(**PUBLISHED).state_dict()
    found = read_architecture(state, head_channels=16)
    assert found.channels == (32, 32, 64, 64, 128, 128)
    assert found.attention == (False, False, False, True, True, True)
    assert (found.res_blocks, found.in_channels, found.out_channels) == (2, 3, 6)
    assert (found.scale_shift, found.residual_resampling) == (True, True)
    other = read_architecture(random_oracle(**PLAIN).state_dict(), head_channels=16)
    assert (other.res_blocks, other.scale_shift, other.residual_resampling) == (3, False, False)
    assert other.attention == (True, True)


def test_one_level_is_an_architecture_too() -> None:
    oracle = random_oracle(multipliers=(1,), attention=(1,))
    images = torch.randn(1, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    backbone = converted(oracle, 16)
    assert backbone.size_multiple == 1
    assert relative(backbone.denoise(images, 9, backbone.encode_text([""])), oracle(images, 9)[:, :3]) < 1e-5


def test_a_class_conditional_model_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"class-conditional model \(10 classes\).*unconditional"):
        adm_unet(random_oracle(classes=10).state_dict(), 16)


def test_an_upsampler_is_refused() -> None:
    with pytest.raises(WeightsError, match="reads 6 channels"):
        adm_unet(random_oracle(in_channels=6).state_dict(), 16)


def test_another_kind_of_model_is_refused_with_its_keys() -> None:
    state = {f"model.diffusion_model.input_blocks.{index}.weight": torch.zeros(1) for index in range(20)}
    with pytest.raises(WeightsError, match=r"none of its 20 keys.*First keys: model\.diffusion_model\.input_blocks\.0"):
        adm_unet(state)


def test_head_channels_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"head_channels=48 does not divide the 64 channels.*backbone\.head_channels"):
        adm_unet(random_oracle().state_dict(), 48)


@pytest.mark.parametrize("key", ["output_blocks.1.0.in_layers.2.bias", "middle_block.1.qkv.weight", "out.0.weight"])
def test_a_missing_tensor_is_named(key: str) -> None:
    state = random_oracle().state_dict()
    del state[key]
    with pytest.raises(WeightsError, match=r"not loaded in part: [13] missing, such as \w"):
        adm_unet(state, 16)


@pytest.mark.parametrize("key", ["time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight"])
def test_a_missing_tensor_that_tells_the_shape_is_named(key: str) -> None:
    state = random_oracle().state_dict()
    del state[key]
    with pytest.raises(WeightsError, match=f"no {key} in the checkpoint"):
        adm_unet(state, 16)


def test_an_unknown_tensor_is_named() -> None:
    state = {**random_oracle().state_dict(), "extra.weight": torch.zeros(2)}
    with pytest.raises(WeightsError, match=r"1 not expected, such as extra\.weight"):
        adm_unet(state, 16)


def test_a_finest_level_of_another_width_is_refused() -> None:
    with pytest.raises(WeightsError, match="time embedding has 64 channels, the finest level 32"):
        adm_unet(random_oracle(width=64, multipliers=(0.5, 1)).state_dict(), 16)
