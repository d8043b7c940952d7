from __future__ import annotations

import json

import numpy as np
import pytest

from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch
from gate_lightning.features.config.layer_presets import resolve_layers
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.denoise import Denoise
from gate_lightning.techniques.inversion import Inversion
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt
from tests.support.small_networks import build


def test_techniques_are_applied_in_the_documented_order() -> None:
    branch = Branch("x", 50, ("unet-in",), (LoRA("a", "a"), ControlNet(), Prompt("p")))
    assert [technique.kind for technique in branch.techniques] == ["prompt", "controlnet", "lora"]


@pytest.mark.parametrize(
    ("layers", "techniques", "message"),
    [
        ((), (), "no layers"),
        (("a", "a"), (), "more than once"),
        (("a",), (Prompt("a"), Prompt("b")), "prompt and prompt, which both decide the prompt of a pass"),
        (("a",), (Denoise(), Inversion()), "denoise and inversion, which both decide the latents"),
        (("a",), Prompt("a"), r"expected a tuple of techniques, such as \(Prompt"),
        (("a",), "prompt", "techniques='prompt'; expected a tuple"),
        (("a",), ("prompt",), "the technique 'prompt', which is no Technique object; build its class"),
        (("a",), (Prompt,), "no Technique object; build its class"),
    ],
)
def test_a_branch_that_makes_no_sense_is_refused(layers: object, techniques: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Branch("x", 50, layers, techniques)  # type: ignore[arg-type]


def test_a_name_is_one_layer_and_numbers_of_numpy_are_numbers() -> None:
    branch = Branch("x", np.int64(50), "practical", ensemble=np.int32(2))  # type: ignore[arg-type]
    assert (branch.layers, branch.timestep, branch.ensemble) == (("practical",), 50, 2)
    assert json.dumps(branch.description)
    for own in ({"timestep": 5.5}, {"timestep": True}, {"ensemble": 0}, {"noise_index": -1}):
        with pytest.raises(ConfigError, match=f"branch 'x': {next(iter(own))}=.*expected a whole number"):
            Branch(**{"name": "x", "timestep": 50, "layers": "unet-in", **own})  # type: ignore[arg-type]


def test_an_extractor_resolves_presets_and_aliases() -> None:
    backbone = build("tiny")
    made = FeatureExtractor(backbone, [Branch("x", 50, "gate_segmentation"), Branch("y", 50, ("up_blocks[1]",))])
    assert made.branches[0].layers == resolve_layers(backbone, "gate_segmentation") == tuple(made.feature_info["x"])
    assert list(made.feature_info["y"]) == ["up_blocks[1]"]
    with pytest.raises(ConfigError, match="no layer or preset 'everything'"):
        FeatureExtractor(backbone, [Branch("x", 50, "everything")])
