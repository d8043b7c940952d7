"""LoRA: files of every format against weights merged by hand, samples under different adapters in one batch."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.profiler import profile

from gate_lightning.backbones.adapters import bank as module
from gate_lightning.backbones.specs import PromptEmbeds
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.tasks.pretraining.adapter_files import write_diffusers, write_kohya
from tests.support.small_networks import (
    adapted_layers,
    build,
    merge,
    random_pairs,
    relative,
    save_diffusers,
    save_kohya,
)

#: convolutional and linear projections around the transformers
MEMBERS = ("one_repeat", pytest.param("sd2_like", marks=pytest.mark.thorough))
PROMPT = "a red house"


@pytest.fixture(scope="module", params=MEMBERS)
def clean(request: pytest.FixtureRequest) -> UNetBackbone:
    return build(request.param)


@pytest.fixture
def backbone(clean: UNetBackbone) -> UNetBackbone:
    return copy.deepcopy(clean)


@torch.no_grad()
def predict(backbone: UNetBackbone, adapters: tuple[tuple[str, float], ...] = ()) -> Tensor:
    latents = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    return backbone.denoise(latents, 40, backbone.encode_text([PROMPT], adapters), adapters=[adapters])


def merged(clean: UNetBackbone, pairs: dict[str, tuple[Tensor, Tensor]], strength: float) -> UNetBackbone:
    oracle = copy.deepcopy(clean)
    merge(adapted_layers(oracle), pairs, strength)
    return oracle


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_diffusers_format_equals_merged_weights(
    clean: UNetBackbone, backbone: UNetBackbone, tmp_path: Path, scale: float
) -> None:
    pairs = random_pairs(adapted_layers(clean))
    backbone.require_adapter("a", str(save_diffusers(tmp_path / "a.safetensors", pairs)))
    expected = predict(merged(clean, pairs, scale))
    assert relative(predict(clean), expected) > 1e-2  # the LoRA does something
    assert relative(predict(backbone, (("a", scale),)), expected) < 1e-5
    assert torch.equal(predict(backbone), predict(clean))  # and nothing when not asked for


def test_kohya_format_equals_merged_weights_with_alpha(
    clean: UNetBackbone, backbone: UNetBackbone, tmp_path: Path
) -> None:
    pairs = random_pairs(adapted_layers(clean), rank=4)
    backbone.require_adapter("a", str(save_kohya(tmp_path / "a.safetensors", pairs, alpha=2.0)))
    assert relative(predict(backbone, (("a", 1.0),)), predict(merged(clean, pairs, 2.0 / 4))) < 1e-5


def test_files_written_by_peft_and_diffusers_keep_their_alpha(
    clean: UNetBackbone, backbone: UNetBackbone, tmp_path: Path
) -> None:
    peft_unet = copy.deepcopy(clean.unet)
    config = LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "conv1"], alpha_pattern={"conv1": 8})
    peft_unet.add_adapter(config)
    with torch.no_grad():
        for name, parameter in peft_unet.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) * 0.05)
    StableDiffusionLoraLoaderMixin.save_lora_weights(
        tmp_path, unet_lora_layers=get_peft_model_state_dict(peft_unet), unet_lora_adapter_metadata=config.to_dict()
    )
    backbone.require_adapter("a", str(tmp_path))
    latents, embeds = torch.randn(1, 4, 8, 8), clean.encode_text([PROMPT])
    with torch.no_grad():
        expected = peft_unet(latents, 40, embeds.hidden, return_dict=False)[0]
        actual = backbone.denoise(latents, 40, embeds, adapters=[(("a", 1.0),)])
        assert relative(clean.denoise(latents, 40, embeds), expected) > 1e-2
    assert relative(actual, expected) < 1e-5


@pytest.mark.parametrize("write", ["diffusers", "kohya"])
def test_files_of_this_projects_own_training_are_read(clean: UNetBackbone, tmp_path: Path, write: str) -> None:
    trained, backbone = copy.deepcopy(clean), copy.deepcopy(clean)
    config = LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "conv1", "q_proj"], init_lora_weights=False)
    parts = {"unet": trained.unet, "text_encoder": trained.text_encoder}
    for part in parts.values():
        part.add_adapter(config, adapter_name="default")
    path = tmp_path / "own.safetensors"
    if write == "diffusers":
        write_diffusers(path, parts, torch.float32)
    else:
        write_kohya(path, parts, alpha=2.0, dtype=torch.float32)
    backbone.require_adapter("a", str(path))
    expected = predict(trained)
    assert relative(predict(clean), expected) > 1e-2
    assert relative(predict(backbone, (("a", 1.0),)), expected) < 1e-5


def test_old_diffusers_names_are_read(clean: UNetBackbone, backbone: UNetBackbone, tmp_path: Path) -> None:
    layers = {
        name: layer for name, layer in adapted_layers(clean).items() if "to_" in name and name.startswith("unet.")
    }
    pairs = random_pairs(layers)
    state = {}
    for name, (down, up) in pairs.items():
        block, _, layer = name.removesuffix(".0").rpartition(".")
        state[f"{block}.processor.{layer}_lora.down.weight"], state[f"{block}.processor.{layer}_lora.up.weight"] = (
            down,
            up,
        )
    save_file(state, tmp_path / "old.safetensors")
    backbone.require_adapter("a", str(tmp_path / "old.safetensors"))
    assert relative(predict(backbone, (("a", 1.0),)), predict(merged(clean, pairs, 1.0))) < 1e-5


def test_two_adapters_on_one_sample_add_up(clean: UNetBackbone, backbone: UNetBackbone, tmp_path: Path) -> None:
    oracle = copy.deepcopy(clean)
    for index, (name, scale) in enumerate({"a": 0.7, "b": 0.4}.items()):
        pairs = random_pairs(adapted_layers(clean), seed=index)
        backbone.require_adapter(name, str(save_diffusers(tmp_path / f"{name}.safetensors", pairs)))
        merge(adapted_layers(oracle), pairs, scale)
    assert relative(predict(backbone, (("a", 0.7), ("b", 0.4))), predict(oracle)) < 1e-5


@torch.no_grad()
def test_samples_of_a_batch_have_their_own_adapters_and_scales(clean: UNetBackbone, tmp_path: Path) -> None:
    backbone = copy.deepcopy(clean)
    for index, name in enumerate("ab"):
        pairs = random_pairs(adapted_layers(clean), seed=index, rank=2 + index)
        backbone.require_adapter(name, str(save_diffusers(tmp_path / f"{name}.safetensors", pairs)))
    rows = [(), (("a", 1.0),), (("a", 0.5),), (("b", 1.0),), (("a", 0.2), ("b", 0.3))]
    latents = torch.randn(len(rows), 4, 8, 8)
    embeds = PromptEmbeds.cat([backbone.encode_text([PROMPT], row) for row in rows])
    together = backbone.denoise(latents, 40, embeds, adapters=rows)
    for index, row in enumerate(rows):
        alone = backbone.denoise(latents[index, None], 40, embeds[index : index + 1], adapters=[row])
        assert relative(together[index, None], alone) < 1e-5


@torch.no_grad()
def test_on_an_accelerator_a_linear_layer_adds_all_branches_as_one_product(
    clean: UNetBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = copy.deepcopy(clean)
    layers = adapted_layers(clean)
    for index, name in enumerate("ab"):
        pairs = random_pairs(layers, seed=index, rank=2 + index)
        backbone.require_adapter(name, str(save_diffusers(tmp_path / f"{name}.safetensors", pairs)))
    a, b, both = (("a", 1.0),), (("b", 0.7),), (("a", 0.2), ("b", 0.3))
    for rows in ([(), (), a, a, b, b], [a, a, (), b], [both, b, a, a], [b, b]):
        latents = torch.randn(len(rows), 4, 8, 8)
        embeds = PromptEmbeds.cat([backbone.encode_text([PROMPT], row) for row in rows])
        expected = backbone.denoise(latents, 40, embeds, adapters=rows)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_bound_by_launches", lambda tensor: True)
            actual = backbone.denoise(latents, 40, embeds, adapters=rows)
        assert not torch.equal(actual, expected)  # it was computed in the other way
        assert relative(actual, expected) < 2e-6


@torch.no_grad()
def test_branches_of_runs_of_equal_length_are_two_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_bound_by_launches", lambda tensor: True)
    layer, inputs = torch.nn.Linear(8, 6), torch.randn(6, 5, 8)
    branches = [module.LowRank(layer, torch.randn(rank, 8), torch.randn(6, rank), 0.5) for rank in (2, 3)]
    hook = module._AddBranches([(branches[0], 1.0, slice(2, 4)), (branches[1], 2.0, slice(4, 6))])
    plain = layer(inputs)
    layer.register_forward_hook(hook)
    layer(inputs)  # stacks the weights
    with profile() as recorded:
        steered = layer(inputs)
    counts = {event.key: event.count for event in recorded.key_averages()}
    assert (counts["aten::bmm"], counts["aten::baddbmm_"]) == (1, 1)
    expected = plain.clone()
    for branch, scale, rows in hook.branches:
        expected[rows] += scale * branch.strength * (inputs[rows] @ branch.down.T @ branch.up.T)
    torch.testing.assert_close(steered, expected)
    assert torch.equal(steered[:2], plain[:2])


def test_hooks_of_a_pass_are_found_once_and_again_after_a_change(backbone: UNetBackbone, tmp_path: Path) -> None:
    path = save_diffusers(tmp_path / "a.safetensors", random_pairs(adapted_layers(backbone)))
    backbone.require_adapter("a", str(path))
    steer = (("a", 1.0),)
    first = predict(backbone, steer)
    plans = dict(backbone.adapters._plans)
    assert torch.equal(predict(backbone, steer), first)
    assert backbone.adapters._plans == plans
    other = copy.deepcopy(backbone)
    assert not other.adapters._plans
    assert torch.equal(predict(other, steer), first)
    assert not backbone.double().adapters._plans  # its products would be of the other type


def test_adapters_follow_the_backbones_type(backbone: UNetBackbone, tmp_path: Path) -> None:
    path = save_diffusers(tmp_path / "a.safetensors", random_pairs(adapted_layers(backbone)))
    backbone.require_adapter("a", str(path))
    backbone.to(torch.bfloat16)
    with torch.no_grad():
        embeds = backbone.encode_text([PROMPT], (("a", 1.0),))
        prediction = backbone.denoise(torch.randn(1, 4, 8, 8).bfloat16(), 40, embeds, adapters=[(("a", 1.0),)])
    assert prediction.dtype == torch.bfloat16


def test_only_adapters_with_a_text_part_change_the_text(backbone: UNetBackbone, tmp_path: Path) -> None:
    pairs = random_pairs(adapted_layers(backbone))
    unet_only = {name: pair for name, pair in pairs.items() if name.startswith("unet.")}
    backbone.require_adapter("both", str(save_diffusers(tmp_path / "both.safetensors", pairs)))
    backbone.require_adapter("unet", str(save_diffusers(tmp_path / "unet.safetensors", unet_only)))
    assert backbone.text_adapters((("both", 0.5), ("unet", 1.0))) == (("both", 0.5),)
    assert backbone.text_adapters((("both", 0.0),)) == ()
    plain, same, other = (
        backbone.encode_text([PROMPT], steer).hidden for steer in ((), (("unet", 1.0),), (("both", 1.0),))
    )
    assert torch.equal(plain, same)
    assert not torch.equal(plain, other)


def test_a_lora_for_wider_layers_is_refused_with_both_shapes(tmp_path: Path) -> None:
    backbone, other = build("sd2_like"), build("tiny")
    pairs = random_pairs({"unet.up_blocks.1.resnets.0.conv1": other.unet.up_blocks[1].resnets[0].conv1})
    with pytest.raises(
        WeightsError, match=r"another architecture: up_blocks\.1\.resnets\.0\.conv1 is \(32, 64, 3, 3\)"
    ):
        backbone.require_adapter("a", str(save_diffusers(tmp_path / "a.safetensors", pairs)))


def test_a_lora_for_layers_that_are_not_there_is_refused_with_a_key(tmp_path: Path) -> None:
    backbone = build("one_repeat")
    layers = {f"unet.up_blocks.1.resnets.{repeat}.conv1": torch.nn.Conv2d(4, 4, 3) for repeat in (7, 8)}
    path = save_kohya(tmp_path / "a.safetensors", random_pairs(layers), 1.0)
    message = r"another architecture: 2 of its 2 layers are not.*lora_unet_up_blocks_1_resnets_7.*experiment=lora"
    with pytest.raises(WeightsError, match=message):
        backbone.require_adapter("a", str(path))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_unet_mid_block_resnets_0_conv1.hada_w1_a", "LoHa"),
        ("lora_unet_mid_block_resnets_0_conv1.lokr_w1", "LoKr"),
        ("unet.mid_block.resnets.0.conv1.lora_magnitude_vector.weight", "DoRA"),
        ("conv_in.weight", "no LoRA file: it holds conv_in.weight"),
        ("unet.mid_block.resnets.0.conv1.lora_A.weight", "half of a pair"),
    ],
)
def test_other_files_are_refused_by_name(backbone: UNetBackbone, tmp_path: Path, key: str, message: str) -> None:
    save_file({key: torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=message):
        backbone.require_adapter("a", str(tmp_path / "x.safetensors"))


def test_one_name_cannot_stand_for_two_files(backbone: UNetBackbone, tmp_path: Path) -> None:
    pairs = random_pairs(adapted_layers(backbone))
    one, two = (str(save_diffusers(tmp_path / f"{name}.safetensors", pairs)) for name in "ab")
    backbone.require_adapter("moderate", one)
    backbone.require_adapter("moderate", one)
    with pytest.raises(ConfigError, match=r"moderate.*already"):
        backbone.require_adapter("moderate", two)
    assert len(load_file(one)) == 2 * len(pairs)
