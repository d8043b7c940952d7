"""LoRA files in further formats: the original numbered one, LoCon with a core, SDXL's names; and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from gate_lightning.backbones.adapters.lora_files import read_adapter
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.errors import ConfigError, WeightsError
from tests.support.small_networks import (
    adapted_layers,
    build,
    merge,
    random_pairs,
    relative,
    save_diffusers,
    save_kohya,
)

ONE = (("a", 1.0),)
Entries = dict[str, list[tuple[Tensor, Tensor]]]


@pytest.fixture(scope="module")
def clean() -> UNetBackbone:
    return build("one_repeat")


@pytest.fixture
def backbone(clean: UNetBackbone) -> UNetBackbone:
    return copy.deepcopy(clean)


@torch.no_grad()
def predict(backbone: UNetBackbone, adapters: tuple[tuple[str, float], ...] = (), prompt: str = "a house") -> Tensor:
    latents = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    return backbone.denoise(latents, 40, backbone.encode_text([prompt], adapters), adapters=[adapters])


def numbered(backbone: UNetBackbone, resnets: bool = False, newer: bool = False) -> dict[str, list[nn.Module]]:
    """The layers in the order of the original format, written out as loops."""

    def attention(one: Any) -> list[nn.Module]:
        return [one.to_q, one.to_k, one.to_v, one.to_out[0]]

    ordered: list[nn.Module] = []
    for block in [*backbone.unet.down_blocks, *backbone.unet.up_blocks, backbone.unet.mid_block]:
        for transformer in getattr(block, "attentions", None) or ():
            for one in transformer.transformer_blocks:
                first, middle, last = attention(one.attn1), [one.ff.net[0].proj], attention(one.attn2)
                ordered += [*first, *last, *middle] if newer else [*first, *middle, *last]
        if resnets:
            for one in block.resnets:
                shortcut = [one.conv_shortcut] if one.conv_shortcut is not None else []
                ordered += [one.conv1, one.time_emb_proj, one.conv2, *shortcut]
    text: list[nn.Module] = []
    for layer in backbone.text_encoder.encoder.layers:
        text += [getattr(layer.self_attn, name) for name in ("k_proj", "v_proj", "q_proj", "out_proj")]
    return {"unet": ordered, "text_encoder": text}


def entries_for(layers: dict[str, list[nn.Module]], rank: int = 2) -> Entries:
    made = {}
    for part, ordered in layers.items():
        pairs = random_pairs({str(index): layer for index, layer in enumerate(ordered)}, rank, seed=len(part), size=0.1)
        made[part] = [pairs[str(index)] for index in range(len(ordered))]
    return made


def save_numbered(path: Path, entries: Entries, tokens: dict[str, Tensor] | None = None, resnets: bool = False) -> Path:
    targets = ["GEGLU", "CrossAttention", "Attention", *(["ResnetBlock2D"] if resnets else [])]
    header = {"unet": json.dumps(targets), "text_encoder": json.dumps(["CLIPAttention"])}
    state = dict(tokens or {})
    header |= dict.fromkeys(state, "<embed>")
    for part, pairs in entries.items():
        for index, (down, up) in enumerate(pairs):
            state[f"{part}:{index}:down"], state[f"{part}:{index}:up"] = down, up
            header[f"{part}:{index}:rank"] = str(len(down))
    save_file(state, path, header)
    return path


@pytest.mark.parametrize(("resnets", "newer"), [(False, False), (False, True), (True, False)])
def test_numbered_layers_equal_merged_weights(
    clean: UNetBackbone, backbone: UNetBackbone, tmp_path: Path, resnets: bool, newer: bool
) -> None:
    entries = entries_for(numbered(clean, resnets, newer))
    backbone.require_adapter("a", str(save_numbered(tmp_path / "a.safetensors", entries, resnets=resnets)))
    oracle = copy.deepcopy(clean)
    for part, ordered in numbered(oracle, resnets, newer).items():
        layers = {str(index): layer for index, layer in enumerate(ordered)}
        merge(layers, {str(index): pair for index, pair in enumerate(entries[part])}, 1.0)
    assert relative(predict(clean), predict(oracle)) > 1e-2
    assert relative(predict(backbone, ONE), predict(oracle)) < 1e-5


def test_a_numbered_file_without_a_header_has_the_original_codes_targets(
    clean: UNetBackbone, backbone: UNetBackbone, tmp_path: Path
) -> None:
    entries = entries_for(numbered(clean))
    save_numbered(tmp_path / "a.safetensors", entries)
    state = {
        f"unet:{i}:{role}": pair[role == "up"] for i, pair in enumerate(entries["unet"]) for role in ("down", "up")
    }
    save_file(state, tmp_path / "b.safetensors")
    for name in "ab":
        backbone.require_adapter(name, str(tmp_path / f"{name}.safetensors"))
    assert backbone.adapters["a"].paths["unet"] == backbone.adapters["b"].paths["unet"]


def test_tokens_beside_a_lora_are_read_where_it_acts(
    clean: UNetBackbone, backbone: UNetBackbone, tmp_path: Path
) -> None:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(3))
    entries = {"unet": entries_for(numbered(clean))["unet"]}
    backbone.require_adapter("a", str(save_numbered(tmp_path / "a.safetensors", entries, {"<s1>": vector})))
    assert backbone.text_adapters((("a", 0.4),)) == (("a", 0.4),)
    oracle = copy.deepcopy(clean)
    word = oracle.tokenizer("red").input_ids[1]
    oracle.text_encoder.get_input_embeddings().weight.data[word] = vector
    expected = oracle.encode_text(["a red house"]).hidden
    assert relative(backbone.encode_text(["a <s1> house"], ONE).hidden, expected) < 1e-6
    assert relative(backbone.encode_text(["a <s1> house"]).hidden, expected) > 1e-2  # its letters


def test_tokens_of_a_numbered_file_can_be_used_without_its_lora(
    clean: UNetBackbone, backbone: UNetBackbone, tmp_path: Path
) -> None:
    path = save_numbered(tmp_path / "a.safetensors", entries_for(numbered(clean)), {"<s1>": torch.ones(32)})
    backbone.require_adapter("t", str(path), "tokens")
    assert not backbone.adapters["t"].paths
    assert list(backbone.adapters["t"].tokens["text_encoder"]) == ["<s1>"]
    save_numbered(path, entries_for(numbered(clean)))
    with pytest.raises(WeightsError, match="holds no learned tokens, only text_encoder:0:down"):
        backbone.require_adapter("u", str(path), "tokens")


def test_one_token_of_two_loras_is_refused(backbone: UNetBackbone, clean: UNetBackbone, tmp_path: Path) -> None:
    entries = {"unet": entries_for(numbered(clean))["unet"]}
    for name in "ab":
        tokens = {"<s1>": torch.randn(32)}
        backbone.require_adapter(name, str(save_numbered(tmp_path / f"{name}.safetensors", entries, tokens)))
    backbone.encode_text(["a house"], ONE)
    with pytest.raises(ConfigError, match="'a' and 'b' both learned the token <s1>"):
        backbone.encode_text(["a house"], (*ONE, ("b", 1.0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("count", r"another architecture: \d+ layers for the unet, this backbone has \d+"),
        ("gap", r"incomplete: it lacks unet:3:"),
        ("width", r"another architecture: unet:0 is \(2, 7\)"),
        ("class", r"layers of Mystery, whose order is not known"),
        ("token", r"<s1> has 7 channels, the tokens of this backbone's text_encoder have 32"),
        ("stray", r"mixes numbered layers with conv_in\.weight"),
        ("part", r"this backbone has no prior"),
    ],
)
def test_broken_numbered_files_are_refused(clean: UNetBackbone, tmp_path: Path, change: str, message: str) -> None:
    entries = entries_for(numbered(clean))
    down, up = entries["unet"][0]
    tokens: dict[str, Tensor] = {}
    header = {"unet": '["CrossAttention", "GEGLU"]', "text_encoder": '["CLIPAttention"]'}
    state = {}
    match change:
        case "count":
            entries["unet"] = entries["unet"][:-1]
        case "width":
            entries["unet"][0] = (torch.zeros(2, 7), up)
        case "class":
            header["unet"] = '["Mystery"]'
        case "token":
            tokens["<s1>"] = torch.zeros(7)
        case "part":
            entries["prior"] = [(down.clone(), up.clone())]
    for part, pairs in entries.items():
        for index, pair in enumerate(pairs):
            state[f"{part}:{index}:down"], state[f"{part}:{index}:up"] = pair
    if change == "gap":
        del state["unet:3:up"]
    if change == "stray":
        state["conv_in.weight"] = torch.zeros(2)
    save_file({**state, **tokens}, tmp_path / "a.safetensors", {**header, **dict.fromkeys(tokens, "<embed>")})
    with pytest.raises(WeightsError, match=message):
        read_adapter(tmp_path / "a.safetensors", clean.adapted_parts)


def test_locon_with_a_core_equals_its_three_convolutions(
    clean: UNetBackbone, backbone: UNetBackbone, tmp_path: Path
) -> None:
    layer = clean.unet.down_blocks[0].downsamplers[0].conv  # of stride 2
    generator = torch.Generator().manual_seed(2)
    down, core, up = (
        torch.randn(*shape, generator=generator) * 0.2
        for shape in ((3, 16, 1, 1), (3, 3, 3, 3), (layer.weight.shape[0], 3, 1, 1))
    )
    stem = "lora_unet_down_blocks_0_downsamplers_0_conv"
    state = {f"{stem}.lora_down.weight": down, f"{stem}.lora_mid.weight": core, f"{stem}.lora_up.weight": up}
    save_file({**state, f"{stem}.alpha": torch.tensor(1.5)}, tmp_path / "a.safetensors")
    backbone.require_adapter("a", str(tmp_path / "a.safetensors"))
    inputs = torch.randn(2, 16, 9, 8)
    inner = nn.functional.conv2d(nn.functional.conv2d(inputs, down), core, None, layer.stride, layer.padding)
    expected = layer(inputs) + 0.5 * nn.functional.conv2d(inner, up)
    with torch.no_grad(), backbone.adapters.applied(backbone.unet, "unet", [ONE, ONE]):
        actual = backbone.unet.down_blocks[0].downsamplers[0].conv(inputs)
    assert relative(actual, expected) < 1e-6


def test_old_diffusers_names_of_the_text_encoder(clean: UNetBackbone, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    down, up = (torch.randn(*shape, generator=generator) for shape in ((2, 32), (32, 2)))
    for name in ("to_q_lora", "q_proj.lora_linear_layer"):
        stem = f"text_encoder.text_model.encoder.layers.0.self_attn.{name}"
        save_file({f"{stem}.down.weight": down, f"{stem}.up.weight": up}, tmp_path / "a.safetensors")
        adapter = read_adapter(tmp_path / "a.safetensors", clean.adapted_parts)
        assert adapter.paths == {"text_encoder": ("encoder.layers.0.self_attn.q_proj",)}


@pytest.fixture(scope="module")
def xl() -> dict[str, nn.Module]:
    """Networks of SDXL's shape (no attention in the first and last block), without weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(16, 32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 3),
            cross_attention_dim=48,
            norm_num_groups=8,
            use_linear_projection=True,
        )
        text = CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
        wide = CLIPTextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
        return {
            "unet": unet,
            "text_encoder": CLIPTextModelWithProjection(text),
            "text_encoder_2": CLIPTextModelWithProjection(wide),
        }


def test_sdxl_files_of_kohya_name_the_original_implementation(xl: dict[str, nn.Module], tmp_path: Path) -> None:
    state = {}
    for stem, (into, out) in {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k": (32, 32),
        "lora_unet_input_blocks_7_1_proj_in": (64, 64),
        "lora_unet_middle_block_1_transformer_blocks_2_attn2_to_v": (48, 64),
        "lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_0_proj": (32, 256),
        "lora_te1_text_model_encoder_layers_1_mlp_fc1": (16, 32),
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj": (32, 32),
    }.items():
        state[f"{stem}.lora_down.weight"], state[f"{stem}.lora_up.weight"] = torch.ones(2, into), torch.ones(out, 2)
    for stem, (into, out, kernel) in {
        "lora_unet_input_blocks_6_0_op": (32, 32, 3),
        "lora_unet_output_blocks_2_2_conv": (64, 64, 3),
        "lora_unet_output_blocks_6_0_skip_connection": (48, 16, 1),
        "lora_unet_middle_block_2_in_layers_2": (64, 64, 3),
    }.items():
        state[f"{stem}.lora_down.weight"] = torch.ones(2, into, kernel, kernel)
        state[f"{stem}.lora_up.weight"] = torch.ones(out, 2, 1, 1)
    save_file(state, tmp_path / "xl.safetensors")
    paths = read_adapter(tmp_path / "xl.safetensors", xl).paths
    assert set(paths["unet"]) == {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k",
        "down_blocks.2.attentions.0.proj_in",
        "mid_block.attentions.0.transformer_blocks.2.attn2.to_v",
        "up_blocks.1.attentions.2.transformer_blocks.1.ff.net.0.proj",
        "down_blocks.1.downsamplers.0.conv",
        "up_blocks.0.upsamplers.0.conv",
        "up_blocks.2.resnets.0.conv_shortcut",
        "mid_block.resnets.1.conv1",
    }
    assert [len(paths[part]) for part in ("text_encoder", "text_encoder_2")] == [1, 1]


def test_original_names_agree_with_diffusers_own_table(xl: dict[str, nn.Module]) -> None:
    from gate_lightning.backbones.adapters.lora_names import LayerNames

    # diffusers renames blocks by number only, so it needs keys with every block present
    keys = [f"lora_unet_input_blocks_{i}_1_proj_in.lora_down.weight" for i in (4, 5, 7, 8)]
    keys += [f"lora_unet_output_blocks_{i}_1_proj_in.lora_down.weight" for i in range(6)]
    keys += ["lora_unet_middle_block_1_proj_in.lora_down.weight"]
    state = {key: torch.full((1,), float(index)) for index, key in enumerate(keys)}
    theirs: Any = _maybe_map_sgm_blocks_to_diffusers(dict(state), type("config", (), {"layers_per_block": 2}))
    renamed = {float(value): key for key, value in theirs.items()}
    names = LayerNames(xl["unet"])
    for index, key in enumerate(keys):
        ours = names.find(key.removeprefix("lora_unet_").removesuffix(".lora_down.weight"))
        their = renamed[float(index)].removeprefix("lora_unet_").removesuffix(".lora_down.weight")
        for original, name in (("input_blocks", "down_blocks"), ("output_blocks", "up_blocks"), ("middle", "mid")):
            their = their.replace(original, name)
        assert ours is not None
        assert ours.replace(".", "_") == their


def test_an_sdxl_file_is_refused_by_sd15(backbone: UNetBackbone, tmp_path: Path) -> None:
    stem = "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"
    state = {f"{stem}.lora_down.weight": torch.ones(2, 32), f"{stem}.lora_up.weight": torch.ones(32, 2)}
    save_file(state, tmp_path / "xl.safetensors")
    with pytest.raises(WeightsError, match=r"another architecture: 1 of its 1 layers are not .* lora_te2_"):
        backbone.require_adapter("a", str(tmp_path / "xl.safetensors"))


def test_another_context_size_is_refused_with_both_shapes(backbone: UNetBackbone, tmp_path: Path) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    pairs = random_pairs({f"unet.{name}": nn.Linear(2048, 32)})
    with pytest.raises(WeightsError, match=rf"another architecture: {name} is \(32, 32\).*\(3, 2048\)"):
        backbone.require_adapter("a", str(save_diffusers(tmp_path / "a.safetensors", pairs)))


def test_unknown_formats_list_the_keys_they_hold(backbone: UNetBackbone, tmp_path: Path) -> None:
    state = {f"layers.{index}.mystery": torch.zeros(2) for index in range(6)}
    save_file(state, tmp_path / "a.safetensors")
    shown = ", ".join(rf"layers\.{index}\.mystery" for index in range(4))
    with pytest.raises(WeightsError, match=rf"no LoRA file: it holds {shown} … \(6 such keys\)"):
        backbone.require_adapter("a", str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>login</html>" * 9, "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-LFS pointer"),
        (b"", "no safetensors file"),
    ],
)
def test_impostors_are_named(backbone: UNetBackbone, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        backbone.require_adapter("a", str(tmp_path / "a.safetensors"))


def test_cut_off_files_and_impossible_values_are_refused(backbone: UNetBackbone, tmp_path: Path) -> None:
    pairs = random_pairs(adapted_layers(backbone))
    whole = save_kohya(tmp_path / "a.safetensors", pairs, 1.0).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="incomplete"):
        backbone.require_adapter("a", str(tmp_path / "cut.safetensors"))
    next(iter(pairs.values()))[0].fill_(float("nan"))
    with pytest.raises(WeightsError, match="not finite"):
        backbone.require_adapter("a", str(save_kohya(tmp_path / "nan.safetensors", pairs, 1.0)))


def test_a_layer_that_is_there_twice_is_refused(backbone: UNetBackbone, tmp_path: Path) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = torch.zeros(2, 32), torch.zeros(32, 2)
    state = {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    kohya = "lora_unet_" + name.replace(".", "_")
    state |= {f"{kohya}.lora_down.weight": down.clone(), f"{kohya}.lora_up.weight": up.clone()}
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=rf"holds unet\.{name} twice"):
        backbone.require_adapter("a", str(tmp_path / "a.safetensors"))


def test_settings_in_the_header_are_checked(backbone: UNetBackbone, tmp_path: Path) -> None:
    pairs = random_pairs(adapted_layers(backbone))
    state = {f"{name}.lora_A.weight": down for name, (down, _) in pairs.items()}
    state |= {f"{name}.lora_B.weight": up for name, (_, up) in pairs.items()}
    for text, message in (
        ('{"unet.use_dora": true}', "use_dora=True is not computed here"),
        ("{", "header is no JSON"),
    ):
        save_file(state, tmp_path / "a.safetensors", {"lora_adapter_metadata": text})
        with pytest.raises(WeightsError, match=message):
            backbone.require_adapter("a", str(tmp_path / "a.safetensors"))
