"""IP-Adapter against diffusers' own attention processors, beside other branches and techniques."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPImageProcessor

from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.reading.img2img import ImageToImage
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.denoise import Denoise
from gate_lightning.techniques.guidance import Guidance
from gate_lightning.techniques.ip_adapter import IPAdapter
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt
from gate_lightning.utils.seeding import keyed_noise
from tests.support.ip_adapters import SavedAdapter, save_ip_adapter
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

LAYERS = ("up-level1-upsampler-out", "up-level2-repeat1-vit-block0-cross-q")
MODULES = ("up_blocks.1.upsamplers.0", "up_blocks.2.attentions.1.transformer_blocks.0.attn2.to_q")
TEXT = "a red circle"


@torch.no_grad()
def by_hand(
    backbone: UNetBackbone, saved: SavedAdapter, image: Tensor, index: int, scale: float, guidance: float = 1.0
) -> list[Tensor]:
    """Features of one image at timestep 31 with the adapter loaded into diffusers' U-Net."""
    unet = copy.deepcopy(backbone.unet)
    unet._load_ip_adapter_weights([saved.parts], low_cpu_mem_usage=False)
    for processor in unet.attn_processors.values():
        if hasattr(processor, "to_k_ip"):
            processor.scale = [scale]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIPImageProcessor().image_mean,
                                                                      CLIPImageProcessor().image_std))  # fmt: skip
    pixels = (image[None] / 2 + 0.5 - mean) / std
    if "latents" in saved.parts["image_proj"]:
        shown, unshown = (
            saved.encoder(given, output_hidden_states=True).hidden_states[-2]
            for given in (pixels, torch.zeros_like(pixels))
        )
    else:
        shown = saved.encoder(pixels).image_embeds
        unshown = torch.zeros_like(shown)
    latents = backbone.vae.encode(image[None]).latent_dist.mean * 0.18215
    noise = keyed_noise(latents.shape[1:], "diffusion", 0, f"s{index}", "", [0, 0], 0, 0)[None]
    noisy = backbone.schedule.add_noise(latents, noise, 31)
    read = []
    for text, embeds in ((TEXT, shown), ("", unshown)):
        tokens = backbone.tokenizer(text, padding="max_length", max_length=40, return_tensors="pt").input_ids
        hidden = backbone.text_encoder(tokens).last_hidden_state
        caught: dict[str, Tensor] = {}
        handles = [
            unet.get_submodule(path).register_forward_hook(
                lambda m, i, o, path=path, kept=caught: kept.update({path: o})
            )
            for path in MODULES
        ]
        unet(noisy, 31, hidden, added_cond_kwargs={"image_embeds": [embeds[:, None]]})
        for handle in handles:
            handle.remove()
        read.append([caught[path] for path in MODULES])
    return [guidance * prompted + (1 - guidance) * plain for prompted, plain in zip(*read, strict=True)]


@pytest.mark.parametrize("plus", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["plain", "plus"])
@pytest.mark.parametrize("suffix", [".safetensors", pytest.param(".bin", marks=pytest.mark.thorough)])
def test_features_equal_diffusers_own(
    network: UNetBackbone, backbone: UNetBackbone, tmp_path: Path, plus: bool, suffix: str
) -> None:
    saved = save_ip_adapter(tmp_path, network.unet, plus, seed=1, suffix=suffix)
    images, known = random_images(2, 32, 32), conditions(2)
    branches = [
        Branch("shown", 31, LAYERS, (saved.technique(0.7), Prompt(TEXT))),
        Branch("guided", 31, LAYERS, (saved.technique(1.0), Guidance(3.0), Prompt(TEXT))),
        Branch("plain", 31, LAYERS, (Prompt(TEXT),)),
    ]
    features = FeatureExtractor(backbone, branches)(images, known)
    for index in range(2):
        for name, scale, guidance in (("shown", 0.7, 1.0), ("guided", 1.0, 3.0), ("plain", 0.0, 1.0)):
            expected = by_hand(network, saved, images[index], index, scale, guidance)
            for layer, value in zip(LAYERS, expected, strict=True):
                actual = features[name][layer][index, None]
                wanted = value if value.ndim == 4 else value.transpose(1, 2).reshape(actual.shape)
                assert relative(actual, wanted) < 1e-5
    assert relative(features["shown"][LAYERS[0]], features["plain"][LAYERS[0]]) > 1e-2


@pytest.mark.thorough
def test_a_lora_acts_on_its_queries_and_output(network: UNetBackbone, backbone: UNetBackbone, tmp_path: Path) -> None:
    saved = save_ip_adapter(tmp_path, network.unet)
    pairs = random_pairs(adapted_layers(network), seed=1)
    lora = LoRA("a", str(save_diffusers(tmp_path / "a.safetensors", pairs)))
    branch = Branch("x", 31, LAYERS[:1], (lora, saved.technique(), Prompt(TEXT)))
    images = random_images(1, 32, 32)
    features = FeatureExtractor(backbone, [branch])(images, conditions(1))["x"][LAYERS[0]]
    adapted = copy.deepcopy(network)
    merge(adapted_layers(adapted), pairs, 1.0)
    assert relative(features, by_hand(adapted, saved, images[0], 0, 1.0)[0]) < 1e-5


def test_the_network_and_the_other_rows_stay_what_they_were(backbone: UNetBackbone, tmp_path: Path) -> None:
    saved = save_ip_adapter(tmp_path, backbone.unet)
    images, known = random_images(2, 32, 32), conditions(2)
    others = [
        Branch("plain", 31, LAYERS, prompt="a photo"),
        Branch("control", 31, LAYERS, (ControlNet(), Prompt(TEXT))),
    ]
    without = Branch("shown", 31, LAYERS, (Prompt(TEXT),))
    before = FeatureExtractor(backbone, [without, *others])(images, known)
    state = {name: value.clone() for name, value in backbone.unet.state_dict().items()}
    shown = replace(without, techniques=(saved.technique(), Prompt(TEXT)))
    after = FeatureExtractor(backbone, [shown, *others])(images, known)
    for branch in others:  # in one batch with rows that see the image
        for layer in LAYERS:
            assert torch.equal(after[branch.name][layer], before[branch.name][layer])
    assert not torch.equal(after["shown"][LAYERS[0]], before["shown"][LAYERS[0]])
    none = replace(without, techniques=(saved.technique(0.0), Prompt(TEXT)))
    for layer in LAYERS:
        again = FeatureExtractor(backbone, [none, *others])(images, known)
        assert torch.equal(again["shown"][layer], before["shown"][layer])
    for name, value in backbone.unet.state_dict().items():
        assert torch.equal(value, state[name])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.unet.modules())


@pytest.mark.thorough
def test_every_branch_of_a_batch_equals_itself_alone(backbone: UNetBackbone, tmp_path: Path) -> None:
    saved = save_ip_adapter(tmp_path, backbone.unet)
    long = " ".join(["a red circle"] * 20)
    captions = ("a tree", long)
    branches = [
        Branch("shown", 31, LAYERS[:1], (saved.technique(), Prompt())),
        Branch("weaker", 31, LAYERS[:1], (saved.technique(0.3), Prompt(), ControlNet()), ensemble=2),
        Branch("steps", 31, LAYERS[:1], (saved.technique(), Denoise(1), Guidance(2.0), Prompt())),
        Branch("plain", 31, LAYERS[:1], (Prompt(),)),
    ]
    images, known = random_images(2, 32, 32), conditions(2, captions=captions)
    together = FeatureExtractor(backbone, branches, max_samples=5)(images, known)
    painted = ImageToImage(backbone, branches[::3], 100, 1)(images, known)
    for branch in branches:
        for row in range(2):
            alone = FeatureExtractor(backbone, [branch])(images[row, None], known[row])[branch.name][LAYERS[0]]
            assert relative(together[branch.name][LAYERS[0]][row, None], alone) < 1e-5
    assert relative(painted["shown"], painted["plain"]) > 1e-3
    alone = ImageToImage(backbone, branches[:1], 100, 1)(images[1, None], known[1])["shown"]
    assert relative(painted["shown"][1, None], alone) < 1e-5


def test_the_image_is_shown_as_clip_s_own_processor_shows_it(backbone: UNetBackbone, tmp_path: Path) -> None:
    saved = save_ip_adapter(tmp_path, backbone.unet)
    saved.technique().prepare(backbone)
    for size in ((64, 96), (101, 48), (32, 32)):
        images = random_images(2, *size)
        processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        arrays = list(((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
        expected = processor(arrays, return_tensors="pt").pixel_values
        actual = backbone.image_prompts(saved.technique().adapter).pixels(images)
        assert actual.shape == expected.shape
        difference = (actual - expected).abs()  # it rounds to 8 bits twice, and cuts overshoot in between
        assert difference.mean() < 0.01
        assert difference.max() < 0.1


def test_an_sdxl_takes_one_too(tmp_path: Path) -> None:
    backbone: Any = build("xl_like")
    saved = save_ip_adapter(tmp_path, backbone.unet, plus=True)
    layer = "up-level1-upsampler-out" if "up-level1-upsampler-out" in backbone.layers else next(iter(backbone.layers))
    branch = Branch("x", 31, (layer,), (saved.technique(),))
    images, known = random_images(1, 64, 64), conditions(1)
    shown = FeatureExtractor(backbone, [branch])(images, known)["x"][layer]
    plain = FeatureExtractor(backbone, [replace(branch, techniques=())])(images, known)["x"][layer]
    assert relative(shown, plain) > 1e-3


@pytest.mark.thorough
def test_both_files_are_part_of_what_features_depend_on(network: UNetBackbone, tmp_path: Path) -> None:
    descriptions = [str(network.description)]
    for number, seeds in enumerate(((0, 0), (1, 0), (0, 1))):
        folder = tmp_path / str(number)
        folder.mkdir()
        saved = save_ip_adapter(folder, network.unet, seed=seeds[0])
        if seeds[1]:
            weights = {**saved.encoder.state_dict()}
            weights["visual_projection.weight"] = weights["visual_projection.weight"] * 2
            save_file(weights, folder / "image_encoder" / "model.safetensors")
        backbone = copy.deepcopy(network)
        FeatureExtractor(backbone, [Branch("x", 31, LAYERS[:1], (saved.technique(),))])
        descriptions.append(str(backbone.description))
        again = replace(saved.technique(), weights=str(tmp_path / "0" / Path(saved.weights).name))
        if number:
            with pytest.raises(ConfigError, match=r"'ip_adapter_tiny' is .* already"):
                again.prepare(backbone)
    assert len(set(descriptions)) == 4


def test_missing_and_wrong_files_are_refused(backbone: UNetBackbone, tmp_path: Path) -> None:
    saved = save_ip_adapter(tmp_path, backbone.unet)
    keys = (
        r"technique\.ip_adapter\.weights=<file> technique\.ip_adapter\.image_encoder=<folder>\)\. Both are "
        r"published at huggingface\.co/h94/IP-Adapter"
    )
    for none in (IPAdapter(), IPAdapter(saved.weights), IPAdapter(image_encoder=saved.image_encoder)):
        with pytest.raises(WeightsError, match=rf"the ip_adapter technique has no (weights|image_encoder).*{keys}"):
            none.prepare(backbone)
    with pytest.raises(WeightsError, match=r"nowhere\.bin, of the ip_adapter technique, does not exist.*h94"):
        IPAdapter("nowhere.bin", saved.image_encoder).prepare(backbone)
    for impossible in ({"scale": "big"}, {"scale": -1}, {"weights": 3}, {"image_encoder": ""}):
        with pytest.raises(ConfigError, match="expected"):
            IPAdapter(**impossible)
    for member, reason in (("pixels", "does not support ip_adapter"), ("cleandift", "does not support ip_adapter")):
        with pytest.raises(ConfigError, match=reason):
            saved.technique().prepare(build(member))
    (tmp_path / "other").mkdir()
    other = save_ip_adapter(tmp_path / "other", build("one_repeat").unet)
    with pytest.raises(WeightsError, match=r"for another U-Net: it has 14 weights.*expected 32"):
        other.technique().prepare(backbone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts.pop("ip_adapter"), "is no IP-Adapter: it holds image_proj"),
        (lambda parts: parts["ip_adapter"].pop("1.to_k_ip.weight"), "has 31 weights of keys and values, expected 32"),
        (lambda parts: parts["image_proj"].pop("norm.bias"), "does not fit ImageProjection"),
        (lambda parts: parts["image_proj"].update({"proj.0.weight": parts["image_proj"].pop("proj.weight")}),
         "of another kind .*FaceID and full-face ones are not read"),
        (lambda parts: parts["image_proj"].update({"proj.weight": torch.zeros(512, 7)}),
         r"reads image embeddings of 7 channels, and .*image_encoder makes 24"),
        (lambda parts: parts["ip_adapter"].update({"3.to_v_ip.weight": torch.full((32, 128), float("nan"))}),
         "values that are not finite"),
        (lambda parts: parts["ip_adapter"].update({"3.to_v_ip.weight": torch.zeros(32, 64)}), "for another U-Net"),
    ],
)  # fmt: skip
def test_broken_files_are_refused(backbone: UNetBackbone, tmp_path: Path, change: Any, message: str) -> None:
    saved = save_ip_adapter(tmp_path, backbone.unet)
    change(saved.parts)
    flat = {f"{part}.{name}": value for part, held in saved.parts.items() for name, value in held.items()}
    save_file(flat, saved.weights)
    with pytest.raises(WeightsError, match=message):
        saved.technique().prepare(backbone)
