from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError, DataError, WeightsError
from gate_lightning.ops.edges import canny
from gate_lightning.techniques.base import Conditioning, Technique
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.denoise import Denoise
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt
from tests.support.small_networks import build, conditions, random_images

START = Conditioning(prompts=("a photo", "a photo"))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build("tiny")


@pytest.mark.parametrize("technique", [Prompt("x"), ControlNet(), LoRA("a", "a.safetensors")])
def test_techniques_keep_the_contract_and_what_others_set(technique: Technique, backbone: Backbone) -> None:
    assert isinstance(technique, Technique)
    first = Conditioning(prompts=("p", "q"), adapters=(("z", 2.0),))
    after = technique.apply(first, random_images(2), conditions(2), backbone)
    assert ("z", 2.0) in after.adapters
    assert (after.prompts == ("p", "q")) == (technique.kind != "prompt")
    assert first == Conditioning(prompts=("p", "q"), adapters=(("z", 2.0),))


def test_a_prompt_is_the_text_the_caption_or_the_fallback(backbone: Backbone) -> None:
    captioned, bare = conditions(2, captions=("one", "two")), conditions(2)
    images = random_images(2)
    assert Prompt("text").apply(START, images, captioned, backbone).prompts == ("text", "text")
    assert Prompt(None, "else").apply(START, images, captioned, backbone).prompts == ("one", "two")
    assert Prompt(None, "else").apply(START, images, bare, backbone).prompts == ("else", "else")
    with pytest.raises(DataError, match=r"images have none.*a file of captions, or a fallback"):
        Prompt().apply(START, images, bare, backbone)


def test_canny_control_images_are_the_edges_of_the_image() -> None:
    images = random_images(2)
    controls = ControlNet(low=30, high=90).source()(images, conditions(2))
    image = ((images[0].permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
    expected = torch.from_numpy(canny(image, 30, 90)) / 255
    assert expected.any()
    assert torch.equal(controls[0], expected.expand(3, -1, -1))


def test_control_images_of_the_batch_are_used_and_checked() -> None:
    images, given = random_images(2), torch.rand(2, 3, 64, 96)
    for name in ("depth", "canny"):
        source = ControlNet(name).source()
        assert torch.equal(source(images, conditions(2, control_images={name: given})), given)
        with pytest.raises(DataError, match="cropped and resized together"):
            source(images, conditions(2, control_images={name: given[..., :64]}))
    with pytest.raises(DataError, match=r"'depth' needs control images.*has: \['pose'\]"):
        ControlNet("depth").source()(images, conditions(2, control_images={"pose": given}))


def test_equal_settings_give_one_source() -> None:
    assert len({ControlNet(low=30).source(), ControlNet(low=30, scale=2.0).source(), ControlNet().source()}) == 2


@pytest.mark.parametrize(
    "own",
    [
        *({"low": 200, "high": 100}, {"low": -1}, {"blur_sigma": -1.0}, {"scale": -0.5}),
        *({"scale": "big"}, {"dropout": True}, {"name": ""}),
    ],
)
def test_impossible_settings_are_refused(own: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        ControlNet(**own)


def test_a_lora_has_a_name_that_modules_can_have_and_a_file() -> None:
    assert LoRA("v1.5", "x.safetensors").adapter == "v1_5"
    roles = {"a": "a.safetensors", "b": None}
    assert LoRA("a", roles) == LoRA("a", "a.safetensors")
    assert len({LoRA("a", roles), LoRA("a", "a.safetensors")}) == 1
    with pytest.raises(WeightsError, match=r"LoRA 'b' has no file; give it one: LoRA\('b', weights="):
        LoRA("b", roles).prepare(build("tiny"))
    with pytest.raises(ConfigError, match="expected a name"):
        LoRA("", "x.safetensors")


def test_a_prompt_of_the_data_set_needs_one() -> None:
    card = SimpleNamespace(name="x", prompt_simple="s", prompt_fine="f", branches=(), classes=("a", "b"))
    told = [Prompt(source=source).bound(card, 0) for source in ("simple", "fine", "classes", "caption")]
    assert told == [Prompt("s"), Prompt("f"), Prompt("a, b"), Prompt(fallback="f")]
    with pytest.raises(ConfigError, match=r"prompt\.source=fine: a data set's own, and there is none"):
        Prompt(source="fine").prepare(build("tiny"))


@dataclass(frozen=True)
class Shout(Technique):
    """Someone's own, with a setting that must be given."""

    mark: Any


def test_a_technique_that_cannot_be_described_is_refused() -> None:
    assert Shout("!").description == {"technique": "shout", "mark": "!"}
    with pytest.raises(ConfigError, match=r"Shout\(mark=<object.*write its `description`"):
        _ = Shout(object()).description


def test_any_technique_is_described_by_its_fields() -> None:
    assert Denoise(3, "heun").description == {"technique": "denoise", "steps": 3, "sampler": "heun", "stride": 1}
