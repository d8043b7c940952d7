"""Image to image against loops over diffusers' networks and scheduler."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.errors import ConfigError, NotFiniteError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.img2img import ImageToImage, autoencoded, start_of
from gate_lightning.techniques.controlnet import ControlNet, canny_edges
from gate_lightning.techniques.denoise import Denoise
from gate_lightning.techniques.guidance import Guidance
from gate_lightning.techniques.inversion import Inversion
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt
from gate_lightning.utils.seeding import keyed_noise
from tests.support.small_networks import (
    adapted_layers,
    build,
    conditions,
    merge,
    random_images,
    random_pairs,
    relative,
    save_diffusers,
)

LAYER = "up-level1-upsampler-out"
CAPTIONS = ("a red circle", "a tree")


@torch.no_grad()
def by_hand(
    backbone: UNetBackbone, image: Tensor, index: int, start: int, steps: int, prompts: tuple[str, str] = ("", ""),
    scale: float = 1.0, control: bool = False,
) -> Tensor:  # fmt: skip
    """One image repainted as diffusers' Img2Img pipelines do, by its own scheduler."""
    texts = []
    for prompt in prompts if scale != 1 else prompts[:1]:  # the other would count nothing
        tokens = backbone.tokenizer(prompt, padding="max_length", max_length=40, return_tensors="pt").input_ids
        texts.append(backbone.text_encoder(tokens).last_hidden_state)
    edges = canny_edges(image[None], ControlNet().source()).expand(-1, 3, -1, -1)  # type: ignore[arg-type]
    scheduler = DDIMScheduler.from_config(backbone.schedule.config, clip_sample=False)
    scheduler.set_timesteps(1000 * steps // start)
    latents = backbone.vae.encode(image[None]).latent_dist.mean * backbone.vae.config.scaling_factor
    noise = keyed_noise(latents.shape[1:], "diffusion", 0, f"s{index}", "", [0, 0], 0, None)[None]
    latents = scheduler.add_noise(latents, noise, torch.tensor([start]))
    for timestep in range(start, 0, -start // steps):
        predictions = []
        for text in texts:
            extra: dict[str, Any] = {}
            if control:
                down, middle = backbone.controlnets["canny"](latents, timestep, text, edges, return_dict=False)
                extra = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            predictions.append(backbone.unet(latents, timestep, text, return_dict=False, **extra)[0])
        guided = predictions[0] if scale == 1 else scale * predictions[0] + (1 - scale) * predictions[1]
        latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
    return backbone.vae.decode(latents / backbone.vae.config.scaling_factor, return_dict=False)[0].clamp(-1, 1)


def test_candidates_in_one_batch_equal_loops_by_hand(
    network: UNetBackbone, backbone: UNetBackbone, tmp_path: Any
) -> None:
    pairs = random_pairs(adapted_layers(network), seed=1)
    lora = LoRA("a", str(save_diffusers(tmp_path / "a.safetensors", pairs)))
    branches = [
        Branch("plain", 50, (LAYER,)),
        Branch("prompt", 50, (LAYER,), (Prompt(),), noise_seed=1, noise_index=1, ensemble=2),
        Branch("guided", 50, (LAYER,), (Prompt(), Guidance(3.0, "a house")), noise_seed=2),
        Branch("all", 50, (LAYER,), (Prompt(), ControlNet(), lora)),
    ]
    images, known = random_images(2, 32, 32), conditions(2, captions=CAPTIONS)
    made = ImageToImage(backbone, branches, 200, 2)(images, known)
    adapted = copy.deepcopy(network)
    merge(adapted_layers(adapted), pairs, 1.0)
    for index, text in enumerate(CAPTIONS):
        image = images[index]
        expected = {
            "plain": by_hand(network, image, index, 200, 2),
            "prompt": by_hand(network, image, index, 200, 2, (text, text)),
            "guided": by_hand(network, image, index, 200, 2, (text, "a house"), 3.0),
            "all": by_hand(adapted, image, index, 200, 2, (text, text), 1.0, control=True),
        }
        for name, wanted in expected.items():
            assert relative(made[name][index, None], wanted) < 1e-5
    assert relative(made["guided"], made["prompt"]) > 1e-3


@pytest.mark.thorough
@pytest.mark.parametrize("most", [None, 3])
def test_neither_the_batch_nor_its_limit_change_an_image(backbone: UNetBackbone, most: int | None) -> None:
    branches = [Branch("plain", 50, (LAYER,)), Branch("guided", 50, (LAYER,), (Prompt(), Guidance(2.0)))]
    images, captions = random_images(3, 32, 32), ("a tree", " ".join(["a red circle"] * 20), "a house")
    together = ImageToImage(backbone, branches, 300, 2, max_samples=most)(images, conditions(3, captions=captions))
    for row in range(3):
        alone = ImageToImage(backbone, branches, 300, 2)(
            images[row, None], conditions(3, captions=captions)[row]
        )  # fmt: skip
        for name, made in alone.items():
            assert relative(together[name][row, None], made) < 1e-5


@pytest.mark.thorough
def test_trajectories_bring_the_latents_to_the_start(backbone: UNetBackbone) -> None:
    images, known = random_images(1, 32, 32), conditions(1)
    calls: list[int] = []
    backbone.unet.register_forward_pre_hook(lambda m, inputs: calls.append(int(inputs[1])))
    inverted = Branch("up", 50, (LAYER,), (Inversion(10, first=0),))
    made = ImageToImage(backbone, [inverted], 40, 4)(images, known)["up"]
    assert calls == [*range(10, 41, 10), *range(40, 0, -10)]
    ceiling = autoencoded(backbone, images)
    drawn = ImageToImage(backbone, [replace(inverted, techniques=())], 40, 4)(images, known)["up"]
    # the latents come back: what is lost is the autoencoder's
    assert relative(made, ceiling) < 0.6 * relative(drawn, ceiling)
    calls.clear()
    ImageToImage(backbone, [Branch("down", 50, (LAYER,), (Denoise(2, stride=5),))], 40, 2)(images, known)
    assert calls == [50, 45, 40, 20]


def test_steps_are_as_equal_as_whole_timesteps_allow(backbone: UNetBackbone) -> None:
    assert ImageToImage(backbone, [Branch("x", 50, (LAYER,))], 10, 4).levels == [10, 8, 5, 2, 0]
    assert start_of(backbone, 1.0) == 999
    assert start_of(backbone, 0.4) == 400


@pytest.mark.parametrize("member", ["xl_like", "sd2_like", "adm"])
def test_images_of_any_diffusion_backbone_and_size_have_the_size_of_the_input(member: str) -> None:
    backbone = build(member)
    images = random_images(2, 61, 70)
    layer = next(iter(backbone.layers))
    made = ImageToImage(backbone, [Branch("x", 0, (layer,))], 300, 2)(images, conditions(2))["x"]
    for own in (made, autoencoded(backbone, images)):
        assert own.shape == images.shape
        assert own.abs().max() <= 1


@torch.no_grad()
def test_the_autoencoder_s_own_images(network: UNetBackbone) -> None:
    images = random_images(2, 32, 64)
    posterior = network.vae.encode(images).latent_dist
    expected = network.vae.decode(posterior.mean, return_dict=False)[0].clamp(-1, 1)
    assert relative(autoencoded(network, images), expected) < 1e-5


@pytest.mark.parametrize(
    ("member", "message"),
    [("pixels", "no noise schedule; image to image"), ("cleandift", "reads clean latents; image to image needs"),
     ("dinov2_tiny", "reads clean latents; image to image")],
)  # fmt: skip
def test_backbones_that_make_no_images_are_refused(member: str, message: str) -> None:
    backbone = build(member)
    for make in (lambda: start_of(backbone, 0.5), lambda: ImageToImage(backbone, [Branch("x", 0, ("a",))], 10, 2)):
        with pytest.raises(ConfigError, match=message):
            make()


def test_what_makes_no_sense_is_refused(backbone: UNetBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    branches = [Branch("x", 50, (LAYER,))]
    for start, steps, message in ((0, 1, "start of image"), (1000, 1, "start of"), (5, 6, "at most 5 steps")):
        with pytest.raises(ConfigError, match=message):
            ImageToImage(backbone, branches, start, steps)
    for strength in (0.0, 1.1, -1, 1e-9, "much"):
        with pytest.raises(ConfigError, match="strength"):
            start_of(backbone, strength)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="starts at 1005"):
        ImageToImage(backbone, [Branch("x", 50, (LAYER,), (Denoise(10),))], 995, 5)
    monkeypatch.setattr(backbone, "decode", lambda latents: torch.full((1, 3, 32, 32), float("nan")))
    with pytest.raises(NotFiniteError, match=r"branch 'x', image 's0', is not finite"):
        ImageToImage(backbone, branches, 100, 1)(random_images(1, 32, 32), conditions(1))
