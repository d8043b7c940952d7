"""Settings of the page as words of a command line: what is replaced, kept, refused."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from gate_lightning.errors import ConfigError
from gate_lightning.tools.app.settings import AS_GIVEN, Settings, command, words
from tests.support.composition import composed

FIRST = Settings("tiny", 50, ("gate_segmentation",), (), 1)
GIVEN = ("tool=app", "tool.port=7001", "tool.resize=short", "backbone=tiny", "backbone.weights=random", "timestep=3",
         "noise=shared", "+technique.mine.x=1", "source=a.png", "targets=[b.png]", "output=o")  # fmt: skip


def test_the_page_s_settings_replace_the_command_line_s() -> None:
    changed = replace(FIRST, timestep=261, layers=("a-b", "up_blocks[1]"), techniques=("lora", "prompt"), ensemble=4)
    assert words(GIVEN, FIRST, changed) == (
        *("tool.resize=short", "backbone.weights=random", "noise=shared", "+technique.mine.x=1", "backbone=tiny"),
        *("timestep=261", "layers=[a-b,'up_blocks[1]']", "techniques=[lora,prompt]", "ensemble=4"),
    )


def test_another_backbone_has_none_of_the_first_one_s_keys() -> None:
    found = words((*GIVEN, "+backbone@backbones.second=sd21"), FIRST, replace(FIRST, backbone="pixels"))
    assert not [one for one in found if one.startswith("backbone.")]
    assert {"backbone=pixels", "+backbone@backbones.second=sd21"} <= {*found}


def test_branches_of_the_command_line_are_left_alone() -> None:
    given = ("techniques=[{name: a, timestep: 1}]", "technique.prompt.text=a b")
    assert set(given) <= {*words(given, FIRST, replace(FIRST, techniques=(AS_GIVEN,)))}
    assert "techniques=none" in words(given, FIRST, FIRST)
    told = words(given, FIRST, replace(FIRST, techniques=("prompt",), prompt="it's ${seed}: a=b, [c]"))
    assert given[1] not in told
    config = composed("tool=app", *told, name="eval")
    assert config.technique.prompt.text == "it's ${seed}: a=b, [c]"


def test_a_command_is_one_for_a_shell() -> None:
    line = command(("techniques=[{name: a}]",), Path("my pictures/a'b.png"), Path("/b$c.png"), (12.25, 1234.5))
    assert shlex.split(line)[:4] == ["python", "eval.py", "tool=match", "techniques=[{name: a}]"]
    config = composed(*shlex.split(line)[2:], name="eval")
    assert (config.source, config.target, config.points) == ("my pictures/a'b.png", "/b$c.png", [[12.25, 1234.5]])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"timestep": -1}, "timestep=-1: expected a whole number from 0"),
        ({"timestep": None}, "timestep=None"),
        ({"ensemble": 0}, "ensemble=0"),
        ({"layers": ()}, "no layer is chosen"),
        ({"layers": ("a,b",)}, "'a,b' is no name"),
        ({"layers": ("${oc.env:HOME}",)}, "is no name"),
        ({"techniques": ("all", "prompt")}, "'all' stands for branches of its own"),
        ({"techniques": (AS_GIVEN, "prompt")}, f"'{AS_GIVEN}' stands for"),
        ({"prompt": "a\nb"}, "more than one line"),
    ],
)
def test_values_that_are_refused(value: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        replace(FIRST, **value)  # type: ignore[arg-type]


def test_names_that_there_are_not() -> None:
    for value in ({"backbone": "{_target_: os.system}"}, {"techniques": ("{_target_: os.system}",)}):
        with pytest.raises(ConfigError, match=f"{next(iter(value))}=.*expected one of"):
            replace(FIRST, **value).check(["tiny"], ["prompt"])  # type: ignore[arg-type]
