"""Settings of one's own branches: several of a technique, trajectories, backbones, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from gate_lightning.data.card import gate_branches
from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch
from gate_lightning.features.config.branches import build_branches
from gate_lightning.features.config.required_inputs import control_images_of, required_inputs_of
from gate_lightning.techniques.controlnet import ControlFunction, ControlNet
from gate_lightning.techniques.denoise import Denoise
from gate_lightning.techniques.inversion import Inversion
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt

CARD = SimpleNamespace(name="scenes", prompt_simple="a photo", prompt_fine="a fine photo", branches=gate_branches())
SETTINGS: dict[str, Any] = {
    "controlnet": {"name": "canny", "scale": 0.8, "low": 50, "high": 150, "blur_sigma": 1.0, "normalize": True},
    "lora": {"weights": {"moderate": "m.safetensors", "overtrained": "o.safetensors"}, "scale": 0.9},
}
CANNY = ControlNet("canny", 0.8, 50, 150, 1.0, True)


def branches(techniques: Any, technique_settings: dict[str, Any] | None = None, **own: Any) -> list[Branch]:
    return build_branches(
        techniques,
        card=CARD,
        technique_settings={**SETTINGS, **(technique_settings or {})},
        **own,
    )


def one(own: dict[str, Any], **technique_settings: Any) -> tuple[Any, ...]:
    (branch,) = branches([own], technique_settings)
    return branch.techniques


def grey(images: Tensor) -> Tensor:
    return images


def depth(**own: Any) -> ControlNet:
    return ControlNet(
        **{"name": "depth", "scale": 0.8, "low": 50, "high": 150, "blur_sigma": 1.0, "normalize": True, **own}
    )


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"controlnet": ["canny", "depth"]}, (CANNY, depth())),
        ({"controlnet": "depth"}, (depth(),)),
        ({"techniques": ["controlnet"], "controlnet": {"name": ["canny", "depth"], "scale": 0.1}},
         (ControlNet("canny", 0.1, 50, 150, 1.0, True), depth(scale=0.1))),
        ({"controlnet": [{"name": "depth", "folder": "d", "scale": 2}, "canny"]}, (depth(folder="d", scale=2), CANNY)),
        ({"controlnet": [{"folder": "a"}, {"folder": "b", "image": "second"}]},
         (depth(name="canny", folder="a"), depth(name="canny", folder="b", image="second"))),
        ({"controlnet": {"name": "xl", "function": "canny", "low": 1}},
         (depth(name="xl", function="canny", low=1),)),
        ({"lora": ["moderate", {"role": "overtrained", "scale": 0.5}]},
         (LoRA("moderate", "m.safetensors", 0.9), LoRA("overtrained", "o.safetensors", 0.5))),
    ],
)  # fmt: skip
def test_a_branch_may_have_several_controlnets_and_loras(own: dict[str, Any], expected: Any) -> None:
    assert one(own) == expected


def test_shared_settings_may_name_several_and_branches_pick_theirs() -> None:
    shared = {"controlnet": [{"name": "canny", "scale": 0.3}, {"name": "depth", "folder": "d"}]}
    assert one({"techniques": ["controlnet"]}, **shared) == (
        ControlNet("canny", 0.3),
        ControlNet("depth", folder="d"),
    )
    assert one({"controlnet": {"name": "depth", "scale": 2}}, **shared) == (ControlNet("depth", 2, folder="d"),)
    named = {"controlnet": {"name": ["canny", "depth"], "scale": 0.3}}
    assert one({"techniques": ["controlnet"]}, **named) == (
        ControlNet("canny", 0.3),
        ControlNet("depth", 0.3),
    )


def test_where_images_come_from_belongs_to_one_controlnet() -> None:
    shared = {"controlnet": {"name": "canny", "folder": "edges", "scale": 0.3}}
    assert one({"controlnet": {"scale": 0.5}}, **shared) == (ControlNet("canny", 0.5, folder="edges"),)
    assert one({"controlnet": "depth"}, **shared) == (ControlNet("depth", 0.3),)
    assert one({"controlnet": {"function": "canny"}}, **shared) == (ControlNet("canny", 0.3, function="canny"),)


def test_a_function_is_taken_as_it_is_and_dropout_gets_the_seed() -> None:
    made = ControlFunction(grey, "mine")
    assert one({"controlnet": {"name": "depth", "function": made}})[0].source() is made
    assert one({"controlnet": {"name": "depth", "function": grey}})[0].source().function is grey
    (branch,) = branches("controlnet", {"controlnet": {"dropout": 0.1}}, seed=7)
    assert branch.techniques == (ControlNet(dropout=0.1, seed=7),)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"denoise_steps": 12}, (Denoise(12, "pndm"),)),
        ({"denoise_steps": 12, "sampler": "heun", "techniques": "controlnet"}, (CANNY, Denoise(12, "heun"))),
        ({"denoise": 3}, (Denoise(3, "pndm"),)),
        ({"denoise": {"stride": 2}}, (Denoise(5, "pndm", 2),)),
        ({"techniques": ["denoise"], "sampler": "euler"}, (Denoise(5, "euler"),)),
        ({"inversion": True, "techniques": ["prompt"]}, (Prompt(None, "a fine photo"), Inversion(20))),
        ({"inversion": {"stride": 5}}, (Inversion(5),)),
        ({"inversion": False}, ()),
        ({"techniques": ["prompt"], "denoise": True}, (Prompt(None, "a fine photo"), Denoise(5, "pndm"))),
    ],
)
def test_trajectories(own: dict[str, Any], expected: Any) -> None:
    shared = {"denoise": {"steps": 5, "sampler": "pndm"}, "inversion": {"stride": 20}}
    assert one(own, **shared) == expected


def test_ensembles_are_of_the_run_or_the_branch() -> None:
    made = branches([{"name": "a"}, {"name": "b", "ensemble": 2}], ensemble=8)
    assert [branch.ensemble for branch in made] == [8, 2]


def test_prompts_from_files_and_categories(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("a.png\ta house\n")
    shared = {"prompt": {"file": str(path), "fallback": "a photo"}}
    file = Prompt(None, "a photo", file=str(path))
    assert one({"techniques": "prompt"}, **shared) == (file,)
    category = {"source": "category", "template": "the {category}"}
    assert one({"prompt": category}, **shared) == (Prompt(None, "a photo", template="the {category}"),)
    assert one({"prompt": "a tree"}, **shared) == (Prompt("a tree"),)
    assert one({"prompt": {"source": "fine"}}, **shared) == (Prompt("a fine photo"),)
    assert one({"prompt": {"source": "category"}}) == (Prompt(template="a photo of a {category}"),)
    assert one({"prompt": {"embedding": "p.pt"}}, **shared) == (Prompt(embedding="p.pt"),)
    style = {"text": "a <x> house", "tokens": "x.pt"}
    assert one({"prompt": style}, **shared) == (Prompt("a <x> house", tokens=("x.pt",)),)
    assert one({"prompt": {"source": "caption", "fallback": "x"}}) == (Prompt(None, "x"),)


def test_branches_name_their_backbone() -> None:
    both = {"backbones": ("main", "pixels")}
    own = [{"name": "a"}, {"name": "b", "backbone": "pixels", "layers": "pixels"}, {"name": "c", "backbone": "main"}]
    made = branches(own, **both)
    assert [branch.backbone for branch in made] == ["main", "pixels", "main"]
    assert made[1].layers == ("pixels",)  # its extractor knows what that means
    with pytest.raises(
        ConfigError, match=r"branch 0 reads the backbone 'pixel'; did you mean pixels\? .*backbones\.pixel="
    ):
        branches([{"backbone": "pixel"}], **both)
    with pytest.raises(ConfigError, match="there is one only"):
        branches([{"backbone": "adm"}])


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            {"techniques": ["prompt"], "controlnet": "depth"},
            r"settings of controlnet, but its techniques are \['prompt'\]",
        ),
        ({"techniques": [], "lora": "moderate"}, "settings of lora, but its techniques are none"),
        ({"controlnet": ["canny", "canny"]}, "is there twice"),
        ({"controlnet": []}, "expected at least one"),
        ({"prompt": ["a", "b"]}, r"branch 0\.prompt=.*expected no list"),
        ({"controlnet": {"name": "depth", "low": 3}}, "sets low, without effect beside .*'depth'"),
        ({"controlnet": {"folder": "d", "normalize": True}}, "sets normalize, without effect beside"),
        ({"controlnet": {"name": ["canny", "depth"], "folder": "d"}}, "with folder; give a list of mappings"),
        ({"controlnet": {"function": {"_target_": "x"}}}, "by the command lines only"),
        ({"controlnet": {"scale": "big"}}, r"controlnet\.scale='big': expected a number"),
        ({"controlnet": {"folder": "d", "function": "canny"}}, "a function and a folder"),
        ({"controlnet": {"fodler": "d"}}, "did you mean folder"),
        ({"inversion": 3}, "expected a mapping of stride"),
        ({"prompt": {"text": "x", "file": "y"}}, "text='x' and file='y'"),
        ({"prompt": {"text": "x", "source": "fine"}}, "text='x' and source=fine; leave out all but one"),
        ({"prompt": {"text": "x", "embedding": "y"}}, "text='x' and embedding='y'"),
        ({"prompt": {"source": "category", "template": "x"}}, "names nothing; expected"),
        ({"denoise_steps": 3, "denoise": {"stride": 2}}, "write it as one"),
        ({"sampler": "heun"}, "has sampler, but does not denoise; add denoise_steps"),
        ({"denoise_steps": 3, "inversion": True}, "denoise and inversion, which both decide"),
        ({"ensemble": 0}, "ensemble=0"),
        ({"ensembel": 3}, "did you mean ensemble"),
        ({"denoise": {"sampler": "ddmi"}}, r"denoise\.sampler='ddmi'"),
    ],
)
def test_what_makes_no_sense_is_refused(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        one(own)


def test_needs_of_the_branches(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("a.png\ta house\n")
    own = [
        {"prompt": {"file": str(path)}, "controlnet": {"name": "depth", "folder": "d", "dropout": 0.1}},
        {"name": "again", "prompt": {"file": str(path)}, "controlnet": {"name": "depth", "folder": "d"}},
        {"controlnet": {"folder": "e", "image": "soft"}},
    ]
    needs = required_inputs_of(branches(own))
    assert needs.control_folders == {"depth": "d", "soft": "e"}
    assert len(needs.checks) == 1
    assert needs.random_views
    assert control_images_of(branches([*own, {"controlnet": "canny"}])) == {
        "canny": False,  # made of the image where it is not given
        "depth": True,
        "soft": True,
    }
    assert control_images_of(branches("none")) == {}
    plain = required_inputs_of(branches("all"))
    assert (plain.control_folders, plain.checks, plain.random_views) == ({}, (), False)
    with pytest.raises(ConfigError, match="'depth' are to come from d and from e; give one"):
        required_inputs_of(branches([own[0], {"controlnet": {"name": "depth", "folder": "e"}}]))
    with pytest.raises(ConfigError, match="another branch makes its own"):
        required_inputs_of(
            branches([{"name": "a", "controlnet": {"folder": "e"}}, {"name": "b", "controlnet": "canny"}])
        )
