"""Features of transformer denoisers against passes of the bare diffusers network, noised and laid out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gate_lightning.backbones.specs import LayerSpec
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.reading.hooks import FeatureRecorder
from gate_lightning.techniques.controlnet import ControlNet, canny_edges
from gate_lightning.techniques.denoise import Denoise
from gate_lightning.techniques.inversion import Inversion
from gate_lightning.techniques.prompt import Prompt
from tests.support.small_networks import conditions, random_images, relative
from tests.support.transformer_networks import TOKENS, TransformerBackbone, build_transformer

ROWS, COLUMNS = 9, 14  # not square
PROMPTS = ("a cat", "dog")


def images() -> Tensor:
    return random_images(2, 8 * ROWS, 8 * COLUMNS)


def noise() -> Tensor:
    return torch.randn(2, 4, 2 * ROWS, 2 * COLUMNS, generator=torch.Generator().manual_seed(5))


def read(backbone: TransformerBackbone, layers: tuple[str, ...], timestep: int, *techniques: Any) -> dict[str, Tensor]:
    given = conditions(2, noise=noise(), captions=PROMPTS)
    branch = Branch("x", timestep, layers, (Prompt(), *techniques))
    return FeatureExtractor(backbone, [branch], fast=False)(images(), given)["x"]


def map_of(tokens: Tensor) -> Tensor:
    """(B, N, C) → (B, C, h, w), position by position."""
    laid = torch.empty(len(tokens), tokens.shape[2], ROWS, COLUMNS)
    for row in range(ROWS):
        for column in range(COLUMNS):
            laid[:, :, row, column] = tokens[:, row * COLUMNS + column]
    return laid


def caught(module: nn.Module) -> dict[str, Any]:
    """What the module gives and is given by name, after a pass."""
    seen: dict[str, Any] = {}
    module.register_forward_hook(
        lambda _, inputs, named, output: seen.update(named, inputs=inputs, output=output), with_kwargs=True
    )
    return seen


def noisy(backbone: TransformerBackbone, sigma: float) -> Tensor:
    posterior = backbone.vae.encode(images()).latent_dist
    return (1 - sigma) * (posterior.mean - 0.06) * 1.53 + sigma * noise()


@torch.no_grad()
def test_sd3_blocks_give_the_image_of_a_tuple_under_flow_noise() -> None:
    backbone = build_transformer("sd3_like")
    actual = read(backbone, tuple(backbone.layers), 261)
    seen = [caught(block) for block in backbone.transformer.transformer_blocks]
    inner = [(caught(block.attn), caught(block.ff)) for block in backbone.transformer.transformer_blocks]
    embeds = backbone.encode_text(PROMPTS)
    told = torch.tensor([261.0, 261.0])
    backbone.transformer(noisy(backbone, 0.261), embeds.hidden, embeds.pooled, told)
    for index, (block, (attention, feed_forward)) in enumerate(zip(seen, inner, strict=True)):
        torch.testing.assert_close(actual[f"block{index}-in"], map_of(block["hidden_states"]))
        torch.testing.assert_close(actual[f"block{index}-out"], map_of(block["output"][1]))
        torch.testing.assert_close(actual[f"block{index}-ff-in"], map_of(feed_forward["inputs"][0]))
        image = attention["output"] if isinstance(attention["output"], Tensor) else attention["output"][0]
        torch.testing.assert_close(actual[f"block{index}-attn"], map_of(image))


@torch.no_grad()
def test_flux_reads_the_image_behind_the_text_and_is_told_sigma() -> None:
    backbone = build_transformer("flux_like")
    actual = read(backbone, tuple(backbone.layers), 250)
    transformer = backbone.transformer
    double = caught(transformer.transformer_blocks[0])
    single = [(caught(block.norm), caught(block)) for block in transformer.single_transformer_blocks]
    latents = noisy(backbone, 0.25)
    # (c, dy, dx) of every 2 × 2 patch, row by row
    packed = torch.stack(
        [
            latents[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1)
            for row in range(ROWS)
            for column in range(COLUMNS)
        ],
        dim=1,
    )
    positions = torch.tensor([[0.0, row, column] for row in range(ROWS) for column in range(COLUMNS)])
    embeds = backbone.encode_text(PROMPTS)
    sigma = torch.tensor([0.25, 0.25])
    transformer(packed, embeds.hidden, embeds.pooled, sigma, positions, torch.zeros(TOKENS, 3))
    torch.testing.assert_close(actual["double-out"], map_of(double["output"][1]))
    for index, (norm, block) in enumerate(single):
        joint = norm["output"][0]
        assert joint.shape[1] == TOKENS + ROWS * COLUMNS
        torch.testing.assert_close(actual[f"single{index}-norm"], map_of(joint[:, TOKENS:]))
        torch.testing.assert_close(actual[f"single{index}-out"], map_of(block["output"][1]))


@torch.no_grad()
def test_masked_prompts_in_one_batch_are_as_those_of_their_own_length_alone() -> None:
    backbone = build_transformer("pixart_like")
    actual = read(backbone, tuple(backbone.layers), 261)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha = float((1 - betas).cumprod(0)[261])
    clean = (backbone.vae.encode(images()).latent_dist.mean - 0.06) * 1.53
    latents = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise()
    seen = [(caught(block.attn2.to_q), caught(block)) for block in backbone.transformer.transformer_blocks]
    for index, prompt in enumerate(PROMPTS):
        letters = backbone.words(torch.tensor([[*prompt.encode()]]))  # without padding, without a mask
        backbone.transformer(
            latents[index : index + 1],
            letters,
            torch.tensor([261]),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        )
        for number, (queries, block) in enumerate(seen):
            own = {name: actual[f"block{number}-{name}"][index : index + 1] for name in ("cross-q", "out")}
            torch.testing.assert_close(own["cross-q"], map_of(queries["output"]), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(own["out"], map_of(block["output"]), rtol=1e-4, atol=1e-5)
    alike = read(backbone, ("block1-out",), 261)["block1-out"]
    assert relative(alike[:1], alike[1:]) > 1e-3  # prompts and images do matter


@torch.no_grad()
def test_controlnet_residuals_act_between_blocks_and_are_summed_by_path() -> None:
    backbone = build_transformer("sd3_like")
    names = ("block0-out", "block1-in", "block2-in", "block2-out")
    actual = read(backbone, names, 261, ControlNet(scale=0.5), ControlNet(scale=0.25, function="canny"))
    edges = canny_edges(images(), ControlNet().source()).expand(-1, 3, -1, -1)  # type: ignore[arg-type]
    pooled = torch.stack(
        [
            edges[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].mean(dim=(2, 3))
            for row in range(ROWS)
            for column in range(COLUMNS)
        ],
        dim=1,
    )
    residuals = [0.75 * control(pooled) for control in backbone.controls]
    seen = [caught(block) for block in backbone.transformer.transformer_blocks]
    # the same by hand: each residual added to what the next block is given
    for block, residual in zip(backbone.transformer.transformer_blocks[1:], residuals, strict=True):
        block.register_forward_pre_hook(
            lambda _, inputs, named, added=residual: (
                inputs,
                {**named, "hidden_states": named["hidden_states"] + added},
            ),
            with_kwargs=True,
        )
    embeds = backbone.encode_text(PROMPTS)
    backbone.transformer(noisy(backbone, 0.261), embeds.hidden, embeds.pooled, torch.tensor([261.0, 261.0]))
    torch.testing.assert_close(actual["block0-out"], map_of(seen[0]["output"][1]))
    torch.testing.assert_close(actual["block1-in"], map_of(seen[0]["output"][1] + residuals[0]))
    torch.testing.assert_close(actual["block2-in"], map_of(seen[1]["output"][1] + residuals[1]))
    torch.testing.assert_close(actual["block2-out"], map_of(seen[2]["output"][1]))
    assert relative(actual["block2-out"], read(build_transformer("sd3_like"), names, 261)["block2-out"]) > 1e-3


@torch.no_grad()
def test_steps_along_a_flow_are_eulers() -> None:
    backbone = build_transformer("sd3_like")
    embeds = backbone.encode_text(PROMPTS)

    def velocity(latents: Tensor, told: float) -> Tensor:
        output: Tensor = backbone.transformer(
            latents, embeds.hidden, embeds.pooled, torch.tensor([told, told]), return_dict=False
        )[0]
        return output

    down = noisy(backbone, 0.3)
    for told in (300.0, 290.0):
        down = down - 0.01 * velocity(down, told)
    up = noisy(backbone, 0.0)
    for level, target in ((1, 101), (101, 201), (201, 261)):
        up = up + (target - level) / 1000 * velocity(up, float(target))
    expected = {}
    seen = caught(backbone.transformer.transformer_blocks[1])
    for name, latents, told in (("down", down, 280.0), ("up", up, 261.0)):
        velocity(latents, told)
        expected[name] = map_of(seen["output"][1])
    actual = {
        "down": read(backbone, ("block1-out",), 280, Denoise(steps=2, stride=10, sampler="euler")),
        "up": read(backbone, ("block1-out",), 261, Inversion(stride=100)),
    }
    for name, maps in actual.items():
        torch.testing.assert_close(maps["block1-out"], expected[name], rtol=1e-4, atol=1e-5)


def test_samplers_made_for_betas_are_refused_on_a_flow() -> None:
    with pytest.raises(ConfigError, match=r"sampler=pndm: made for the noise levels of DDPM.*choose ddim or euler"):
        read(build_transformer("sd3_like"), ("block1-out",), 261, Denoise(sampler="pndm"))


def test_a_sequence_without_the_images_tokens_is_refused() -> None:
    backbone = build_transformer("flux_like")
    text = LayerSpec("context_embedder", "tokens", 32, 8)
    backbone.layers = {**backbone.layers, "text": text}
    with pytest.raises(DataError, match="layer text: context_embedder has 6 tokens, expected at least 126: 9 × 14"):
        read(backbone, ("text",), 261)


def test_tokens_of_a_pass_past_the_backbone_are_refused() -> None:
    backbone = build_transformer("pixart_like")
    with pytest.raises(ConfigError, match=r"through backbone\.denoise"), FeatureRecorder(backbone, ["block1-out"]):
        backbone.transformer(
            torch.zeros(1, 4, 4, 4),
            torch.zeros(1, 2, 32),
            torch.tensor([1]),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        )


@torch.no_grad()
def test_packing_is_the_inverse_of_unpacking() -> None:
    backbone = build_transformer("flux_like")
    backbone.transformer.forward = lambda packed, *_, **__: (packed,)  # type: ignore[method-assign]
    latents = noise()
    assert torch.equal(backbone.denoise(latents, 250, backbone.encode_text(PROMPTS)), latents)
    assert F.pixel_unshuffle(latents, 2).shape[1] == 16
