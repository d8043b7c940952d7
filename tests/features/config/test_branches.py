from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gate_lightning.data.card import gate_branches
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.features.branch import Branch
from gate_lightning.features.config.branches import build_branches
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt

CARD = SimpleNamespace(name="scenes", prompt_simple="a photo", prompt_fine="a fine photo", branches=gate_branches())
SETTINGS: dict[str, Any] = {
    "prompt": {"source": "caption", "text": None},
    "controlnet": {"name": "canny", "scale": 0.8, "low": 50, "high": 150, "blur_sigma": 1.0, "normalize": True},
    "lora": {
        "weights": {"moderate": "m.safetensors", "overtrained": "o.safetensors"},
        "role": "moderate",
        "scale": 0.9,
    },
}
EDGES = ControlNet("canny", 0.8, 50, 150, 1.0, True)
SHOUT = {"_target_": "tests.techniques.test_techniques.Shout"}
CAPTION = Prompt(None, fallback="a fine photo")
MODERATE, OVERTRAINED = LoRA("moderate", "m.safetensors", 0.9), LoRA("overtrained", "o.safetensors", 0.9)


def branches(techniques: Any, technique_settings: dict[str, Any] | None = None, **own: Any) -> list[Branch]:
    return build_branches(
        techniques,
        card=CARD,
        technique_settings=SETTINGS if technique_settings is None else technique_settings,
        **own,
    )


@pytest.mark.parametrize(
    ("techniques", "expected"),
    [
        ("none", ()),
        (None, ()),
        ([], ()),
        ("prompt", (CAPTION,)),
        ("controlnet", (EDGES,)),
        ("lora", (MODERATE,)),
        (["lora", "prompt"], (CAPTION, MODERATE)),
        (["prompt", "controlnet", "lora"], (CAPTION, EDGES, MODERATE)),
    ],
)
def test_names_give_one_branch_in_the_documented_order(techniques: Any, expected: Any) -> None:
    (branch,) = branches(techniques, timestep=25, layers="dift")
    assert branch.techniques == expected
    assert branch.prompt == "a photo"
    assert (branch.timestep, branch.layers, branch.noise_seed, branch.noise_index) == (25, ("dift",), 0, 0)


def test_all_is_the_recipe_of_the_data_set() -> None:
    first, second, third = branches("all")
    assert [branch.name for branch in (first, second, third)] == ["prompt", "moderate", "overtrained"]
    assert first.techniques == (CAPTION,)
    assert second.techniques == (CAPTION, EDGES, MODERATE)
    assert third.techniques == (CAPTION, EDGES, OVERTRAINED)
    assert [branch.noise_seed for branch in (first, second, third)] == [0, 1, 2]


def test_ones_own_branches_override_what_they_name() -> None:
    own = [
        {"techniques": "prompt", "prompt": "a house", "timestep": 5, "layers": ["dift_geometric"], "noise_seed": 9},
        {"techniques": ["controlnet"], "controlnet": {"scale": 0.1}, "concatenated": True},
        {"techniques": ["lora"], "lora": {"role": "mine", "weights": "x.safetensors"}},
        {"techniques": ["prompt"], "prompt": {"source": "simple"}},
    ]
    one, two, three, four = branches(own)
    assert (one.techniques, one.timestep, one.layers, one.noise_seed) == (
        (Prompt("a house"),),
        5,
        ("dift_geometric",),
        9,
    )
    assert two.techniques == (ControlNet("canny", 0.1, 50, 150, 1.0, True),)
    assert (two.concatenated, two.timestep) == (True, 50)
    assert three.techniques == (LoRA("mine", "x.safetensors", 0.9),)
    assert four.techniques == (Prompt("a photo"),)
    assert len({branch.name for branch in (one, two, three, four)}) == 4


def test_noise_draws_repeat_every_branch_under_other_noise() -> None:
    repeated = branches("all", separate_noises=2)
    assert [(branch.name, branch.noise_seed, branch.noise_index) for branch in repeated] == [
        ("prompt#0", 0, 0),
        ("prompt#1", 0, 1),
        ("moderate#0", 1, 0),
        ("moderate#1", 1, 1),
        ("overtrained#0", 2, 0),
        ("overtrained#1", 2, 1),
    ]


@pytest.mark.parametrize(("source", "text"), [("fine", "a fine photo"), ("simple", "a photo")])
def test_the_prompts_source_can_be_chosen(source: str, text: str) -> None:
    (branch,) = branches("prompt", {"prompt": {"source": source}})
    assert branch.techniques == (Prompt(text),)


def test_a_missing_lora_stops_with_key_and_command() -> None:
    technique_settings = {"lora": {"weights": {"moderate": "m.safetensors", "overtrained": None}}}
    with pytest.raises(
        WeightsError, match=r"technique\.lora\.weights\.overtrained=.*train\.py experiment=lora"
    ) as error:
        branches("all", technique_settings)
    assert "for scenes" in str(error.value)
    with pytest.raises(WeightsError, match=r"technique\.lora\.weights\.moderate="):
        branches("lora", {})


def test_all_missing_loras_are_named_at_once() -> None:
    with pytest.raises(WeightsError, match=r"roles 'moderate', 'overtrained' .*") as error:
        branches("all", {})
    message = str(error.value)
    assert "weights.moderate=<file.safetensors> technique.lora.weights.overtrained=<" in message
    assert message.count("python train.py") == 1


@pytest.mark.parametrize(
    ("techniques", "own", "message"),
    [
        ("promt", {}, "did you mean prompt"),
        (["prompt", "prompt"], {}, "once"),
        (["prompt", {"techniques": []}], {}, "mixes names and branches"),
        ([{"technique": ["prompt"]}], {}, r"branch 0: unknown key 'technique'; did you mean techniques"),
        (
            [{"techniques": ["lora"], "lora": {"wieghts": "x"}}],
            {},
            r"branch 0\.lora: unknown key.*did you mean weights",
        ),
        ([{"name": "x"}, {"name": "x"}], {}, "several branches are named x"),
        (
            "none",
            {"technique_settings": {"contolnet": {}}},
            r"technique: unknown key 'contolnet'; did you mean controlnet",
        ),
        ("prompt", {"technique_settings": {"prompt": {"source": "tags"}}}, r"prompt\.source='tags'"),
        ("controlnet", {"technique_settings": {"controlnet": {"low": 300}}}, "low ≤ high"),
        ("none", {"separate_noises": 0}, "separate_noises=0"),
        ("none", {"timestep": 3.5}, r"timestep=3\.5: expected a whole number"),
        ("none", {"technique_settings": {"mine": {"_target_": "nowhere.Mine"}}}, "nowhere.*beside train"),
        (
            "none",
            {"technique_settings": {"layers": {"_target_": "tests.techniques.test_techniques.Shout"}}},
            "choose another",
        ),
        (
            "mine",
            {"technique_settings": {"mine": {"_target_": "tests.techniques.test_techniques.Shout"}}},
            r"needs mark",
        ),
        ("none", {"technique_settings": {"mine": {"_target_": "pathlib.Path"}}}, r"Path is no technique; expected"),
    ],
)
def test_what_cannot_be_built_is_refused(techniques: Any, own: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        branches(techniques, **own)


def test_a_data_set_without_recipe_has_no_all() -> None:
    empty = SimpleNamespace(**{**vars(CARD), "branches": ()})
    with pytest.raises(ConfigError, match="scenes has no recipe"):
        build_branches("all", card=empty)


def test_class_names_make_a_prompt() -> None:
    named = SimpleNamespace(**{**vars(CARD), "classes": ("wall", "night stand")})
    (branch,) = build_branches("prompt", card=named, technique_settings={"prompt": {"source": "classes"}})
    assert branch.techniques == (Prompt("wall, night stand"),)
    with pytest.raises(
        ConfigError, match=r"source=classes, but scenes has no list of classes.*Prompt.*technique\.prompt\.text"
    ):
        branches("prompt", {"prompt": {"source": "classes"}})
