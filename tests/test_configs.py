"""Every file below conf/ composes and resolves, and the group files say what they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.utils import get_object

from gate_lightning.engine import run_folder as runs
from gate_lightning.engine.configuration import config_folder
from tests.support.composition import composed

CONF = config_folder()
EXPERIMENTS = sorted(
    path.relative_to(CONF / "experiment").with_suffix("").as_posix() for path in CONF.glob("experiment/**/*.yaml")
)
ABLATIONS = sorted(path.stem for path in CONF.glob("ablation/*.yaml"))
GROUPS = ("amalgamation", "backbone", "callbacks", "head", "logger", "loss", "optimizer", "scheduler", "trainer")
OPTIONS = [f"{group}={path.stem}" for group in GROUPS for path in sorted(CONF.glob(f"{group}/[!_]*.yaml"))]


def targets(node: object) -> list[str]:
    """All ``_target_`` values in a nested configuration."""
    if isinstance(node, dict):
        own = [node["_target_"]] if "_target_" in node else []
        return own + [target for value in node.values() for target in targets(value)]
    if isinstance(node, list):
        return [target for value in node for target in targets(value)]
    return []


def check(*overrides: str) -> None:
    from omegaconf import OmegaConf

    resolved = OmegaConf.to_container(runs.resolve(composed(*overrides)))
    found = targets(resolved)
    assert found
    for target in found:
        get_object(target)  # raises if a configuration names what does not exist


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_resolve(name: str) -> None:
    check(f"experiment={name}", *(["dataset.root=x"] if name.endswith(("lora", "student", "student_tiny")) else []))


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_resolve(name: str) -> None:
    check(f"ablation={name}")


@pytest.mark.parametrize("option", OPTIONS)
def test_options_resolve(option: str) -> None:
    check(option)


@pytest.mark.parametrize("path", sorted(CONF.glob("experiment/**/*.yaml")), ids=lambda path: path.stem)
def test_experiments_say_purpose_and_command(path: Path) -> None:
    text = path.read_text()
    assert "# Purpose:" in text
    assert "# Command:" in text


def test_scenes_bring_their_adapters_and_edges() -> None:
    config = runs.resolve(composed())
    assert config.technique.controlnet.blur_sigma == 1.3
    assert config.technique.lora.weights.moderate.startswith("asset:")


def test_command_line_wins_over_the_data_set() -> None:
    assert runs.resolve(composed("technique.controlnet.blur_sigma=0.5")).technique.controlnet.blur_sigma == 0.5
