"""Real LoRA files on a network of the real architecture: every layer finds its place, and does there what it should."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from gate_lightning.backbones.adapters.lora_files import read_adapter
from gate_lightning.backbones.noise_schedule import DiffusionSchedule
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.errors import WeightsError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.structures import Identity
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt
from tests.support.small_networks import conditions, random_images, relative

FILES = {
    "sd1_cloneofsimo_analog_rank4": "analog style, a photo of a horse",
    "sd1_cloneofsimo_disney_rank1_ti": "a photo of a horse in the style of <s1><s2>",
    "sd1_diffusers_attnprocs_rank4": "a photo of a horse",
}
LAYERS = ("up-level0-upsampler-out", "up-level1-upsampler-out", "up-level2-upsampler-out")


def parts(layout: Path) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(layout / "unet"))
    return unet, CLIPTextModel(CLIPTextConfig.from_pretrained(layout / "text_encoder"))


def folders(shared_dir: Path) -> tuple[Path, Path]:
    data = shared_dir / "data"
    if not (data / "loras").is_dir():
        pytest.skip("no real LoRA files")
    return data / "hf_layouts", data / "loras"


@pytest.fixture(scope="module")
def outlines(shared_dir: Path) -> dict[str, dict[str, nn.Module]]:
    """The networks of SD 1.4 and of SDXL without weights."""
    layouts, _ = folders(shared_dir)
    with torch.device("meta"):
        made = {name: parts(layouts / name) for name in ("sd-v1-4", "sdxl-base-1.0")}
    return {name: {"unet": unet, "text_encoder": text} for name, (unet, text) in made.items()}


def hand_ordered(unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> dict[str, list[nn.Module]]:
    """The layers by the numbers of the original format, written out as loops."""

    def attention(block: Any) -> list[nn.Module]:
        return [block.to_q, block.to_k, block.to_v, block.to_out[0]]

    ordered: list[nn.Module] = []
    for block in [*unet.down_blocks, *unet.up_blocks, unet.mid_block]:
        for transformer in getattr(block, "attentions", ()):
            for one in transformer.transformer_blocks:
                ordered += [*attention(one.attn1), one.ff.net[0].proj, *attention(one.attn2)]
    text: list[nn.Module] = []
    for layer in text_encoder.encoder.layers:
        own = layer.self_attn
        text += [own.k_proj, own.v_proj, own.q_proj, own.out_proj]
    return {"unet": ordered, "text_encoder": text}


def hand_read(
    path: Path, unet: UNet2DConditionModel, text: CLIPTextModel
) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    """(layer, down, up) of a file, by the test's own reading."""
    ordered = hand_ordered(unet, text)
    with safe_open(path, "pt") as file:
        keys = sorted(file.keys())
        for key in keys:
            if key.endswith(":up"):
                part, index, _ = key.split(":")
                yield ordered[part][int(index)], file.get_tensor(f"{part}:{index}:down"), file.get_tensor(key)
            elif key.endswith("_lora.up.weight"):
                module, name = key.removesuffix("_lora.up.weight").split(".processor.")
                layer = unet.get_submodule(f"{module}.{name}" + (".0" if name == "to_out" else ""))
                yield layer, file.get_tensor(key.replace(".up.", ".down.")), file.get_tensor(key)


@pytest.mark.parametrize(("name", "layers"), zip(FILES, ((144, 48), (144, 48), (128, 0)), strict=True))
def test_every_layer_finds_its_place(
    outlines: dict[str, dict[str, nn.Module]], shared_dir: Path, name: str, layers: tuple[int, int]
) -> None:
    path = folders(shared_dir)[1] / f"{name}.safetensors"
    networks: Any = outlines["sd-v1-4"]
    adapter = read_adapter(path, networks)
    assert tuple(len(adapter.paths.get(part, ())) for part in ("unet", "text_encoder")) == layers
    expected = {
        id(layer): down.shape[0] for layer, down, _ in hand_read(path, networks["unet"], networks["text_encoder"])
    }
    for part in adapter.paths:
        for place, branch in adapter.branches(part):
            assert expected.pop(id(networks[part].get_submodule(place))) == branch.down.shape[0]
    assert not expected
    tokens = {token: tuple(vectors.shape) for token, vectors in adapter.tokens.get("text_encoder", {}).items()}
    assert tokens == ({"<s1>": (1, 768), "<s2>": (1, 768)} if name.endswith("_ti") else {})


@pytest.mark.parametrize("name", FILES)
def test_sd1_files_are_refused_by_sdxl(outlines: dict[str, dict[str, nn.Module]], shared_dir: Path, name: str) -> None:
    with pytest.raises(WeightsError, match="another architecture"):
        read_adapter(folders(shared_dir)[1] / f"{name}.safetensors", outlines["sdxl-base-1.0"])


@pytest.mark.slow
@torch.no_grad()
def test_features_change_by_what_a_merge_by_hand_gives(shared_dir: Path) -> None:
    """At real size (5 GB of memory): every file as adapter, then merged into the weights, subtracted again."""
    layouts, files = folders(shared_dir)
    layout = layouts / "sd-v1-4"
    torch.manual_seed(0)
    unet, text = parts(layout)
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(layout / "vae"))
    schedule = json.loads((layout / "scheduler" / "scheduler_config.json").read_text())
    tokenizer = CLIPTokenizer.from_pretrained(layout / "tokenizer", local_files_only=True)
    backbone = UNetBackbone(unet, vae, text, tokenizer, DiffusionSchedule(schedule), Identity("sd-v1-4", "", "random"))

    def read(branch: Branch) -> dict[str, Tensor]:
        return FeatureExtractor(backbone, [branch])(random_images(1, 128, 128), conditions(1))["x"]

    for name, prompt in FILES.items():
        path = files / f"{name}.safetensors"
        plain = read(Branch("x", 50, LAYERS, (Prompt(prompt),)))
        steered = read(Branch("x", 50, LAYERS, (Prompt(prompt), LoRA(name, str(path), 0.8))))
        merged = list(hand_read(path, unet, text))
        kept = [layer.weight.clone() for layer, _, _ in merged]
        for layer, down, up in merged:
            layer.weight += (0.8 * up.double() @ down.double()).float()
        tokens = backbone.adapters[name].tokens
        expected = _with_tokens(backbone, prompt, tokens.get("text_encoder", {}), read)
        for (layer, _, _), weight in zip(merged, kept, strict=True):
            layer.weight.copy_(weight)
        for layer_id in LAYERS:
            changed, error = (relative(steered[layer_id], other[layer_id]) for other in (plain, expected))
            print(f"{name} {layer_id}: changed by {changed:.2e}, off the merge by {error:.2e}")  # noqa: T201
            assert error <= 1e-5
            assert changed > 1e-3


def _with_tokens(backbone: UNetBackbone, prompt: str, tokens: dict[str, Tensor], read: Any) -> dict[str, Tensor]:
    """Features with the learned tokens as ordinary tokens of a longer vocabulary, the way of transformers."""
    plain_tokenizer, embedding = backbone.tokenizer, backbone.text_encoder.get_input_embeddings()
    known = len(plain_tokenizer)
    before = embedding.weight.data
    if tokens:
        backbone.tokenizer = type(plain_tokenizer).from_pretrained(plain_tokenizer.name_or_path, local_files_only=True)
        backbone.tokenizer.add_tokens(list(tokens))
        rows = torch.cat([tokens[token] for token in tokens])
        assert backbone.tokenizer.convert_tokens_to_ids(list(tokens)) == list(range(known, known + len(tokens)))
        embedding.weight.data = torch.cat([before, rows])
    try:
        return read(Branch("x", 50, LAYERS, (Prompt(prompt),)))
    finally:
        backbone.tokenizer, embedding.weight.data = plain_tokenizer, before
