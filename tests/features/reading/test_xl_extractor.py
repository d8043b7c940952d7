"""SDXL's added conditions through the batched plan: against single images, and against the bare U-Net."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from torch import nn

from gate_lightning.backbones.stable_diffusion.sdxl import SDXLBackbone
from gate_lightning.features.branch import Branch
from gate_lightning.features.config.layer_presets import resolve_layers
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt
from tests.support.small_networks import conditions, random_images, random_pairs, relative, save_diffusers
from tests.support.xl_networks import xl_like

CAPTIONS = ("a red circle", "a house on grass", " ".join(["a red house"] * 30))  # the last needs several windows


def steered(tmp_path: Path) -> tuple[SDXLBackbone, list[Branch]]:
    backbone = xl_like()
    control = ControlNetModel.from_unet(backbone.unet, conditioning_embedding_out_channels=(4, 4, 8))
    for convolution in [*control.controlnet_down_blocks, control.controlnet_mid_block]:
        convolution.reset_parameters()
    backbone.add_controlnet("canny", control)
    layers: dict[str, nn.Module] = {
        f"{part}.{path}": module
        for part in ("unet", "text_encoder_2")
        for path, module in getattr(backbone, part).named_modules()
        if path.endswith(("to_q", "q_proj"))
    }
    lora = str(save_diffusers(tmp_path / "lora.safetensors", random_pairs(layers)))
    read = resolve_layers(backbone, "xl_legacy")
    return backbone, [
        Branch("plain", 50, read, prompt="a photo"),
        Branch("steered", 50, read[1:], (Prompt(), ControlNet(scale=0.7), LoRA("a", lora)), noise_seed=1),
        Branch("captioned", 50, read[:1], (Prompt(),)),
    ]


@pytest.mark.thorough
def test_features_of_a_image_do_not_depend_on_its_batch(tmp_path: Path) -> None:
    backbone, branches = steered(tmp_path)
    extractor = FeatureExtractor(backbone, branches)
    images = random_images(3, 48, 72)
    together = extractor(images, conditions(3, captions=CAPTIONS))
    for index in (2, 0):
        own = conditions(3, captions=CAPTIONS)
        alone = extractor(
            images[index : index + 1],
            type(own)(own.sample_ids[index : index + 1], captions=CAPTIONS[index : index + 1]),
        )
        for branch in branches:
            for layer in branch.layers:
                assert relative(alone[branch.name][layer], together[branch.name][layer][index : index + 1]) < 1e-5


@torch.no_grad()
def test_features_are_those_of_the_bare_u_net(tmp_path: Path) -> None:
    backbone, branches = steered(tmp_path)
    images, noise = random_images(2, 48, 72), torch.randn(2, 4, 12, 18)
    own = conditions(2, noise=noise)
    features = FeatureExtractor(backbone, branches[:1])(images, own)["plain"]
    embeds = backbone.encode_text(["a photo"] * 2)
    noisy = backbone.schedule.add_noise(backbone.encode(images), noise, 50)
    seen = {}
    handles = [
        backbone.unet.get_submodule(path).register_forward_hook(lambda m, i, o, path=path: seen.update({path: o}))
        for path in ("up_blocks.0.upsamplers.0", "up_blocks.1.upsamplers.0", "up_blocks.2.resnets.2")
    ]
    told = {"text_embeds": embeds.pooled, "time_ids": torch.tensor([[48.0, 72, 0, 0, 48, 72]] * 2)}
    backbone.unet(noisy, 50, embeds.hidden, added_cond_kwargs=told)
    for handle in handles:
        handle.remove()
    for feature, expected in zip(features.values(), seen.values(), strict=True):
        assert relative(feature, expected) < 1e-5
