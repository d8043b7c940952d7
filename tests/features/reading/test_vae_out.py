"""``vae-out``, the image after one scheduler step, against diffusers' schedulers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from torch import Tensor

from gate_lightning.backbones.noise_schedule import DiffusionSchedule
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.reading.hooks import FeatureRecorder
from tests.support.small_networks import build, conditions, random_images

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def backbone_of(member: str, scheduler: str) -> UNetBackbone:
    made = build(member)
    schedule = {**made.schedule.config, "_class_name": scheduler}
    again = UNetBackbone(
        made.unet, made.vae, made.text_encoder, made.tokenizer, DiffusionSchedule(schedule), made.identity
    )
    assert again.schedule.prediction_type == ("v_prediction" if member == "sd2_like" else "epsilon")
    return again


@torch.no_grad()
def by_hand(backbone: UNetBackbone, scheduler: Any, noisy: Tensor, timestep: int) -> Tensor:
    """The whole pipeline step: diffusers' scheduler at its list's entry ``timestep``, then the decoder."""
    scheduler.set_timesteps(1000)
    embeds = backbone.encode_text(["a photo"] * len(noisy)).hidden
    prediction = backbone.unet(noisy, timestep, encoder_hidden_states=embeds).sample
    latents, listed = noisy, next(entry for entry in scheduler.timesteps if entry == timestep)
    if isinstance(scheduler, EulerDiscreteScheduler):  # its own latents are those divided by √ᾱ
        latents = noisy / scheduler.alphas_cumprod[timestep].sqrt()
        torch.testing.assert_close(scheduler.scale_model_input(latents, listed), noisy)
    stepped = scheduler.step(prediction, listed, latents, return_dict=False)[0]
    decoded: Tensor = backbone.vae.decode(stepped / backbone.vae.config.scaling_factor).sample
    return decoded


@pytest.mark.parametrize("member", ["one_repeat", "sd2_like"])
@pytest.mark.parametrize("kind", ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler"])
def test_it_is_one_step_and_the_decoder(member: str, kind: str) -> None:
    backbone = backbone_of(member, kind)
    own: dict[str, dict[str, Any]] = {
        "PNDMScheduler": {"skip_prk_steps": True},
        "DDIMScheduler": {"clip_sample": False},
        "EulerDiscreteScheduler": {"timestep_spacing": "leading"},
    }
    classes = {"PNDMScheduler": PNDMScheduler, "DDIMScheduler": DDIMScheduler}
    cls: Any = classes.get(kind, EulerDiscreteScheduler)
    scheduler = cls(**BETAS, **own[kind], prediction_type=backbone.schedule.prediction_type)
    images = random_images(2, 72, 104)
    with torch.no_grad():
        mean = backbone.encode(images)
    noisy = backbone.schedule.add_noise(mean, torch.randn(mean.shape, generator=torch.Generator().manual_seed(3)), 51)
    with torch.no_grad(), FeatureRecorder(backbone, ["vae-out", "us1"]) as recorder:
        backbone.denoise(noisy, 51, backbone.encode_text(["a photo"] * 2))
    actual = recorder.features["vae-out"]
    assert actual.shape == (2, 3, *(side * backbone.latent_stride for side in noisy.shape[-2:]))
    torch.testing.assert_close(actual, by_hand(backbone, scheduler, noisy, 51), rtol=1e-3, atol=1e-4)


def test_it_is_a_layer_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build("tiny")
    decoded = []
    original = UNetBackbone.decode
    monkeypatch.setattr(UNetBackbone, "decode", lambda *args: decoded.append(1) or original(*args))
    images = random_images(2, 64, 96)
    extractor = FeatureExtractor(backbone, [Branch("a", 5, ("vae-out",)), Branch("b", 5, ("up-level1-upsampler-out",))])
    assert extractor.feature_info["a"]["vae-out"].stride == 1
    features = extractor(images, conditions(2))
    assert features["a"]["vae-out"].shape == images.shape
    assert decoded == [1]
    FeatureExtractor(backbone, [Branch("b", 5, ("up-level1-upsampler-out",))])(images, conditions(2))
    assert decoded == [1]  # only where it is asked for


def test_at_timestep_zero_the_schedule_says_where_the_step_ends() -> None:
    backbone = backbone_of("one_repeat", "DDIMScheduler")
    latents, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    noisy = backbone.schedule.add_noise(latents, noise, 0)
    with torch.no_grad():
        torch.testing.assert_close(backbone.image_after_step(noisy, noise, 0), backbone.decode(latents))


def test_a_backbone_without_a_decoder_has_no_such_layer() -> None:
    with pytest.raises(ConfigError, match="no layer 'vae-out'"):
        build("pixels").feature_info(["vae-out"])
