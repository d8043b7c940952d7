"""SDXL against diffusers' own image-to-image pipeline around the same modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from gate_lightning.backbones.noise_schedule import DiffusionSchedule
from gate_lightning.backbones.specs import PromptEmbeds
from gate_lightning.backbones.stable_diffusion.sdxl import SDXLBackbone, SizeConditions
from gate_lightning.errors import ConfigError, WeightsError
from tests.support.small_networks import merge, random_images, random_pairs, relative, save_diffusers
from tests.support.xl_networks import xl_like, xl_pipeline

PROMPTS = ["a red circle", "photo of a house on grass"]


@pytest.fixture(scope="module")
def backbone() -> SDXLBackbone:
    return xl_like()


class _StoppedError(Exception):
    pass


def first_call(pipeline: Any, **settings: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the pipeline gives the U-Net first."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def stop(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append((inputs, named))
        raise _StoppedError

    handle = pipeline.unet.register_forward_pre_hook(stop, with_kwargs=True)
    with pytest.raises(_StoppedError):
        pipeline(guidance_scale=1.0, num_inference_steps=1000, **settings)
    handle.remove()
    return seen[0]


@torch.no_grad()
def test_a_pass_is_that_of_the_pipeline(backbone: SDXLBackbone) -> None:
    oracle, images = xl_like(), random_images(2, 48, 80)
    (latents, timestep), named = first_call(
        xl_pipeline(oracle),
        prompt=PROMPTS,
        image=images / 2 + 0.5,
        strength=0.05,
        generator=torch.Generator().manual_seed(3),
    )
    expected = oracle.unet(latents, timestep, **{**named, "return_dict": False})[0]

    generator = torch.Generator().manual_seed(3)  # the posterior's sample first, then the noise
    posterior, noise = (torch.randn(2, 4, 12, 20, generator=generator) for _ in range(2))
    embeds = backbone.encode_text(PROMPTS)
    noisy = backbone.schedule.add_noise(backbone.encode(images, posterior), noise, 50)
    assert int(timestep) == 50
    assert relative(noisy, latents) < 1e-6
    assert torch.equal(embeds.hidden, named["encoder_hidden_states"])
    assert torch.equal(embeds.pooled, named["added_cond_kwargs"]["text_embeds"])
    assert named["added_cond_kwargs"]["time_ids"].tolist() == [[48, 80, 0, 0, 48, 80]] * 2
    assert torch.equal(backbone.denoise(latents, 50, embeds), expected)
    assert relative(backbone.denoise(noisy, 50, embeds), expected) < 1e-5


@pytest.mark.thorough
@torch.no_grad()
def test_a_model_with_a_score_is_told_the_score() -> None:
    oracle, backbone = xl_like(numbers=5), xl_like(numbers=5, size_conditions=SizeConditions(aesthetic_score=7.5))
    (latents, timestep), named = first_call(
        xl_pipeline(oracle, requires_aesthetics_score=True),
        prompt=PROMPTS,
        image=random_images(2) / 2 + 0.5,
        strength=0.05,
        aesthetic_score=7.5,
    )
    expected = oracle.unet(latents, timestep, **{**named, "return_dict": False})[0]
    assert named["added_cond_kwargs"]["time_ids"].tolist() == [[64, 96, 0, 0, 7.5]] * 2
    assert torch.equal(backbone.denoise(latents, 50, backbone.encode_text(PROMPTS)), expected)


@pytest.mark.thorough
@torch.no_grad()
def test_sizes_can_be_set(backbone: SDXLBackbone) -> None:
    sizes = {"original_size": (100, 200), "crop": (5, 7), "target_size": (300, 400)}
    told, oracle = xl_like(size_conditions=SizeConditions(**sizes)), xl_like()
    (latents, timestep), named = first_call(
        xl_pipeline(oracle),
        prompt=PROMPTS,
        image=random_images(2) / 2 + 0.5,
        strength=0.05,
        original_size=(100, 200),
        crops_coords_top_left=(5, 7),
        target_size=(300, 400),
    )
    expected = oracle.unet(latents, timestep, **{**named, "return_dict": False})[0]
    embeds = told.encode_text(PROMPTS)
    assert torch.equal(told.denoise(latents, 50, embeds), expected)
    assert relative(backbone.denoise(latents, 50, embeds), expected) > 1e-4
    assert told.description["size_conditions"] != backbone.description["size_conditions"]


@pytest.mark.parametrize(
    "sizes", [{"crop": (1,)}, {"crop": (-1, 0)}, {"original_size": (0, 5)}, {"target_size": "12"}, {"crop": (True, 1)}]
)
def test_sizes_that_are_none_are_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"size_conditions.{next(iter(sizes))}=.*(two )?whole number"):
        SizeConditions(**sizes)


@torch.no_grad()
@pytest.mark.parametrize("change", [lambda b: b.to(torch.bfloat16), lambda b: b.half()])
def test_the_autoencoder_alone_stays_in_single_precision(backbone: SDXLBackbone, change: Any) -> None:
    half, images = change(xl_like()), random_images(1)
    others = {parameter.dtype for name, parameter in half.named_parameters() if not name.startswith("vae.")}
    assert others == {half.dtype}
    assert half.dtype.itemsize == 2
    for kept, exact in zip(half.vae.parameters(), backbone.vae.parameters(), strict=True):
        assert torch.equal(kept, exact)  # not rounded and widened again
    latents = half.encode(images)
    assert latents.dtype == half.dtype
    assert relative(latents, backbone.encode(images)) < 0.01
    assert half.decode(latents).shape == images.shape
    assert half.denoise(latents, 50, half.encode_text(["a"])).dtype == half.dtype


def test_an_autoencoder_that_does_not_overflow_is_converted() -> None:
    assert xl_like(force_upcast=False).half().vae.dtype == torch.float16


@torch.no_grad()
def test_controlnets_are_told_the_same(backbone: SDXLBackbone) -> None:
    control = ControlNetModel.from_unet(backbone.unet, conditioning_embedding_out_channels=(4, 4, 8))
    for convolution in [*control.controlnet_down_blocks, control.controlnet_mid_block]:
        convolution.reset_parameters()
    backbone.add_controlnet("canny", control)
    latents, embeds, edges = torch.randn(2, 4, 16, 24), backbone.encode_text(PROMPTS), torch.rand(2, 3, 64, 96)
    residuals = backbone.control_residuals("canny", latents, 50, embeds, edges)
    told = {"text_embeds": embeds.pooled, "time_ids": torch.tensor([[64.0, 96, 0, 0, 64, 96]] * 2)}
    expected_down, expected = control(
        latents, 50, embeds.hidden, edges, added_cond_kwargs=told, guess_mode=False, return_dict=False
    )
    assert all(map(torch.equal, residuals.values(), (*expected_down, expected)))
    assert list(residuals) == [*backbone.skips, "mid_block"]
    assert len(residuals) == len(expected_down) + 1
    plain = backbone.denoise(latents, 50, embeds)
    steered = backbone.denoise(latents, 50, embeds, residuals)
    assert relative(steered, plain) > 1e-3


@torch.no_grad()
def test_a_lora_acts_on_the_u_net_and_both_text_encoders(tmp_path: Path) -> None:
    def layers(backbone: SDXLBackbone) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {}
        for part, ends in (("unet", ("to_q", "conv1")), ("text_encoder", ("q_proj",)), ("text_encoder_2", ("fc1",))):
            for path, module in getattr(backbone, part).named_modules():
                if path.endswith(ends):
                    found[f"{part}.{path if part == 'unet' or 'text_model' in path else f'text_model.{path}'}"] = module
        return found

    backbone, merged = xl_like(), xl_like()
    pairs = random_pairs(layers(merged))
    merge(layers(merged), pairs, 0.8)
    backbone.require_adapter("style", str(save_diffusers(tmp_path / "lora.safetensors", pairs)))
    steered, latents = (("style", 0.8),), torch.randn(2, 4, 16, 24)
    embeds, expected = backbone.encode_text(PROMPTS, steered), merged.encode_text(PROMPTS)
    assert backbone.text_adapters(steered) == steered
    assert relative(embeds.hidden, expected.hidden) < 1e-5
    assert relative(embeds.pooled, expected.pooled) < 1e-5
    assert relative(backbone.encode_text(PROMPTS).pooled, expected.pooled) > 1e-3
    result = backbone.denoise(latents, 50, embeds, adapters=[steered] * 2)
    assert relative(result, merged.denoise(latents, 50, expected)) < 1e-5


@torch.no_grad()
def test_long_prompts_are_read_in_windows(backbone: SDXLBackbone) -> None:
    words = ["a", "red", "circle"] * 20
    long = backbone.encode_text([" ".join(words)])
    parts = [backbone.encode_text([" ".join(words[start : start + 38])]) for start in (0, 38)]
    assert backbone.text_length(" ".join(words)) == 80
    torch.testing.assert_close(long.hidden, torch.cat([part.hidden for part in parts], dim=1))
    torch.testing.assert_close(long.pooled, parts[0].pooled)


@torch.no_grad()
def test_long_prompts_as_released_take_the_window_with_the_end(backbone: SDXLBackbone) -> None:
    released = xl_like()
    released.long_prompts = "released"
    embeds = released.encode_text([" ".join(["a"] * 71)])
    assert embeds.hidden.shape == (1, 73, 56)
    assert embeds.pooled is not None
    assert not torch.equal(embeds.pooled, backbone.encode_text([""]).pooled)


def test_a_prompt_without_its_pooled_vector_is_refused(backbone: SDXLBackbone) -> None:
    with pytest.raises(ConfigError, match="pooled vector"):
        backbone.denoise(torch.zeros(1, 4, 8, 8), 50, PromptEmbeds(torch.zeros(1, 40, 56)))


def parts(backbone: SDXLBackbone, **changed: Any) -> list[Any]:
    names = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "schedule", "identity")
    return [changed.get(name, getattr(backbone, name)) for name in names]


def test_parts_of_two_models_are_refused(backbone: SDXLBackbone) -> None:
    with pytest.raises(WeightsError, match="text encoders give 48 channels, the U-Net reads 56"):
        SDXLBackbone(*parts(backbone, text_encoder_2=_with_projection(backbone.text_encoder)))
    with pytest.raises(WeightsError, match=r"reads 76 numbers .* gives 20 and each size 8"):
        xl_like(numbers=7)


def _with_projection(encoder: nn.Module) -> nn.Module:
    return type("Encoder", (nn.Module,), {"config": encoder.config})()


def test_an_edm_schedule_is_refused(backbone: SDXLBackbone) -> None:
    schedule = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_max": 80.0, "num_train_timesteps": 1000}
    with pytest.raises(WeightsError, match=r"EDMDPMSolver.*no betas.*Playground v2\.5"):
        DiffusionSchedule(schedule)


@torch.no_grad()
def test_samples_of_a_batch_do_not_see_each_other(backbone: SDXLBackbone) -> None:
    latents = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    embeds = backbone.encode_text(PROMPTS)
    both: Tensor = backbone.denoise(latents, 50, embeds)
    alone = [backbone.denoise(latents[row : row + 1], 50, embeds[row : row + 1]) for row in range(2)]
    assert relative(torch.cat(alone), both) < 1e-6
