from __future__ import annotations

import pytest
from small_networks import MEMBERS, build

from gate_lightning.errors import ConfigError
from gate_lightning.features.presets import preset_names, resolve_layers

#: the layer sets of the field's code for Stable Diffusion 1.5, which the tiny model shares its ids with
PUBLISHED = {
    "legacy": "up-level0-upsampler-out up-level1-upsampler-out up-level2-upsampler-out up-level3-repeat2-vit-out",
    "gate_segmentation": "up-level0-upsampler-out up-level1-upsampler-out up-level2-upsampler-out",
    "practical": "up-level1-repeat1-vit-block0-cross-q up-level1-repeat2-res-out up-level2-repeat1-vit-block0-cross-q "
    "up-level3-repeat0-vit-block0-self-k",
    "amalgamation": "up-level1-repeat1-vit-block0-cross-q up-level2-repeat1-vit-block0-cross-q up-level2-upsampler-out "
    "up-level3-repeat0-vit-block0-self-k",
    "dift": "up-level1-upsampler-out",
    "dift-up3": "up-level3-repeat2-vit-out",
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_are_the_published_layers(preset: str) -> None:
    assert resolve_layers(build("tiny"), preset) == tuple(PUBLISHED[preset].split())


def test_legacy_ends_in_the_last_output_of_whatever_network() -> None:
    expected = ("up-level0-upsampler-out", "up-level1-upsampler-out", "up-level2-repeat1-vit-out")
    assert resolve_layers(build("one_repeat"), "legacy") == expected


@pytest.mark.parametrize("member", MEMBERS)
def test_every_offered_preset_names_layers_that_exist(member: str) -> None:
    backbone = build(member)
    names = preset_names(backbone)
    assert {"legacy", "gate_segmentation", "dift"} <= set(names)
    for name in names:
        assert set(resolve_layers(backbone, name)) <= set(backbone.layers)


def test_the_pixel_control_gives_its_whole_pyramid_for_any_preset() -> None:
    pixels = build("pixels")
    assert resolve_layers(pixels, "practical") == resolve_layers(pixels, "pixels") == tuple(pixels.layers)


def test_ids_and_presets_may_be_mixed_in_the_order_wanted() -> None:
    assert resolve_layers(build("tiny"), ["unet-in", "dift"]) == ("unet-in", "up-level1-upsampler-out")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("up-level1-upsampler", r"Did you mean up-level1-upsampler-out.*Presets: legacy"),
        ("lagacy", r"no layer or preset 'lagacy'\. Did you mean legacy\?"),
        ("pixels", r"has no layers for the preset 'pixels'"),
        (["dift", "up-level1-upsampler-out"], "more than once"),
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
