"""Every file below conf/ composes and resolves, and the group files say what they are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from omegaconf import OmegaConf

from gate_lightning.engine.command.configuration import config_folder
from gate_lightning.engine.folder import run_folder as runs
from tests.support.composition import composed

CONF = config_folder()
EXPERIMENTS = sorted(
    path.relative_to(CONF / "experiment").with_suffix("").as_posix()
    for path in CONF.glob("experiment/**/*.yaml")
    if path.parent.name != "_base"
)
ABLATIONS = sorted(path.stem for path in CONF.glob("ablation/*.yaml"))
GROUPS = (
    "amalgamation",
    "backbone",
    "callbacks",
    "debug",
    "head",
    "logger",
    "loss",
    "optimizer",
    "scheduler",
    "trainer",
)
OPTIONS = [f"{group}={path.stem}" for group in GROUPS for path in sorted(CONF.glob(f"{group}/[!_]*.yaml"))]


def targets(node: object) -> list[str]:
    """All ``_target_`` values in a nested configuration."""
    if isinstance(node, dict):
        own = [node["_target_"]] if "_target_" in node else []
        return own + [target for value in node.values() for target in targets(value)]
    if isinstance(node, list):
        return [target for value in node for target in targets(value)]
    return []


def check(*overrides: str, program: str = "train") -> None:
    resolved = OmegaConf.to_container(runs.resolve(composed(*overrides, name=program)))
    found = targets(resolved)
    assert found
    for target in found:
        get_object(target)  # raises if a configuration names what does not exist


@pytest.mark.parametrize("name", ABLATIONS)
@pytest.mark.slow
def test_ablations_resolve(name: str) -> None:
    check(f"ablation={name}")


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.slow
def test_options_resolve(option: str) -> None:
    check(option)


def header_commands(name: str) -> list[tuple[str, list[str]]]:
    """(train or eval, arguments) of the commands in an experiment's header.

    A backslash goes on in the next line, … repeats the first command, two spaces end one, <…> is a value of the user's.
    """
    text = (CONF / f"experiment/{name}.yaml").read_text()
    header = "\n".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))
    header = re.sub(r" *\\\n", " ", re.sub(r"<[^>]*>", "x", header))
    found: list[tuple[str, list[str]]] = []
    for program, repeated, rest in re.findall(r"(?:python (train|eval)\.py|(?:^|: )(…)) +(\S.*)", header, re.MULTILINE):
        words = [word for word in shlex.split(re.split(r" {2,}|[;,)] ", rest)[0]) if word not in ("…", "-m")]
        found.append(("train", found[0][1] + words) if repeated else (program, words))
    return found


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.slow
def test_experiments_say_purpose_and_commands_that_resolve(name: str) -> None:
    assert "# Purpose:" in (CONF / f"experiment/{name}.yaml").read_text()
    commands = header_commands(name)
    assert any(f"experiment={name}" in words for _, words in commands)
    for program, words in commands:
        parsed = OverridesParser.create().parse_overrides(words)
        first = [next(one.sweep_string_iterator()) if one.is_sweep_override() else None for one in parsed]
        given = [
            word if value is None else f"{one.key_or_group}={value}"
            for word, one, value in zip(words, parsed, first, strict=True)
        ]
        check(*given, program=program)


def test_an_experiment_may_set_what_only_eval_has() -> None:
    assert composed("experiment=sweep/single_layer_correspondence", name="eval").split == "val"
    assert composed("experiment=sweep/single_layer_correspondence", "split=test", name="eval").split == "test"


def test_scenes_bring_their_adapters_and_edges() -> None:
    config = runs.resolve(composed())
    assert config.technique.controlnet.blur_sigma == 1.3
    assert config.technique.lora.weights.moderate.startswith("asset:")


def test_command_line_wins_over_the_data_set() -> None:
    assert runs.resolve(composed("technique.controlnet.blur_sigma=0.5")).technique.controlnet.blur_sigma == 0.5


def named_options() -> dict[str, tuple[list[str], bool]]:
    """Group → (options that its comment in conf/train.yaml names, whether there are more)."""
    lines = re.findall(r"^  - (\w+): \S+ +# .*: (.*)$", (CONF / "train.yaml").read_text(), re.MULTILINE)
    words = {group: re.sub(r"\([^)]*\)", "", text).split() for group, text in lines if group != "optional"}
    return {group: ([word for word in said if word != "…"], "…" in said) for group, said in words.items()}


@pytest.mark.parametrize("group", named_options())
def test_options_named_in_comments_exist(group: str) -> None:
    named, more = named_options()[group]
    there = {path.stem for path in CONF.glob(f"{group}/*.yaml") if not path.stem.startswith("_")}
    assert named
    assert set(named) < there if more else set(named) == there


def test_all_groups_with_options_to_name_do_so() -> None:
    assert len(named_options()) > 12


def test_places_of_runs_are_one_group(tmp_path: Path) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(
            "train", [f"paths.outputs={tmp_path}/x", f"paths.multirun={tmp_path}/y"], return_hydra_config=True
        )
    node = OmegaConf.masked_copy(config, ["hydra", "paths", "resume", "trust"])
    assert node.hydra.run.dir.startswith(f"{tmp_path}/x/2")
    assert node.hydra.sweep.dir.startswith(f"{tmp_path}/y/2")
    assert node.paths.cached_views == f"{tmp_path}/x/cached_views"


@pytest.mark.parametrize(
    ("overrides", "strides"),
    [
        ((), [16, 8, 4]),
        (("task=label_scarce",), [1]),
        (("task=nearest_pixels",), [1]),
        (("task=label_scarce", "backbone.strides=[4]"), [4]),
    ],
)
def test_heads_on_single_pixels_are_compared_with_the_pixel_itself(
    overrides: tuple[str, ...], strides: list[int]
) -> None:
    # blended patches were 14 points below the pixel and its position on photographs of horses
    assert composed("ablation=pixels", *overrides).backbone.strides == strides
