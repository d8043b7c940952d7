from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from gate_lightning.backbones.specs import LayerSpec
from gate_lightning.backbones.stable_diffusion.architectures import STABLE_DIFFUSIONS
from gate_lightning.backbones.stable_diffusion.layer_names import unet_aliases
from gate_lightning.backbones.stable_diffusion.layer_table import unet_layers
from gate_lightning.errors import ConfigError
from gate_lightning.features.config.layer_presets import preset_names, resolve_layers
from gate_lightning.structures import Identity
from tests.support.small_networks import MEMBERS, VISION, build

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

#: the layer sets of the field's code for Stable Diffusion 1.5, which the tiny model shares its ids with
PUBLISHED = {
    "legacy": "up-level0-upsampler-out up-level1-upsampler-out up-level2-upsampler-out up-level3-repeat2-vit-out",
    "gate_segmentation": "up-level0-upsampler-out up-level1-upsampler-out up-level2-upsampler-out",
    "practical": "up-level1-repeat1-vit-block0-cross-q up-level1-repeat2-res-out up-level2-repeat1-vit-block0-cross-q "
    "up-level3-repeat0-vit-block0-self-k",
    "amalgamation": "up-level1-repeat1-vit-block0-cross-q up-level2-repeat1-vit-block0-cross-q up-level2-upsampler-out "
    "up-level3-repeat0-vit-block0-self-k",
    "amalgamation_small": "up-level2-repeat1-vit-block0-cross-q up-level2-upsampler-out "
    "up-level3-repeat0-vit-block0-self-k",
    "dift": "up-level1-upsampler-out",
    "dift_semantic": "up-level1-upsampler-out",
    "dift_geometric": "up-level2-upsampler-out",
}


#: the same for SDXL and Playground, and for ADM
PUBLISHED_XL = {
    "legacy": "up-level0-upsampler-out up-level1-upsampler-out up-level2-repeat2-res-out",
    "xl_legacy": "up-level0-upsampler-out up-level1-upsampler-out up-level2-repeat2-res-out",
    "practical": "up-level0-repeat0-vit-block7-out up-level0-repeat0-vit-block5-out "
    "up-level1-repeat0-vit-block0-cross-q up-level1-repeat0-vit-block0-out",
    "xl_practical": "up-level0-repeat0-vit-block7-out up-level0-repeat0-vit-block5-out "
    "up-level1-repeat0-vit-block0-cross-q up-level1-repeat0-vit-block0-out",
    "pg_amalgamation": "up-level0-repeat0-vit-block3-out",
}
PUBLISHED_ADM = {
    "dift": "output_blocks.4",
    "dift_semantic": "output_blocks.4",
    "dift_geometric": "output_blocks.11",
    "dift_temporal": "output_blocks.7",
    "ddpm_segmentation": "output_blocks.5 output_blocks.6 output_blocks.7 output_blocks.8 output_blocks.12",
}


class NamedLayers:
    """A backbone's names without its networks: Stable Diffusion's 1.x or XL's, or ADM's."""

    def __init__(self, family: str) -> None:
        self.family, self.identity, self.derived = family, Identity(family, "", ""), {}
        self.native_size = {"sdxl": 1024, "adm": 256}.get(family, 512)
        if family == "adm":
            self.layers = {f"output_blocks.{block}": LayerSpec("", "output", 1, 1) for block in range(18)}
            self.aliases: dict[str, str] = {}
        else:
            with torch.device("meta"):
                self.layers = unet_layers(
                    UNet2DConditionModel(**(XL if family == "sdxl" else STABLE_DIFFUSIONS[family].unet)), 8
                )
            self.aliases = unet_aliases(self.layers)

    def layer_id(self, name: str) -> str:
        return self.aliases.get(name, name)


@cache
def named(family: str) -> Any:
    return NamedLayers(family)


@pytest.mark.parametrize(("family", "published"), [("sdxl", PUBLISHED_XL), ("adm", PUBLISHED_ADM)])
def test_presets_mean_the_right_thing_by_family(family: str, published: dict[str, str]) -> None:
    backbone = named(family)
    for preset, layers in published.items():
        assert resolve_layers(backbone, preset) == tuple(layers.split()), preset
    assert len(resolve_layers(backbone, "full")) == len(backbone.layers)


@pytest.mark.parametrize(
    ("family", "preset"),
    [
        ("sdxl", "amalgamation"),
        ("sdxl", "cleandift"),
        ("sdxl", "ddpm_segmentation"),
        ("adm", "legacy"),
        ("adm", "hyperfeatures"),
    ],
)
def test_presets_of_another_family_are_refused(family: str, preset: str) -> None:
    with pytest.raises(ConfigError, match=f"has no layers for the preset '{preset}'.*presets: "):
        resolve_layers(named(family), preset)


@pytest.mark.parametrize("preset", ["xl_legacy", "xl_practical", "pg_amalgamation", "ddpm_segmentation"])
def test_presets_of_sdxl_are_none_of_stable_diffusion_15(preset: str) -> None:
    with pytest.raises(ConfigError, match=f"has no layers for the preset '{preset}'"):
        resolve_layers(build("tiny"), preset)


def test_hyperfeatures_and_cleandift() -> None:
    backbone = build("tiny")
    states = [f"up-level{level}-repeat{repeat}-res-increment" for level in range(4) for repeat in range(3)]
    assert list(resolve_layers(backbone, "hyperfeatures")) == states
    maps = resolve_layers(backbone, "cleandift")
    assert maps == tuple(backbone.aliases[name] for name in ("mid", *(f"us{count}" for count in range(1, 11))))
    assert resolve_layers(backbone, "full") == tuple(backbone.layers)
    assert len(backbone.layers) == 197


def test_aliases_stay_what_was_asked_for_and_are_no_second_layer() -> None:
    backbone = build("tiny")
    names = ["us3", "up_blocks.1", "attn", "vae-out", "practical"]
    assert resolve_layers(backbone, names)[:4] == tuple(names[:4])
    with pytest.raises(ConfigError, match="names up-level1-upsampler-out more than once"):
        resolve_layers(backbone, ["us6", "up_blocks[1]"])


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_are_the_published_layers(preset: str) -> None:
    assert resolve_layers(named("sd15"), preset) == tuple(PUBLISHED[preset].split())


@pytest.mark.parametrize("preset", PUBLISHED)
def test_the_embedded_model_has_the_same_but_for_a_grid_too_coarse_for_correspondence(preset: str) -> None:
    own = {"dift": "up-level2-upsampler-out", "dift_semantic": "up-level2-upsampler-out"}
    assert resolve_layers(build("tiny"), preset) == tuple(own.get(preset, PUBLISHED[preset]).split())


def test_legacy_ends_in_the_last_output_of_whatever_network() -> None:
    expected = ("up-level0-upsampler-out", "up-level1-upsampler-out", "up-level2-repeat1-vit-out")
    assert resolve_layers(build("one_repeat"), "legacy") == expected


@pytest.mark.parametrize("member", MEMBERS)
def test_every_offered_preset_names_layers_that_exist(member: str) -> None:
    backbone = build(member)
    names = preset_names(backbone)
    # ADM and vision transformers have no such decoder: the names are refused rather than given another meaning
    own = {"adm": {"dift"}, **{name: {"last"} for name in VISION}}
    assert own.get(member, {"legacy", "gate_segmentation", "dift"}) <= set(names)
    for name in names:
        assert set(resolve_layers(backbone, name)) <= set(backbone.layers)


def test_the_pixel_control_gives_its_whole_pyramid_for_any_preset() -> None:
    pixels = build("pixels")
    assert resolve_layers(pixels, "practical") == resolve_layers(pixels, "pixels") == tuple(pixels.layers)


def test_ids_and_presets_may_be_mixed_in_the_order_wanted() -> None:
    assert resolve_layers(build("tiny"), ["unet-in", "dift"]) == ("unet-in", "up-level2-upsampler-out")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("up-level1-upsampler", r"did you mean up-level1-upsampler-out.*presets: legacy"),
        ("lagacy", r"no layer or preset 'lagacy'; did you mean legacy\?"),
        ("pixels", r"has no layers for the preset 'pixels'"),
        (["dift", "up-level2-upsampler-out"], "more than once"),
        ([], "names no layer"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_hint(layers: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_layers(build("tiny"), layers)  # type: ignore[arg-type]


def test_a_preset_without_its_layers_is_no_preset_of_that_network() -> None:
    backbone = build("one_repeat")
    assert "practical" not in preset_names(backbone)
    with pytest.raises(ConfigError, match="has no layers for the preset 'practical'"):
        resolve_layers(backbone, "practical")
