"""Averaged attention against weights that diffusers' own explicit attention computes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor

from gate_lightning.backbones.specs import PromptEmbeds
from gate_lightning.backbones.stable_diffusion.loading import load_unet_backbone
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading import attention_maps
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.reading.hooks import FeatureRecorder
from gate_lightning.structures import Conditions
from gate_lightning.techniques.prompt import Prompt
from tests.support.small_networks import adapted_layers, build, merge, random_pairs, relative, save_diffusers


@cache
def network(copy: str = "fused") -> UNetBackbone:
    """Two transformer blocks a layer, heads differing by level; strides 8 … 64. Copies have the same weights."""
    made = build("sd2_deep")
    assert isinstance(made, UNetBackbone)
    return made


def inputs(tokens: int = 5) -> tuple[Tensor, PromptEmbeds]:
    generator = torch.Generator().manual_seed(1)
    # neither square nor even: 9 × 14, then 5 × 7, 3 × 4, 2 × 2
    return torch.randn(2, 4, 9, 14, generator=generator), PromptEmbeds(torch.randn(2, tokens, 32, generator=generator))


@torch.no_grad()
def read(backbone: UNetBackbone, layers: list[str], tokens: int = 5, adapters: tuple = ()) -> dict[str, Tensor]:
    latents, embeds = inputs(tokens)
    with FeatureRecorder(backbone, layers) as recorder:
        backbone.denoise(latents, 50, embeds, None, [adapters] * 2)
    return recorder.features


@torch.no_grad()
def explicit(backbone: UNetBackbone, tokens: int = 5) -> dict[str, Tensor]:
    """Oracle: module path → (B, heads, N, M), from diffusers' attention that keeps no fused kernel."""
    seen: dict[str, Tensor] = {}
    names = {id(module): path for path, module in backbone.unet.named_modules()}
    original = Attention.get_attention_scores

    def record(self: Attention, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        weights = original(self, query, key, mask)
        seen[names[id(self)]] = weights.unflatten(0, (-1, self.heads))
        return weights

    backbone.unet.set_attn_processor(AttnProcessor())
    latents, embeds = inputs(tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attention, "get_attention_scores", record)
        backbone.unet(latents, 50, encoder_hidden_states=embeds.hidden)
    return seen


def mean_map(seen: dict[str, Tensor], prefix: str, attention: str, size: tuple[int, int]) -> Tensor:
    """Oracle: everything of one level stacked, then averaged, then resized."""
    found = [weights for path, weights in seen.items() if path.startswith(prefix) and path.endswith(attention)]
    mean = torch.stack([weights.mean(1) for weights in found]).mean(0)
    return F.interpolate(mean.transpose(1, 2).unflatten(2, size), (9, 14), mode="nearest")


def test_cross_maps_are_averaged_over_heads_and_layers_by_size() -> None:
    up, down = read(network(), ["attn-up-cross"])["attn-up-cross"], read(network(), ["attn-down-cross"])
    seen = explicit(network("explicit"))
    coarse_first = [mean_map(seen, "up_blocks.1", "attn2", (3, 4)), mean_map(seen, "up_blocks.2", "attn2", (5, 7))]
    torch.testing.assert_close(up, torch.cat(coarse_first, dim=1))
    fine_first = [mean_map(seen, "down_blocks.1", "attn2", (5, 7)), mean_map(seen, "down_blocks.2", "attn2", (3, 4))]
    torch.testing.assert_close(down["attn-down-cross"], torch.cat(fine_first, dim=1))


def test_self_maps_have_a_channel_per_position_attended_to() -> None:
    actual = read(network(), ["attn-up-self"])["attn-up-self"]
    seen = explicit(network("explicit"))
    expected = [mean_map(seen, "up_blocks.1", "attn1", (3, 4)), mean_map(seen, "up_blocks.2", "attn1", (5, 7))]
    assert actual.shape == (2, 3 * 4 + 5 * 7, 9, 14)
    torch.testing.assert_close(actual, torch.cat(expected, dim=1))


def test_other_ranges_and_places() -> None:
    layers = ["attn-up-cross-stride8-32", "attn-up-cross-stride8", "attn-mid-cross-stride64", "attn-up-cross"]
    features = read(network(), layers)
    seen = explicit(network("explicit"))
    torch.testing.assert_close(features["attn-up-cross-stride8"], mean_map(seen, "up_blocks.3", "attn2", (9, 14)))
    torch.testing.assert_close(features["attn-mid-cross-stride64"], mean_map(seen, "mid_block", "attn2", (2, 2)))
    parts = [features["attn-up-cross"], features["attn-up-cross-stride8"]]
    assert torch.equal(features["attn-up-cross-stride8-32"], torch.cat(parts, dim=1))
    assert "attn-mid-cross" not in network().derived  # its only size is outside 1/4 … 1/2 of the latents' side


def test_channels_are_told_beforehand_and_follow_longer_prompts() -> None:
    backbone = network()
    tokens = backbone.max_tokens
    assert backbone.feature_info(["attn"])["attn"].channels == 2 * tokens
    assert read(backbone, ["attn"], tokens)["attn"].shape == (2, 2 * tokens, 9, 14)
    assert read(backbone, ["attn"], 154)["attn"].shape == (2, 2 * 154, 9, 14)
    assert backbone.feature_info(["attn-up-self"])["attn-up-self"].channels == 0


@pytest.mark.parametrize("source", ["branch", "technique", "none"])
def test_a_long_prompt_of_all_images_is_counted_before_the_pass(source: str) -> None:
    backbone = network()
    long = "a photo of a house " * backbone.max_tokens
    techniques = {"branch": (), "technique": (Prompt(long),), "none": (Prompt(None, fallback=long),)}[source]
    branch = Branch("a", 50, ("attn", "up-level1-repeat0-vit-out"), techniques, prompt=long)
    extractor = FeatureExtractor(backbone, [branch])
    given = extractor(torch.zeros(1, 3, 64, 64), Conditions(("s",)))["a"]
    told = {layer: info.channels for layer, info in extractor.feature_info["a"].items()}
    assert given["attn"].shape[1] > 2 * backbone.max_tokens
    if source == "none":  # captions would be of different lengths
        assert told["attn"] == 2 * backbone.max_tokens
    else:
        assert told == {layer: value.shape[1] for layer, value in given.items()}


def test_a_few_heads_at_a_time_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = ["attn-up-self", "up-level3-repeat0-vit-block0-self-map"]
    whole = read(network(), layers)
    monkeypatch.setattr(attention_maps, "SCORES_AT_ONCE", 9 * 14)
    for layer, value in read(network(), layers).items():
        torch.testing.assert_close(value, whole[layer])


def test_maps_see_the_adapted_queries_and_keys(tmp_path: Path) -> None:
    steered, merged = network("steered"), network("merged")
    pairs = random_pairs(adapted_layers(steered), size=0.2)
    steered.require_adapter("a", str(save_diffusers(tmp_path / "a.safetensors", pairs)))
    merge(adapted_layers(merged), pairs, 1.0)
    layers = ["attn-up-cross", "attn-up-self", "up-level2-repeat1-vit-block1-cross-map"]
    actual, expected = read(steered, layers, adapters=(("a", 1.0),)), read(merged, layers)
    plain = read(network(), layers)
    for layer in layers:
        assert relative(actual[layer], expected[layer]) < 1e-5
        assert relative(actual[layer], plain[layer]) > 1e-3


def test_weights_are_computed_only_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    original = attention_maps._Listener.weights

    def count(self: attention_maps._Listener, queries: Tensor, keys: Tensor):  # type: ignore[no-untyped-def]
        counted.append(queries.shape[1])
        return original(self, queries, keys)

    monkeypatch.setattr(attention_maps._Listener, "weights", count)
    read(network(), ["up-level3-repeat2-vit-out"])
    assert counted == []
    read(network(), ["attn-up-cross", "up-level3-repeat2-vit-out"])
    # 3 repeats of 2 blocks in each of two levels; nothing of the finest, of self-attention or of the way down
    assert counted == [12] * 6 + [35] * 6


def test_the_pass_ends_with_the_last_keys() -> None:
    backbone = network()
    later = []
    handle = backbone.unet.up_blocks[3].register_forward_pre_hook(lambda *_: later.append("block 3"))
    values = backbone.unet.up_blocks[2].attentions[2].transformer_blocks[1].attn2.to_v
    other = values.register_forward_hook(lambda *_: later.append("values"))
    read(backbone, ["attn-up-cross"])
    handle.remove()
    other.remove()
    assert later == []


def test_attention_of_the_released_code(shared_dir: Path) -> None:
    golden = shared_dir / "golden"
    if not (golden / "f_attn_up_cross.npz").is_file():
        pytest.skip("no reference outputs")
    with np.load(golden / "f_attn_up_cross.npz") as file:
        stored = {name: torch.from_numpy(file[name]) for name in file.files}
    backbone = load_unet_backbone(str(golden / "tiny-sd"))
    branch = Branch("x", int(stored["unet_t"]), ("attn",), (Prompt("a photo of a horse"),))
    conditions = Conditions(("0", "1"), noise=stored["diffusion_noise"])
    with torch.no_grad():
        mean, std = backbone.encode_moments(stored["image_tensor"])
    sample = mean + std * stored["posterior_noise"]
    actual = FeatureExtractor(backbone, [branch]).read(sample, std, stored["image_tensor"], conditions)["x"]["attn"]
    assert actual.shape == (2, 154, 16, 16)
    assert relative(actual, stored["feat/attn"]) <= 1e-5
