from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.backbones.tiny.tokenizer import build_tokenizer
from gate_lightning.errors import ConfigError, DataError, WeightsError
from gate_lightning.structures import Identity
from tests.support.small_networks import build


@pytest.fixture(scope="module")
def backbone() -> UNetBackbone:
    return build("tiny")


@pytest.mark.parametrize("timestep", [0, 50, 999])
def test_noise_follows_stable_diffusions_schedule(backbone: UNetBackbone, timestep: int) -> None:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha = np.cumprod(1 - betas)[timestep]
    latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    expected = np.sqrt(alpha) * latents.numpy() + np.sqrt(1 - alpha) * noise.numpy()
    np.testing.assert_allclose(
        backbone.schedule.add_noise(latents, noise, timestep).numpy(), expected, rtol=1e-4, atol=1e-5
    )


def test_the_u_net_is_told_the_timestep_that_was_asked_for(backbone: UNetBackbone) -> None:
    told = []
    handle = backbone.unet.register_forward_pre_hook(lambda module, inputs: told.append(inputs[1]))
    with torch.no_grad():
        backbone.denoise(torch.randn(1, 4, 8, 8), 50, backbone.encode_text([""]))
    handle.remove()
    assert told == [50]


def test_sizes_that_the_autoencoder_cannot_halve_are_refused_with_the_nearest_ones(backbone: UNetBackbone) -> None:
    with pytest.raises(DataError, match=r"66 × 90 .* multiples of 4.* height 64 or 68, width 88 or 92"):
        backbone.check_images(torch.zeros(1, 3, 66, 90))


def test_a_tokenizer_that_does_not_belong_to_the_text_encoder_is_refused(backbone: UNetBackbone) -> None:
    parts = (backbone.unet, backbone.vae, backbone.text_encoder, build_tokenizer(["other"]))
    with pytest.raises(WeightsError, match=r"tokenizer has .* tokens, the text encoder"):
        UNetBackbone(*parts, backbone.schedule, Identity("x", "", ""))


def test_parts_of_two_models_are_refused(backbone: UNetBackbone) -> None:
    other = build("one_repeat")
    with pytest.raises(WeightsError, match="128 channels, the U-Net reads 32"):
        UNetBackbone(
            other.unet,
            backbone.vae,
            backbone.text_encoder,
            backbone.tokenizer,
            backbone.schedule,
            Identity("x", "", ""),
        )


def test_a_network_with_further_conditions_is_refused(backbone: UNetBackbone) -> None:
    xl = UNet2DConditionModel(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        mid_block_type=None,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16,
    )
    with pytest.raises(WeightsError, match="text_time"):
        UNetBackbone(xl, backbone.vae, backbone.text_encoder, backbone.tokenizer, backbone.schedule, backbone.identity)


def test_a_controlnet_of_another_architecture_is_refused(backbone: UNetBackbone) -> None:
    other = ControlNetModel.from_unet(build("one_repeat").unet, conditioning_embedding_out_channels=(4, 4))
    with pytest.raises(WeightsError, match=r"another architecture.*layers_per_block.*reduced by 2"):
        backbone.add_controlnet("other", other)


def test_a_controlnet_without_a_source_names_the_key_that_takes_one(backbone: UNetBackbone) -> None:
    with pytest.raises(ConfigError, match=r"no ControlNet 'depth' .*canny.*backbone\.controlnets\.depth"):
        backbone.require_controlnet("depth")


def test_latents_are_decoded_to_images_of_the_encoded_size(backbone: UNetBackbone) -> None:
    with torch.no_grad():
        assert backbone.decode(backbone.encode(torch.zeros(1, 3, 36, 64))).shape == (1, 3, 36, 64)
