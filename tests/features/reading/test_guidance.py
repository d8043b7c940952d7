"""Classifier-free guidance of features and trajectories, beside other branches and techniques."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.techniques.base import Technique
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
def by_hand(backbone: UNetBackbone, branch: Branch, image: Tensor, index: int) -> Tensor:
    """A guided branch of one image: its features, by diffusers' networks and scheduler, one pass at a time."""
    (guidance,) = (one for one in branch.techniques if isinstance(one, Guidance))
    control = next((one for one in branch.techniques if isinstance(one, ControlNet)), None)
    steps = next((one.steps for one in branch.techniques if isinstance(one, Denoise)), 0)
    prompts = any(isinstance(one, Prompt) for one in branch.techniques)

    def embedded(text: str) -> Tensor:
        tokens = backbone.tokenizer(text, padding="max_length", max_length=40, return_tensors="pt").input_ids
        return backbone.text_encoder(tokens).last_hidden_state

    def unet(latents: Tensor, timestep: int, embeds: Tensor) -> tuple[Tensor, Tensor]:
        extra: dict[str, Any] = {}
        if control is not None:
            edges = canny_edges(image[None], control.source()).expand(-1, 3, -1, -1)  # type: ignore[arg-type]
            down, middle = backbone.controlnets["canny"](
                latents, timestep, embeds, edges, conditioning_scale=control.scale, return_dict=False
            )
            extra = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        caught: list[Tensor] = []
        block = backbone.unet.up_blocks[1].upsamplers[0]
        handle = block.register_forward_hook(lambda m, i, output: caught.append(output))
        predicted = backbone.unet(latents, timestep, embeds, return_dict=False, **extra)[0]
        handle.remove()
        return predicted, caught[0]

    texts = [embedded(CAPTIONS[index] if prompts else branch.prompt), embedded(guidance.negative)]
    scheduler = DDIMScheduler.from_config(backbone.schedule.config, clip_sample=False)
    scheduler.set_timesteps(1000)
    latents = backbone.vae.encode(image[None]).latent_dist.mean * 0.18215
    noise = keyed_noise(latents.shape[1:], "diffusion", 0, f"s{index}", "", [0, 0], 0, branch.noise_seed)[None]
    latents = scheduler.add_noise(latents, noise, torch.tensor([branch.timestep + steps]))
    for timestep in range(branch.timestep + steps, branch.timestep, -1):
        prompted, plain = (unet(latents, timestep, text)[0] for text in texts)
        guided = guidance.scale * prompted + (1 - guidance.scale) * plain
        latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
    prompted, plain = (unet(latents, branch.timestep, text)[1] for text in texts)
    return guidance.scale * prompted + (1 - guidance.scale) * plain


def rows_of(backbone: UNetBackbone) -> list[tuple[int, int]]:
    """Filled during passes: samples and timestep of each."""
    calls: list[tuple[int, int]] = []
    backbone.unet.register_forward_pre_hook(lambda m, inputs: calls.append((len(inputs[0]), int(inputs[1]))))
    return calls


@pytest.mark.thorough
def test_guided_branches_in_one_batch_equal_each_alone(
    network: UNetBackbone, backbone: UNetBackbone, tmp_path: Any
) -> None:
    pairs = random_pairs(adapted_layers(network), seed=1)
    lora = LoRA("a", str(save_diffusers(tmp_path / "a.safetensors", pairs)))
    guided = Branch("guided", 31, (LAYER,), (Guidance(3.0, "a house"), Prompt()), prompt="a photo")
    control = Branch("control", 31, (LAYER,), (Guidance(5.0), ControlNet(scale=0.7)), prompt="a photo", noise_seed=1)
    styled = Branch("styled", 31, (LAYER,), (Guidance(0.5), lora, Prompt()), noise_seed=2)
    steps = Branch("steps", 31, (LAYER,), (Guidance(4.0, "a tree"), Denoise(2), ControlNet(), Prompt()), noise_seed=3)
    plain = Branch("plain", 31, (LAYER,), prompt="a photo")
    images, known = random_images(2, 32, 32), conditions(2, captions=CAPTIONS)
    calls = rows_of(backbone)
    features = FeatureExtractor(backbone, [guided, control, styled, steps, plain])(images, known)
    # two passes of a guided branch are one batch, of 3 · 2 · 2 + 2 and of 2 · 2 samples
    assert calls == [(14, 31), (4, 33), (4, 32), (4, 31)]
    for index in range(2):
        for branch in (guided, control, steps):
            expected = by_hand(network, branch, images[index], index)
            assert relative(features[branch.name][LAYER][index, None], expected) < 1e-5
    adapted = copy.deepcopy(network)
    merge(adapted_layers(adapted), pairs, 1.0)
    assert relative(features["styled"][LAYER][1, None], by_hand(adapted, styled, images[1], 1)) < 1e-5
    alone = FeatureExtractor(network, [plain])(images, known)
    assert relative(features["plain"][LAYER], alone["plain"][LAYER]) < 1e-5
    assert relative(features["guided"][LAYER], alone["plain"][LAYER]) > 1e-2


@pytest.mark.parametrize(
    "further",
    [(), *(pytest.param((one,), marks=pytest.mark.thorough) for one in (Denoise(2), Inversion(10))), (ControlNet(),)],
)
def test_scale_1_is_the_plain_branch_bit_for_bit(backbone: UNetBackbone, further: tuple[Technique, ...]) -> None:
    images, known = random_images(2, 32, 32), conditions(2, captions=CAPTIONS)
    calls = rows_of(backbone)
    features, counts = [], []
    for own in ((), (Guidance(1.0, "a house"),)):
        branch = Branch("x", 31, (LAYER, "unet-in"), (*own, *further, Prompt()))
        features.append(FeatureExtractor(backbone, [branch])(images, known)["x"])
        counts.append(list(calls))
        calls.clear()
    assert counts[0] == counts[1]
    for layer in (LAYER, "unet-in"):
        assert torch.equal(features[0][layer], features[1][layer])


def test_an_ensemble_is_the_mean_of_its_guided_draws(backbone: UNetBackbone) -> None:
    images, known = random_images(1, 32, 32), conditions(1, captions=CAPTIONS[:1])
    techniques = (Guidance(3.0), Prompt())
    draws = [Branch(f"{draw}", 261, (LAYER,), techniques, noise_index=draw) for draw in range(3)]
    alone = FeatureExtractor(backbone, draws)(images, known)
    branch = Branch("x", 261, (LAYER,), techniques, ensemble=3)
    together = FeatureExtractor(backbone, [branch])(images, known)["x"][LAYER]
    assert relative(together, torch.stack([alone[f"{draw}"][LAYER] for draw in range(3)]).mean(0)) < 1e-5


@pytest.mark.thorough
def test_guided_inversions_share_passes_and_only_with_their_like(backbone: UNetBackbone) -> None:
    images, known = random_images(1, 32, 32), conditions(1, captions=CAPTIONS[:1])

    def branches(*scales: float) -> list[Branch]:
        techniques = [(Guidance(scale), Inversion(10), Prompt()) for scale in scales]
        return [Branch(f"{index}", 11 + 10 * index, (LAYER,), own) for index, own in enumerate(techniques)]

    calls = rows_of(backbone)
    together = FeatureExtractor(backbone, branches(3.0, 3.0))(images, known)
    assert calls == [(2, 11), (2, 11), (2, 21), (2, 21)]  # one step, read; one more step, read
    for branch in branches(3.0, 3.0):
        assert relative(FeatureExtractor(backbone, [branch])(images, known)[branch.name][LAYER],
                        together[branch.name][LAYER]) < 1e-5  # fmt: skip
    calls.clear()
    apart = FeatureExtractor(backbone, branches(3.0, 2.0))(images, known)
    assert len(calls) == 5
    assert relative(apart["1"][LAYER], together["1"][LAYER]) > 1e-4


@pytest.mark.thorough
def test_prompts_of_another_length_take_a_pass_of_their_own(backbone: UNetBackbone) -> None:
    long = " ".join(["a red circle"] * 20)
    branch = Branch("x", 31, (LAYER,), (Guidance(3.0, "a house"), Prompt(long)))
    calls = rows_of(backbone)
    images, known = random_images(1, 32, 32), conditions(1)
    guided = FeatureExtractor(backbone, [branch])(images, known)["x"][LAYER]
    assert calls == [(1, 31), (1, 31)]
    parts = [Branch(text[:9], 31, (LAYER,), (Prompt(text),)) for text in (long, "a house")]
    prompted, plain = (FeatureExtractor(backbone, [one])(images, known)[one.name][LAYER] for one in parts)
    assert relative(guided, plain + 3.0 * (prompted - plain)) < 1e-5
    attention = ("up-level1-repeat1-vit-block0-cross-map", "attn-up-cross")
    read = [
        FeatureExtractor(backbone, [Branch("x", 31, attention, techniques)])(images, known)["x"]
        for techniques in (branch.techniques, (Prompt(long),))
    ]
    for layer in attention:  # shares of attention are those under the prompt
        assert relative(read[0][layer], read[1][layer]) < 1e-5


def test_a_learned_prompt_is_not_read_in_the_second_pass(backbone: UNetBackbone, tmp_path: Any) -> None:
    from safetensors.torch import save_file

    learned = torch.randn(40, 128, generator=torch.Generator().manual_seed(0))
    save_file({"prompt": learned}, tmp_path / "p.safetensors")
    prompt = Prompt(embedding=str(tmp_path / "p.safetensors"))
    images, known = random_images(1, 32, 32), conditions(1)
    branches = [
        Branch("guided", 31, (LAYER,), (Guidance(3.0), prompt)),
        Branch("prompted", 31, (LAYER,), (prompt,)),
        Branch("empty", 31, (LAYER,), (Prompt(""),)),
    ]
    read = {name: layers[LAYER] for name, layers in FeatureExtractor(backbone, branches)(images, known).items()}
    assert relative(read["guided"], read["empty"] + 3.0 * (read["prompted"] - read["empty"])) < 1e-5


@pytest.mark.parametrize(
    ("most", "expected"), [(None, [(10, 31)]), (6, [(4, 31), (6, 31)]), (1, [(2, 31)] * 4 + [(1, 31)] * 2)]
)
def test_guided_samples_count_twice(backbone: UNetBackbone, most: int | None, expected: list[Any]) -> None:
    branches = [Branch(f"{index}", 31, (LAYER,), (Guidance(3.0),), noise_seed=index) for index in range(2)]
    branches.append(Branch("plain", 31, (LAYER,)))
    calls = rows_of(backbone)
    FeatureExtractor(backbone, branches, max_samples=most)(random_images(2, 32, 32), conditions(2))
    assert calls == expected


def test_what_makes_no_sense_is_refused() -> None:
    for impossible in ({"scale": -1.0}, {"scale": "big"}, {"scale": float("nan")}, {"negative": 3}):
        with pytest.raises(ConfigError, match=r"guidance\.(scale|negative)=.*expected"):
            Guidance(**impossible)
    with pytest.raises(ConfigError, match="pixels reads no prompts, so there is nothing to guide by"):
        FeatureExtractor(build("pixels"), [Branch("x", 0, ("pixels",), (Guidance(),))])


def test_guidance_is_part_of_what_features_depend_on() -> None:
    descriptions = [Branch("x", 31, (LAYER,), own).description for own in ((), (Guidance(),), (Guidance(3.0),),
                                                                          (Guidance(negative="x"),))]  # fmt: skip
    assert len({str(one) for one in descriptions}) == 4
