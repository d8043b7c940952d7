"""Parts of one's own, outside the package, named on the command line (docs/extending.md)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.jobs.training import train
from gate_lightning.engine.parts.components import Components
from gate_lightning.errors import ConfigError
from tests.examples.my_technique import Suffix
from tests.support.composition import composed
from tests.support.paths import REPOSITORY

HERE = Path(__file__).parent
#: two steps of a linear head on one layer of the default data set
SHORT = (
    *("backbone.weights=random", "techniques=none", "amalgamation=concat", "head=linear", "layers=dift"),
    *("trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.accelerator=cpu"),
    *("callbacks=quiet", "logger=none", "monitor=null"),
)
DATA = ("dataset.train=4", "dataset.val=2", "dataset.test=2", "dataset.batch_size=2")


def trained(folder: Path, *overrides: str) -> dict[str, float]:
    given = [item for item in SHORT if item.split("=")[0] not in {one.split("=")[0].lstrip("+") for one in overrides}]
    given += overrides
    return train(composed(*given), list(overrides), folder / "run")


def components(*overrides: str) -> Components:
    return Components(runs.resolve(composed("backbone.weights=random", *overrides)), "")


@pytest.mark.parametrize("path", sorted(HERE.glob("my_*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_explained(path: Path) -> None:
    assert len([line for line in path.read_text().splitlines() if line.strip()]) < 40
    assert f"tests/examples/{path.name}" in (REPOSITORY / "docs/extending.md").read_text()


@pytest.mark.thorough
def test_a_technique_is_named_by_its_class() -> None:
    own = ("+technique.suffix._target_=tests.examples.my_technique.Suffix", "+technique.suffix.text=a sketch")
    (branch,) = components(*own, "techniques=[prompt,suffix]").branches
    assert (branch.name, [one.kind for one in branch.techniques]) == ("prompt+suffix", ["prompt", "suffix"])
    assert branch.techniques[1] == Suffix("a sketch")
    listed = components(*own, "techniques=[{name: a},{name: b, techniques: [prompt], suffix: true},{suffix: bold}]")
    assert [branch.techniques[-1:] for branch in listed.branches] == [(), (Suffix("a sketch"),), (Suffix("bold"),)]
    with pytest.raises(ConfigError, match=r"branch 0\.suffix: unknown key 'txt'; did you mean text"):
        _ = components(*own, "techniques=[{suffix: {txt: x}}]").branches
    with pytest.raises(ConfigError, match=r"technique\.suffix\._target_=tests\.examples\.nothing"):
        _ = components("+technique.suffix._target_=tests.examples.nothing.Suffix", "techniques=[suffix]").branches


@pytest.mark.thorough
def test_a_technique_is_found_through_hydras_search_path_and_trained_with(tmp_path: Path) -> None:
    (tmp_path / "technique").mkdir()
    (tmp_path / "technique/suffix.yaml").write_text(
        "# @package technique.suffix\n_target_: tests.examples.my_technique.Suffix\ntext: null\n"
    )
    own = (f"hydra.searchpath=[file://{tmp_path}]", "+technique=suffix", "technique.suffix.text=a sketch")
    branches = "techniques=[{name: plain},{name: steered, techniques: [prompt, suffix, controlnet], timestep: 100}]"
    metrics = trained(tmp_path, *DATA, *own, branches)
    assert math.isfinite(metrics["val/mIoU"])
    with pytest.raises(ConfigError, match=r"technique\.suffix\._target_ is 'tests.*trust=true"):
        runs.load_config(tmp_path / "run")
    saved = runs.load_config(tmp_path / "run", trust=True)
    steered = Components(saved, "").branches[1]  # evaluation needs no search path
    assert [one.kind for one in steered.techniques] == ["prompt", "suffix", "controlnet"]
    assert Suffix("a sketch").description in steered.description["techniques"]  # type: ignore[operator]


def test_a_backbone(tmp_path: Path) -> None:
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone/mine.yaml").write_text(
        "_target_: tests.examples.my_backbone.RandomConvolutions\nchannels: 8\n"
    )
    own = (f"hydra.searchpath=[file://{tmp_path}]", "backbone=mine", "layers=[coarse,fine]", "backbone.channels=12")
    short = [item for item in SHORT if not item.startswith(("layers", "backbone"))]
    metrics = train(composed(*short, *DATA, *own), list(own), tmp_path / "run")
    assert math.isfinite(metrics["val/mIoU"])


def test_a_head(tmp_path: Path) -> None:
    (tmp_path / "head").mkdir()
    (tmp_path / "head/mine.yaml").write_text(
        "decode: {_target_: tests.examples.my_head.Perceptron, _partial_: true, hidden: 32}\nauxiliary: null\n"
    )
    own = (f"hydra.searchpath=[file://{tmp_path}]", "head=mine", "head.decode.hidden=16")
    assert math.isfinite(trained(tmp_path, *DATA, *own)["val/mIoU"])


@pytest.mark.thorough
def test_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset/discs.yaml").write_text("_target_: tests.examples.my_data.Discs\nimages: 4\nbatch_size: 2\n")
    own = (f"hydra.searchpath=[file://{tmp_path}]", "dataset=discs", "techniques=all")
    metrics = trained(tmp_path, *own)
    assert 0 <= metrics["val/mIoU"] <= 1


@pytest.mark.thorough
def test_a_task(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task/coverage.yaml").write_text("_target_: tests.examples.my_task.Coverage\n")
    own = (f"hydra.searchpath=[file://{tmp_path}]", "task=coverage", "monitor=val/error")
    metrics = trained(tmp_path, *DATA, *own)
    assert 0 <= metrics["val/error"] <= 1
