"""The batched, shared, early-stopping plan against plain runs of every branch and image on its own."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.errors import ConfigError, DataError, NotFiniteError, WeightsError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.ops.edges import canny
from gate_lightning.ops.padding import pad_to_multiple
from gate_lightning.structures import Conditions
from gate_lightning.techniques.controlnet import ControlNet
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
    save_kohya,
)

#: layer id → module path, written down by hand
PATHS = {
    "up-level0-upsampler-out": "up_blocks.0.upsamplers.0",
    "up-level1-upsampler-out": "up_blocks.1.upsamplers.0",
    "up-level2-repeat0-res-out": "up_blocks.2.resnets.0",
}
CAPTIONS = ("a red circle", "a blue house on grass", "a tree")


@pytest.fixture(scope="module")
def lora_pairs() -> dict[str, Any]:
    layers = adapted_layers(build("tiny"))
    return {"a": random_pairs(layers, seed=1), "b": random_pairs(layers, rank=2, seed=2)}


@pytest.fixture(scope="module")
def lora_files(lora_pairs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("lora")
    unet_only = {name: pair for name, pair in lora_pairs["b"].items() if name.startswith("unet.")}
    return {
        "a": str(save_diffusers(folder / "a.safetensors", lora_pairs["a"])),
        "b": str(save_kohya(folder / "b.safetensors", unet_only, alpha=1.0)),
    }


@pytest.fixture(scope="module")
def backbone() -> UNetBackbone:
    """One for all tests: what they change of it they put back; adapters that they load stay."""
    return build("tiny")


def gate_branches(files: dict[str, str]) -> list[Branch]:
    """Plain, prompted, controlled and adapted branches, two timesteps, unequal layers."""
    two, one = tuple(PATHS)[:2], tuple(PATHS)[2:]
    return [
        Branch("plain", 50, two, prompt="a photo", noise_seed=0),
        Branch("prompt", 50, one, (Prompt(),), noise_seed=1),
        Branch("control", 50, two, (ControlNet(scale=0.7),), prompt="a photo", noise_seed=2),
        Branch("a", 50, two, (LoRA("a", files["a"], scale=0.5), ControlNet(), Prompt()), noise_seed=3),
        Branch("b", 50, two, (LoRA("b", files["b"]), ControlNet()), prompt="a tree", noise_seed=4),
        Branch("later", 200, one, (Prompt("a red house"),), noise_seed=5),
    ]


@cache
def oracle() -> tuple[UNetBackbone, dict[str, Tensor]]:
    """A network of its own, and its weights before any are merged."""
    backbone = build("tiny")
    return backbone, {name: value.clone() for name, value in backbone.state_dict().items()}


@torch.no_grad()
def naive(
    branch: Branch,
    image: Tensor,
    sample: str,
    caption: str,
    pairs: dict[str, Any],
    noise_seed: int | None,
    draw: int = 0,
) -> dict[str, Tensor]:
    """One branch of one image: weights merged by hand, stock diffusers calls, a full pass, hand-written hooks."""
    backbone, weights = oracle()
    backbone.load_state_dict(weights)
    prompt, control_scale = branch.prompt, None
    for technique in branch.techniques:
        if isinstance(technique, Prompt):
            prompt = technique.text if technique.text is not None else caption
        elif isinstance(technique, ControlNet):
            control_scale = technique.scale
        else:
            own = pairs[technique.adapter]
            if technique.adapter == "b":  # the file has no text part, and alpha 1 at rank 2
                own = {name: pair for name, pair in own.items() if name.startswith("unet.")}
            merge(adapted_layers(backbone), own, technique.scale * (0.5 if technique.adapter == "b" else 1.0))
    tokens = backbone.tokenizer(prompt, padding="max_length", max_length=40, return_tensors="pt").input_ids
    embeds = backbone.text_encoder(tokens).last_hidden_state
    latents = backbone.vae.encode(image[None]).latent_dist.mean * 0.18215
    noise = keyed_noise(latents.shape[1:], "diffusion", 11, sample, "", [0, 0], draw, noise_seed)[None]
    noisy = DDPMScheduler.from_config(backbone.schedule.config).add_noise(
        latents, noise, torch.tensor([branch.timestep])
    )
    extra = {}
    if control_scale is not None:
        image = ((image.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
        edges = torch.from_numpy(canny(image) // 255).float().expand(1, 3, -1, -1)
        down, middle = backbone.controlnets["canny"](
            noisy, branch.timestep, embeds, edges, conditioning_scale=control_scale, return_dict=False
        )
        extra = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    caught: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for layer in branch.layers:
            module = backbone.unet.get_submodule(PATHS[layer])
            handle = module.register_forward_hook(lambda m, i, output, layer=layer: caught.update({layer: output}))
            hooks.callback(handle.remove)
        backbone.unet(noisy, branch.timestep, embeds, **extra)
    return caught


@pytest.mark.parametrize(
    ("noise", "max_samples"), [pytest.param("per_branch", None, marks=pytest.mark.thorough), ("shared", 4)]
)
def test_one_shared_batch_equals_every_branch_and_image_alone(
    backbone: UNetBackbone, lora_files: dict[str, str], lora_pairs: dict[str, Any], noise: Any, max_samples: int | None
) -> None:
    images = random_images(3, 32, 64)
    branches = gate_branches(lora_files)
    extractor = FeatureExtractor(backbone, branches, seed=11, noise=noise, max_samples=max_samples)
    features = extractor(images, conditions(3, captions=CAPTIONS))
    assert list(features) == [branch.name for branch in branches]
    worst = 0.0
    for branch in branches:
        assert list(features[branch.name]) == list(branch.layers)
        noise_seed = branch.noise_seed if noise == "per_branch" else None
        for index in range(0, 3, 2):
            expected = naive(branch, images[index], f"s{index}", CAPTIONS[index], lora_pairs, noise_seed)
            for layer in branch.layers:
                worst = max(worst, relative(features[branch.name][layer][index, None], expected[layer]))
    assert worst < 1e-5


def test_techniques_change_the_features(backbone: UNetBackbone, lora_files: dict[str, str]) -> None:
    # otherwise the comparison above would compare equal things
    extractor = FeatureExtractor(backbone, gate_branches(lora_files), noise="shared")
    features = extractor(random_images(1, 32, 64), conditions(1, captions=CAPTIONS[:1]))
    plain = features["plain"]["up-level1-upsampler-out"]
    for name in ("control", "a", "b"):
        assert relative(features[name]["up-level1-upsampler-out"], plain) > 1e-3


def test_features_do_not_depend_on_batch_or_order(backbone: UNetBackbone, lora_files: dict[str, str]) -> None:
    images, order = random_images(3), [2, 0, 1]
    extractor = FeatureExtractor(backbone, gate_branches(lora_files))
    together = extractor(images, conditions(3, captions=CAPTIONS))
    moved = Conditions(tuple(f"s{index}" for index in order), captions=tuple(CAPTIONS[index] for index in order))
    shuffled = extractor(images[order], moved)
    worst = max(
        relative(shuffled[branch][layer][position], feature[index])
        for branch, layers in together.items()
        for layer, feature in layers.items()
        for position, index in enumerate(order)
    )
    assert worst < 1e-5


class Counter:
    """Counts the samples of every call of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.calls: list[int] = []
        self.handle = module.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls.append(len(args[0] if args else kwargs["input_ids"]))


@pytest.fixture
def counters(backbone: UNetBackbone) -> Iterator[dict[str, Counter]]:
    modules = {
        "vae": backbone.vae.encoder,
        "text": backbone.text_encoder,
        "unet": backbone.unet,
        "controlnet": backbone.controlnets["canny"],
    }
    made = {name: Counter(module) for name, module in modules.items()}
    yield made
    for counter in made.values():
        counter.handle.remove()


def test_no_work_is_done_twice(
    backbone: UNetBackbone, lora_files: dict[str, str], counters: dict[str, Counter], monkeypatch: pytest.MonkeyPatch
) -> None:
    edges = []
    monkeypatch.setattr("gate_lightning.ops.edges.canny", lambda *a, **k: edges.append(1) or canny(*a, **k))
    extractor = FeatureExtractor(backbone, gate_branches(lora_files))
    batch = (random_images(3), conditions(3, captions=CAPTIONS))
    extractor(*batch)
    assert counters["vae"].calls == [3]
    assert counters["unet"].calls == [15, 3]  # five branches at 50, one at 200
    assert counters["controlnet"].calls == [9]  # only the three branches that use it
    assert len(edges) == 3  # once an image
    # "a photo" · three captions · three captions under a's text part · "a tree" is a caption already · "a red house"
    assert sum(counters["text"].calls) == 1 + 3 + 3 + 1
    extractor(*batch)
    assert sum(counters["text"].calls) == 1 + 3 + 3 + 1


def test_branches_that_differ_behind_the_controlnet_share_its_pass(
    backbone: UNetBackbone, lora_files: dict[str, str], counters: dict[str, Counter]
) -> None:
    layers = ("up-level1-upsampler-out",)
    unet_only, with_text = LoRA("b", lora_files["b"]), LoRA("a", lora_files["a"])
    branches = [
        Branch("control", 50, layers, (ControlNet(),)),
        Branch("weaker", 50, layers, (ControlNet(scale=0.5),), noise_seed=1),
        Branch("unet lora", 50, layers, (ControlNet(), unet_only), noise_seed=2),
        Branch("text lora", 50, layers, (ControlNet(), with_text), noise_seed=3),
        Branch("other prompt", 50, layers, (ControlNet(), Prompt("a house")), noise_seed=4),
        Branch("other noise", 50, layers, (ControlNet(),), noise_index=1),
    ]
    FeatureExtractor(backbone, branches, noise="shared")(random_images(2), conditions(2))
    assert counters["controlnet"].calls == [2 * 4]


def test_the_network_stops_after_the_last_layer_that_is_read(backbone: UNetBackbone) -> None:
    ran = []
    with ExitStack() as hooks:
        for index, block in enumerate(backbone.unet.up_blocks):
            handle = block.register_forward_pre_hook(lambda module, inputs, index=index: ran.append(index))
            hooks.callback(handle.remove)
        FeatureExtractor(backbone, [Branch("x", 50, ("up-level1-upsampler-out",))])(random_images(1), conditions(1))
    assert ran == [0, 1]


def test_layers_under_lora_are_read_behind_it(
    backbone: UNetBackbone, lora_files: dict[str, str], lora_pairs: Any
) -> None:
    layer = "up-level1-repeat1-vit-block0-self-q"
    branch = Branch("x", 50, (layer,), (LoRA("a", lora_files["a"]),))
    actual = FeatureExtractor(backbone, [branch])(random_images(1), conditions(1))["x"][layer]
    oracle = build("tiny")
    merge(adapted_layers(oracle), lora_pairs["a"], 1.0)
    plain = Branch("x", 50, (layer,))
    expected = FeatureExtractor(oracle, [plain])(random_images(1), conditions(1))["x"][layer]
    assert relative(actual, expected) < 1e-5


def test_explicit_noise_replaces_the_drawn_one(backbone: UNetBackbone) -> None:
    extractor = FeatureExtractor(backbone, [Branch("x", 50, ("unet-in",))])
    noise = torch.randn(1, 4, 16, 24)
    latents = extractor(random_images(1), conditions(1, noise=noise))["x"]["unet-in"]
    expected = backbone.schedule.add_noise(backbone.encode(random_images(1)), noise, 50)
    torch.testing.assert_close(latents, expected)
    with pytest.raises(DataError, match=r"noise of shape \(1, 4, 8, 8\) for latents of shape \(1, 4, 16, 24\)"):
        extractor(random_images(1), conditions(1, noise=noise[..., :8, :8]))


@pytest.mark.parametrize("noise", ["per_branch", pytest.param("shared", marks=pytest.mark.thorough)])
def test_noise_by_branch_is_each_branchs_own(backbone: UNetBackbone, noise: str) -> None:
    layers = tuple(PATHS)[:1]
    branches = [
        Branch("a", 50, layers, (ControlNet(),), prompt="a photo"),
        Branch("b", 50, layers, (ControlNet(scale=0.5),), prompt="a photo"),
        Branch("c", 100, layers, ensemble=2, noise_seed=1),
    ]
    # branch by branch in passes of their own, so that numbers are equal bit for bit
    extractor = FeatureExtractor(backbone, branches, noise=noise, max_samples=2)
    images, given = random_images(2), conditions(2)
    draws = {"a": torch.randn(2, 4, 16, 24), "b": torch.randn(2, 4, 16, 24), "c": torch.randn(2, 2, 4, 16, 24)}
    together = extractor(images, replace(given, noise=draws))
    for branch in branches:
        alone = FeatureExtractor(backbone, [branch], noise=noise, max_samples=2)
        expected = alone(images, replace(given, noise=draws[branch.name]))[branch.name][layers[0]]
        assert torch.equal(together[branch.name][layers[0]], expected)
    drawn = extractor(images, given)
    some = extractor(images, replace(given, noise={"a": draws["a"]}))
    assert torch.equal(some["c"][layers[0]], drawn["c"][layers[0]])  # not named: its keyed draw
    assert not torch.equal(some["a"][layers[0]], drawn["a"][layers[0]])


def test_noise_by_branch_is_checked(backbone: UNetBackbone) -> None:
    extractor = FeatureExtractor(backbone, [Branch("plain", 50, tuple(PATHS)[:1])])
    for own, message in (
        ({"plian": torch.zeros(1, 4, 16, 24)}, "branch 'plian'; did you mean plain"),
        ({"plain": torch.zeros(1, 4, 8, 8)}, r"shape \(1, 4, 8, 8\)"),
    ):
        with pytest.raises(DataError, match=message):
            extractor(random_images(1), replace(conditions(1), noise=own))


@pytest.mark.parametrize("size", [(61, 90), (64, 90), (57, 57)])
def test_images_of_any_size_are_padded_here(backbone: UNetBackbone, size: tuple[int, int]) -> None:
    branches = [Branch("c", 50, tuple(PATHS)[:2], (ControlNet(), ControlNet(image="given", scale=0.5)))]
    extractor = FeatureExtractor(backbone, branches)
    images = random_images(2, *size)
    given = conditions(2, control_images={"given": (random_images(2, *size) + 1) / 2})
    padded = given.map_controls(lambda image: pad_to_multiple(image, backbone.size_multiple))
    expected = extractor(pad_to_multiple(images, backbone.size_multiple), padded)["c"]
    for layer, value in extractor(images, given)["c"].items():
        assert torch.equal(value, expected[layer])


def test_images_below_the_smallest_size_are_refused(backbone: UNetBackbone) -> None:
    extractor = FeatureExtractor(backbone, [Branch("plain", 50, tuple(PATHS)[:1])])
    with pytest.raises(DataError, match="too small"):
        extractor(random_images(1, 64, backbone.minimum_size - backbone.size_multiple - 1), conditions(1))
    with pytest.raises(DataError, match=r"images are on meta, the weights of .* on cpu"):
        extractor(random_images(1).to("meta"), conditions(1))
    with pytest.raises(DataError, match="expected \\(B, 3, H, W\\)"):
        extractor(torch.zeros(1, 3, 33, 33, dtype=torch.uint8), conditions(1))
    given = conditions(1, control_images={"depth": torch.zeros(1, 3, 64, 64)})
    with pytest.raises(DataError, match="control image 'depth' has 64 × 64 pixels"):
        extractor(random_images(1, 61, 64), given)


def test_a_sampled_posterior_is_keyed_too(backbone: UNetBackbone) -> None:
    extractors = [
        FeatureExtractor(backbone, [Branch("x", 0, ("unet-in",))], posterior=posterior)
        for posterior in ("mean", "sample", "sample")
    ]
    mean, one, other = (extractor(random_images(1), conditions(1))["x"]["unet-in"] for extractor in extractors)
    assert torch.equal(one, other)
    assert not torch.equal(one, mean)


def test_its_state_dict_is_empty_and_loads_strictly(backbone: UNetBackbone) -> None:
    model = nn.ModuleDict(
        {"extractor": FeatureExtractor(backbone, [Branch("x", 50, ("unet-in",))]), "head": nn.Linear(2, 2)}
    )
    state = copy.deepcopy(model.state_dict())
    assert list(state) == ["head.weight", "head.bias"]
    model.load_state_dict(state)
    del state["head.bias"]
    with pytest.raises(RuntimeError, match=r"head\.bias"):
        model.load_state_dict(state)


def test_features_that_are_not_finite_name_layer_branch_image_and_reason(backbone: UNetBackbone) -> None:
    branches = [Branch("a", layers=list(PATHS)[:2], timestep=50), Branch("b", layers=list(PATHS)[2:], timestep=50)]
    extractor = FeatureExtractor(backbone, branches)
    images, given = random_images(2), conditions(2)
    unet, first = backbone.unet, next(iter(PATHS))
    spoil = unet.get_submodule(PATHS[first]).register_forward_hook(
        lambda m, i, o: o.index_fill(0, torch.tensor(1), math.inf)
    )
    try:
        with pytest.raises(
            NotFiniteError, match=rf"layer {first} of branch 'a', image '{given.sample_ids[1]}'"
        ) as caught:
            extractor(images, given)
    finally:
        spoil.remove()
    assert "computed in float32" in str(caught.value)
    weight = unet.conv_in.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.view(-1)[0] = float("nan")
        with pytest.raises(NotFiniteError, match=r"weights themselves are not finite: unet\.conv_in\.weight"):
            extractor(images, given)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert extractor(images, given)


def test_features_have_the_images_type_and_no_gradient() -> None:
    backbone = build("one_repeat").to(torch.bfloat16)
    extractor = FeatureExtractor(backbone, [Branch("x", 50, ("up-level1-upsampler-out",))])
    feature = extractor(random_images(1).requires_grad_(), conditions(1))["x"]["up-level1-upsampler-out"]
    assert feature.dtype == torch.float32
    assert not feature.requires_grad


def test_its_description_is_json_and_tells_settings_apart(backbone: UNetBackbone, lora_files: dict[str, str]) -> None:
    branches = gate_branches(lora_files)
    described = {
        json.dumps(FeatureExtractor(backbone, chosen, **own).description, sort_keys=True)
        for chosen, own in (
            (branches, {}),
            (branches, {"seed": 1}),
            (branches, {"noise": "shared"}),
            (branches, {"posterior": "sample"}),
            (branches[:2], {}),
        )
    }
    assert len(described) == 5
    assert lora_files["a"] not in next(iter(described))  # weights are named by content, not by place


def test_conditions_for_another_number_of_images_are_refused(backbone: UNetBackbone) -> None:
    extractor = FeatureExtractor(backbone, [Branch("x", 50, ("unet-in",))])
    with pytest.raises(DataError, match="2 images, but conditions for 1"):
        extractor(random_images(2), conditions(1))


@pytest.mark.parametrize("own", [{"noise": "own"}, {"posterior": "mode"}, {"max_samples": 0}])
def test_impossible_settings_are_refused(backbone: UNetBackbone, own: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(own))):
        FeatureExtractor(backbone, [Branch("x", 50, ("unet-in",))], **own)


def test_what_a_branch_lacks_is_found_before_anything_runs(backbone: UNetBackbone, tmp_path: Path) -> None:
    layers = ("unet-in",)
    for branch, error in (
        (Branch("x", 1000, layers), ConfigError),
        (Branch("x", 50, ("nowhere",)), ConfigError),
        (Branch("x", 50, layers, (ControlNet("depth"),)), ConfigError),
        (Branch("x", 50, layers, (LoRA("missing", str(tmp_path / "no.safetensors")),)), WeightsError),
    ):
        with pytest.raises(error):
            FeatureExtractor(backbone, [branch])
    with pytest.raises(ConfigError, match="several branches are named x"):
        FeatureExtractor(backbone, [Branch("x", 50, layers), Branch("x", 60, layers)])
    with pytest.raises(ConfigError, match="no branches"):
        FeatureExtractor(backbone, [])
