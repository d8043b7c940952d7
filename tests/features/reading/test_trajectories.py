"""Branches that denoise or invert to their timestep, average several noises, or tell prompts of different lengths."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from gate_lightning.backbones.specs import Adapters, PromptEmbeds
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.ops.edges import canny
from gate_lightning.structures import Conditions, Features
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.denoise import Denoise
from gate_lightning.techniques.inversion import Inversion
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt
from gate_lightning.utils.seeding import keyed_noise
from tests.support.small_networks import (
    adapted_layers,
    conditions,
    merge,
    random_images,
    random_pairs,
    relative,
    save_diffusers,
)

LAYER = "up-level1-upsampler-out"
CAPTIONS = ("a red circle", "a tree")


@pytest.fixture(scope="module")
def lora(network: UNetBackbone, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    pairs = random_pairs(adapted_layers(network), seed=1)
    return str(save_diffusers(tmp_path_factory.mktemp("lora") / "a.safetensors", pairs)), pairs


def branches(trajectory: Denoise | Inversion, lora: str) -> list[Branch]:
    return [
        Branch("plain", 31, ("unet-in", LAYER), (trajectory,), prompt="a photo"),
        Branch("control", 31, (LAYER,), (trajectory, ControlNet(scale=0.7), Prompt()), noise_seed=1),
        Branch("weaker", 31, (LAYER,), (trajectory, ControlNet(scale=0.2), Prompt()), noise_seed=1),
        Branch("lora", 31, (LAYER,), (trajectory, LoRA("a", lora), ControlNet()), noise_seed=2),
    ]


@torch.no_grad()
def by_hand(
    backbone: UNetBackbone, branch: Branch, image: Tensor, index: int, pairs: dict[str, Any], timesteps: list[int]
) -> Tensor:
    """One branch of one image with stock networks and a stock or hand-written step; its features."""
    backbone = copy.deepcopy(backbone)
    names = {technique.kind: technique for technique in branch.techniques}
    if "lora" in names:
        merge(adapted_layers(backbone), pairs, 1.0)
    prompt = CAPTIONS[index] if "prompt" in names else branch.prompt
    tokens = backbone.tokenizer(prompt, padding="max_length", max_length=40, return_tensors="pt").input_ids
    embeds = backbone.text_encoder(tokens).last_hidden_state
    pixels = ((image.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
    edges = torch.from_numpy(canny(pixels) // 255).float().expand(1, 3, -1, -1)

    def unet(latents: Tensor, timestep: int) -> Tensor:
        extra = {}
        if "controlnet" in names:
            down, middle = backbone.controlnets["canny"](
                latents, timestep, embeds, edges, conditioning_scale=names["controlnet"].scale, return_dict=False
            )
            extra = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return backbone.unet(latents, timestep, embeds, return_dict=False, **extra)[0]

    latents = backbone.vae.encode(image[None]).latent_dist.mean * 0.18215
    scheduler = DDIMScheduler.from_config(backbone.schedule.config, clip_sample=False)
    alphas = scheduler.alphas_cumprod
    if "denoise" in names:
        noise = keyed_noise(latents.shape[1:], "diffusion", 0, f"s{index}", "", [0, 0], 0, branch.noise_seed)[None]
        latents = scheduler.add_noise(latents, noise, torch.tensor([timesteps[0]]))
        scheduler.set_timesteps(1000)
        for timestep in timesteps:
            latents = scheduler.step(unet(latents, timestep), timestep, latents, return_dict=False)[0]
    else:
        for now, then in zip([1, *timesteps], timesteps, strict=False):
            noise = unet(latents, then)
            clean = (latents - (1 - alphas[now]).sqrt() * noise) / alphas[now].sqrt()
            latents = alphas[then].sqrt() * clean + (1 - alphas[then]).sqrt() * noise
    caught: list[Tensor] = []
    handle = backbone.unet.up_blocks[1].upsamplers[0].register_forward_hook(lambda m, i, output: caught.append(output))
    unet(latents, branch.timestep)
    handle.remove()
    return caught[0]


@pytest.mark.parametrize(
    ("trajectory", "timesteps"),
    [(Denoise(steps=3), [34, 33, 32]), (Inversion(stride=15), [16, 31])],
    ids=["down", "up"],
)
@pytest.mark.slow
def test_trajectories_in_one_batch_equal_every_branch_and_image_alone(
    network: UNetBackbone,
    backbone: UNetBackbone,
    lora: tuple[str, dict[str, Any]],
    trajectory: Any,
    timesteps: list[int],
) -> None:
    images = random_images(2, 32, 32)
    features = FeatureExtractor(backbone, branches(trajectory, lora[0]))(images, conditions(2, captions=CAPTIONS))
    for branch, index in zip(branches(trajectory, lora[0]), (0, 1, 0, 1), strict=True):
        expected = by_hand(network, branch, images[index], index, lora[1], timesteps)
        assert relative(features[branch.name][LAYER][index, None], expected) < 1e-5


@pytest.mark.thorough
def test_steps_are_batched_and_unheard(backbone: UNetBackbone, lora: tuple[str, dict[str, Any]]) -> None:
    calls, heard = [], []
    backbone.unet.register_forward_pre_hook(lambda m, inputs: calls.append((len(inputs[0]), inputs[1])))
    up_block = backbone.unet.up_blocks[1].upsamplers[0]
    backbone.unet.register_forward_pre_hook(lambda m, inputs: heard.append(len(up_block._forward_hooks)))
    ended = []
    backbone.unet.register_forward_hook(lambda m, i, o: ended.append(1))
    chosen = [*branches(Denoise(steps=2), lora[0]), Branch("no trajectory", 31, (LAYER,))]
    FeatureExtractor(backbone, chosen)(random_images(1, 32, 32), conditions(1, captions=CAPTIONS[:1]))
    assert calls == [(4, 33), (4, 32), (4, 31), (1, 31)]
    assert heard == [0, 0, 1, 1]
    assert len(ended) == 2  # passes of a trajectory are whole; those that are read stop early


@pytest.mark.thorough
def test_inverted_latents_denoise_back_to_the_image(backbone: UNetBackbone) -> None:
    images = random_images(1, 32, 32)
    with torch.no_grad():
        clean, embeds = backbone.encode(images), backbone.encode_text(["a photo"])
    errors = []
    for stride in (10, 4):
        branch = Branch("up", 41, ("unet-in",), (Inversion(stride),), prompt="a photo")
        latents = FeatureExtractor(backbone, [branch])(images, conditions(1))["up"]["unet-in"]
        moved = relative(latents, clean)
        scheduler = DDIMScheduler.from_config(backbone.schedule.config, clip_sample=False)
        scheduler.set_timesteps(1000 // stride)
        for timestep in range(41, 1, -stride):
            with torch.no_grad():
                prediction = backbone.denoise(latents, timestep, embeds)
            latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        errors.append(relative(latents, clean) / moved)
    # inversion is exact in the limit of small steps, and its error about proportional to them
    assert errors[0] < 0.4
    assert errors[1] < 0.55 * errors[0]


@pytest.mark.thorough
def test_no_noise_is_drawn_for_inversion(backbone: UNetBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*key: Any) -> Tensor:
        raise AssertionError("noise was drawn")

    monkeypatch.setattr("gate_lightning.features.reading.extractor.batch_noise", refuse)
    branch = Branch("up", 31, (LAYER,), (Inversion(),))
    FeatureExtractor(backbone, [branch])(random_images(1), conditions(1))
    with pytest.raises(AssertionError, match="noise was drawn"):
        FeatureExtractor(backbone, [replace(branch, techniques=())])(random_images(1), conditions(1))


@pytest.mark.parametrize("posterior", ["mean", "sample"])
@pytest.mark.parametrize("max_samples", [pytest.param(None, marks=pytest.mark.thorough), 4])
def test_an_ensemble_is_the_mean_of_its_draws(backbone: UNetBackbone, posterior: Any, max_samples: int | None) -> None:
    single = [Branch(f"draw {draw}", 261, ("unet-in", LAYER), noise_seed=3, noise_index=draw) for draw in range(6)]
    images, known = random_images(2, 32, 64), conditions(2)
    alone = FeatureExtractor(backbone, single, posterior=posterior)(images, known)
    ensembles = [
        Branch("first", 261, ("unet-in", LAYER), noise_seed=3, ensemble=3),
        Branch("next", 261, (LAYER,), noise_seed=3, ensemble=3, noise_index=1),
    ]
    together = FeatureExtractor(backbone, ensembles, posterior=posterior, max_samples=max_samples)(images, known)
    for name, draws in (("first", range(3)), ("next", range(3, 6))):
        mean = torch.stack([alone[f"draw {draw}"][LAYER] for draw in draws]).mean(dim=0)
        assert relative(together[name][LAYER], mean) < 1e-5
        assert relative(together[name][LAYER], alone[f"draw {draws[0]}"][LAYER]) > 1e-2
    if posterior == "sample":  # every draw has its own posterior sample, not only its own noise
        noise = keyed_noise((4, 8, 16), "diffusion", 0, "s0", "", [0, 0], 1, 3)
        with torch.no_grad():
            mean, std = (moment[0] for moment in backbone.encode_moments(images))
        own = keyed_noise((4, 8, 16), "posterior", 0, "s0", "", [0, 0], 1, 3)
        expected = backbone.schedule.add_noise(mean + std * own, noise, 261)
        torch.testing.assert_close(alone["draw 1"]["unet-in"][0], expected)


@pytest.mark.parametrize(
    ("max_samples", "expected"),
    [
        pytest.param(None, [4, 2, 2], marks=pytest.mark.thorough),
        pytest.param(4, [4, 4], marks=pytest.mark.thorough),
        pytest.param(8, [8], marks=pytest.mark.thorough),
        (1, [1] * 8),
        (3, [2] * 4),
    ],
)
def test_an_ensembles_passes_are_bounded(backbone: UNetBackbone, max_samples: int | None, expected: list[int]) -> None:
    calls: list[int] = []
    backbone.unet.register_forward_pre_hook(lambda m, inputs: calls.append(len(inputs[0])))
    chosen = [Branch("one", 50, (LAYER,)), Branch("three", 50, (LAYER,), ensemble=3)]
    FeatureExtractor(backbone, chosen, max_samples=max_samples)(random_images(2), conditions(2))
    assert calls == expected


@pytest.mark.thorough
def test_an_ensemble_of_trajectories_is_the_mean_too(backbone: UNetBackbone) -> None:
    trajectory = (Denoise(steps=2),)
    single = [Branch(f"draw {draw}", 50, (LAYER,), trajectory, noise_index=draw) for draw in range(2)]
    chosen = [*single, Branch("both", 50, (LAYER,), trajectory, ensemble=2)]
    features = FeatureExtractor(backbone, chosen)(random_images(1), conditions(1))
    mean = (features["draw 0"][LAYER] + features["draw 1"][LAYER]) / 2
    assert relative(features["both"][LAYER], mean) < 1e-5


def test_explicit_noise_for_every_draw(backbone: UNetBackbone) -> None:
    noise, posterior = torch.randn(2, 2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    branch = Branch("x", 50, ("unet-in",), ensemble=3)
    extractor = FeatureExtractor(backbone, [branch], posterior="sample")
    images = random_images(2, 32, 32)
    latents = extractor(images, conditions(2, noise=noise, posterior_noise=posterior))["x"]["unet-in"]
    draws = [
        backbone.schedule.add_noise(backbone.encode(images, posterior[:, draw]), noise[:, draw], 50).detach()
        for draw in range(3)
    ]
    torch.testing.assert_close(latents, torch.stack(draws).mean(dim=0))
    with pytest.raises(DataError, match=r"\(2, 4, 8, 8\).*an ensemble of 3; expected \(2, 3, 4, 8, 8\)"):
        extractor(images, conditions(2, noise=noise[:, 0], posterior_noise=posterior))
    with pytest.raises(DataError, match="posterior=sample"):
        FeatureExtractor(backbone, [branch])(images, conditions(2, noise=noise, posterior_noise=posterior))


class LongPrompts:
    """Gives prompts that begin with "long" twice the tokens, and refuses to mix lengths, as a real encoder would."""

    def __init__(self, backbone: UNetBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
        self.encode = backbone.encode_text
        self.asked: list[list[str]] = []
        monkeypatch.setattr(backbone, "encode_text", self)
        monkeypatch.setattr(backbone, "text_length", self.length)

    @staticmethod
    def length(prompt: str, adapters: Adapters = ()) -> int:
        return 80 if prompt.startswith("long") else 40

    def __call__(self, prompts: list[str], adapters: Adapters = ()) -> PromptEmbeds:
        self.asked.append(list(prompts))
        (length,) = {self.length(prompt) for prompt in prompts}
        hidden = self.encode(prompts, adapters).hidden
        return PromptEmbeds(hidden if length == 40 else torch.cat([hidden, hidden.flip(1) * 0.5], dim=1))


@pytest.mark.parametrize("ensemble", [1, 2])
@pytest.mark.slow
def test_features_do_not_depend_on_the_length_of_other_prompts(
    backbone: UNetBackbone, monkeypatch: pytest.MonkeyPatch, ensemble: int
) -> None:
    text = LongPrompts(backbone, monkeypatch)
    captions = ("a tree", "long a tree", "a red house", "long grass")
    chosen = [
        Branch("caption", 50, ("unet-in", LAYER), (Prompt(), ControlNet()), ensemble=ensemble),
        Branch("plain", 50, (LAYER,), prompt="a photo"),
        Branch("trajectory", 50, (LAYER,), (Prompt(), Denoise(steps=1))),
        Branch("half", 50, (LAYER,), (Prompt(), ControlNet(scale=0.5)), ensemble=ensemble),
    ]
    extractor = FeatureExtractor(backbone, chosen, noise="shared")
    images = random_images(4, 32, 64)
    calls: list[int] = []
    backbone.controlnets["canny"].register_forward_pre_hook(lambda m, inputs: calls.append(len(inputs[0])))
    together: Features = extractor(images, conditions(4, captions=captions))
    assert [sorted(prompts) for prompts in text.asked] == [
        ["a red house", "a tree"], ["long a tree", "long grass"], ["a photo"]
    ]  # fmt: skip
    assert calls == [2, 2] * ensemble  # one ControlNet pass for both branches, on the rows of each length
    for index in range(4):
        one = Conditions((f"s{index}",), captions=(captions[index],))
        alone = extractor(images[index, None], one)
        for branch in chosen:
            for layer in branch.layers:
                assert relative(together[branch.name][layer][index, None], alone[branch.name][layer]) < 1e-5
    other = extractor(images[1, None], Conditions(("s1",), captions=(captions[0],)))
    assert relative(other["caption"][LAYER], together["caption"][LAYER][1, None]) > 1e-4


def test_maps_over_tokens_of_different_lengths_are_refused(
    backbone: UNetBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    LongPrompts(backbone, monkeypatch)
    branch = Branch("x", 50, ("up-level1-repeat1-vit-block0-cross-map",), (Prompt(),))
    with pytest.raises(DataError, match="cross-map follows the number of tokens"):
        FeatureExtractor(backbone, [branch])(random_images(2), conditions(2, captions=("a tree", "long a tree")))


def test_a_backbone_of_clean_latents(backbone: UNetBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone.schedule, "reads_clean", True)
    images = random_images(2)
    branch = Branch("x", 50, ("unet-in",))
    latents = FeatureExtractor(backbone, [branch])(images, conditions(2))["x"]["unet-in"]
    torch.testing.assert_close(latents, backbone.encode(images).detach())
    for technique in (Denoise(), Inversion()):
        with pytest.raises(ConfigError, match="reads clean latents"):
            FeatureExtractor(backbone, [replace(branch, techniques=(technique,))])
    for draws in ({"ensemble": 2}, {"noise_index": 1}):
        with pytest.raises(ConfigError, match="all its draws would be equal"):
            FeatureExtractor(backbone, [replace(branch, **draws)])


def test_what_makes_no_sense_is_refused(backbone: UNetBackbone) -> None:
    layers = (LAYER,)
    with pytest.raises(ConfigError, match="denoise and inversion, which both decide"):
        Branch("x", 50, layers, (Denoise(), Inversion()))
    with pytest.raises(ConfigError, match="ensemble=0"):
        Branch("x", 50, layers, ensemble=0)
    with pytest.raises(ConfigError, match="starts at 1005, outside 0 … 999"):
        FeatureExtractor(backbone, [Branch("x", 995, layers, (Denoise(),))])
    with pytest.raises(ConfigError, match="timestep=1000: expected a whole number from -1 to 999"):
        FeatureExtractor(backbone, [Branch("x", 1000, layers, (Inversion(),))])
    with pytest.raises(ConfigError, match=r"inversion, so that all its draws would be equal \(ensemble=2"):
        FeatureExtractor(backbone, [Branch("x", 50, layers, (Inversion(),), ensemble=2)])
    # with samples of the posterior they differ
    FeatureExtractor(backbone, [Branch("x", 50, layers, (Inversion(),), ensemble=2)], posterior="sample")


def test_descriptions_tell_trajectories_apart() -> None:
    chosen = [
        Branch("x", 50, (LAYER,), techniques, ensemble=ensemble)
        for techniques, ensemble in (
            ((), 1),
            ((), 2),
            ((Denoise(),), 1),
            ((Denoise(9),), 1),
            ((Denoise(sampler="pndm"),), 1),
            ((Denoise(5, stride=2),), 1),
            ((Inversion(),), 1),
            ((Inversion(5),), 1),
            ((Inversion(last="grid"),), 1),
        )
    ]
    assert len({str(branch.description) for branch in chosen}) == len(chosen)
