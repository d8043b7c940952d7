from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from gate_lightning.backbones.specs import LayerSpec
from gate_lightning.backbones.stable_diffusion.layer_names import averaged_attention, unet_aliases
from gate_lightning.backbones.stable_diffusion.layer_table import unet_layers
from gate_lightning.features.reading.hooks import FeatureRecorder
from tests.support.small_networks import build

XL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
}


@cache
def table(architecture: str) -> dict[str, LayerSpec]:
    own = XL if architecture == "xl" else {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
    with torch.device("meta"):
        return unet_layers(UNet2DConditionModel(**own), 8)


def test_cleandifts_maps_have_the_published_channels_and_sides() -> None:
    layers, aliases = table("sd15"), unet_aliases(table("sd15"))
    names = ["mid", *(f"us{count}" for count in range(1, 11))]
    shapes = [(layers[aliases[name]].channels, 768 // layers[aliases[name]].stride) for name in names]
    sides = [12] * 3 + [24] * 3 + [48] * 3 + [96] * 2  # at 768 px
    assert shapes == list(zip([1280] * 7 + [640] * 3 + [320], sides, strict=True))
    assert [aliases[f"us{count}"] for count in (3, 6, 9)] == [aliases[f"up_blocks[{block}]"] for block in range(3)]
    # a level's first two maps are behind the transformer, where there is one
    assert (aliases["us1"], aliases["us4"]) == ("up-level0-repeat0-res-out", "up-level1-repeat0-vit-out")


def test_difts_sweep_has_fifteen_layers() -> None:
    layers, aliases = table("sd15"), unet_aliases(table("sd15"))
    assert sum(name.startswith("fine") for name in aliases) == 15
    blocks = {3: 0, 7: 1, 11: 2, 14: 3}  # sweep index → up_ft_index
    assert {index: aliases[f"fine{index}"] for index in blocks} == {
        index: aliases[f"up_blocks.{block}"] for index, block in blocks.items()
    }
    outputs = [layers[aliases[f"up_blocks[{block}]"]] for block in range(4)]
    assert [(spec.channels, spec.stride) for spec in outputs] == [(1280, 32), (1280, 16), (640, 8), (320, 8)]


def test_hyperfeatures_reads_twelve_states_of_10560_channels() -> None:
    layers, aliases = table("sd15"), unet_aliases(table("sd15"))
    states = [layers[aliases[f"hyperfeatures-{block}-{repeat}"]] for block in range(4) for repeat in range(3)]
    assert [state.channels for state in states] == [1280] * 6 + [640] * 3 + [320] * 3
    assert states[4].module == "up_blocks.1.resnets.1.conv2"


def test_stable_diffusion_xl() -> None:
    layers, aliases = table("xl"), unet_aliases(table("xl"))
    assert len(layers) == 612
    assert [aliases[f"us{count}"] for count in (3, 6, 9)] == [aliases[f"up_blocks[{block}]"] for block in range(3)]
    assert aliases["up_blocks[2]"] == "up-level2-repeat2-res-out"  # no transformer, no upsampler
    assert "us10" not in aliases
    averaged = averaged_attention(layers, 77, 8)
    # 3 repeats of 10 blocks at 32 px, 3 of 2 at 16 px; the middle is as coarse as the first up level
    assert [len(sources) for sources in averaged["attn-up-cross"].sources] == [30, 6]
    assert [len(sources) for sources in averaged["attn-mid-cross"].sources] == [10]


@pytest.mark.parametrize("folder", ["sd-v1-4", "sd-2-1", "sdxl-base-1.0"])
def test_the_released_architectures_have_all_the_names(shared_dir: Path, folder: str) -> None:
    config = shared_dir / "data" / "hf_layouts" / folder / "unet" / "config.json"
    if not config.is_file():
        pytest.skip("no released configurations")
    with torch.device("meta"):
        layers = unet_layers(UNet2DConditionModel.from_config(json.loads(config.read_text())), 8)
    assert len(layers) == (612 if "xl" in folder else 197)
    assert averaged_attention(layers, 77, 8)["attn-up-cross"].channels == 154
    assert set(unet_aliases(layers).values()) <= {*layers, "attn-up-cross"}


def test_block_aliases_are_what_the_blocks_return() -> None:
    backbone = build("sd2_like")
    blocks = {f"up_blocks[{index}]": block for index, block in enumerate(backbone.unet.up_blocks)}
    blocks |= {f"down_blocks[{index}]": block for index, block in enumerate(backbone.unet.down_blocks)}
    blocks["mid_block"] = backbone.unet.mid_block
    returned, handles = {}, []
    for name, block in blocks.items():

        def keep(module: object, inputs: object, output: object, name: str = name) -> None:
            returned[name] = output if isinstance(output, torch.Tensor) else output[0]

        handles.append(block.register_forward_hook(keep))
    with torch.no_grad(), FeatureRecorder(backbone, blocks, stop=False) as recorder:
        backbone.denoise(torch.randn(1, 4, 9, 14), 1, backbone.encode_text([""]))
    for handle in handles:
        handle.remove()
    assert returned.keys() == blocks.keys()
    for name, output in returned.items():
        assert torch.equal(recorder.features[name], output), name
