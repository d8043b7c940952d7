from __future__ import annotations

import pytest

from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt


def test_techniques_are_applied_in_the_documented_order() -> None:
    branch = Branch("x", 50, ("unet-in",), (LoRA("a", "a"), ControlNet(), Prompt("p")))
    assert [technique.name for technique in branch.techniques] == ["prompt", "controlnet", "lora"]


@pytest.mark.parametrize(
    ("layers", "techniques", "message"),
    [((), (), "no layers"), (("a", "a"), (), "more than once"), (("a",), (Prompt("a"), Prompt("b")), "several prompt")],
)
def test_a_branch_that_makes_no_sense_is_refused(layers: object, techniques: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Branch("x", 50, layers, techniques)  # type: ignore[arg-type]
