"""``techniques=auto``: what is chosen, that training is the same as with the choice by hand, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.jobs import automatic
from gate_lightning.engine.jobs.automatic import CHOSEN, TABLE, _read, with_choice
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.jobs.training import train
from gate_lightning.errors import ConfigError
from gate_lightning.metrics.content_shift.statistic import Statistic, single
from gate_lightning.utils.text import read_csv
from tests.support.composition import SMALL, composed

FEW = (
    *("auto.images=4", "auto.batch_size=4", "auto.timesteps=[25,200]", "auto.layers=practical"),
    "auto.techniques=[{name: c, techniques: [prompt]}]",
)


def run(folder: Path, *overrides: str) -> dict[str, float]:
    given = [*SMALL, *overrides]
    return train(composed(*given), given, folder)


def chosen(folder: Path, *overrides: str, small: tuple[str, ...] = SMALL) -> dict[str, object]:
    config = with_choice(runs.resolve(composed(*small, *FEW, *overrides)), folder)
    return {key: config[key] for key in ("techniques", "timestep", "layers")}


@pytest.mark.thorough
def test_training_is_that_of_the_choice_made_by_hand(tmp_path: Path) -> None:
    techniques = "auto.techniques=[{name: a, techniques: [prompt]}, {name: b, techniques: [prompt, controlnet]}]"
    weights = "backbone.weights=tiny"
    metrics = run(tmp_path / "auto", *FEW, "techniques=auto", techniques, "timestep=auto", weights)
    table = read_csv(tmp_path / "auto" / TABLE)
    assert [(row["candidate"], row["timestep"]) for row in table] == [
        (name, timestep) for name in ("none", "a", "b") for timestep in ("25", "200")
    ]
    best = max(table, key=lambda row: float(row["value"]))
    assert [row["chosen"] for row in table].count("True") == 1 and best["chosen"] == "True"
    told = json.loads((tmp_path / "auto" / CHOSEN).read_text())
    assert told["measure"]["kind"] == "ridge" and len(told["images"]) == 4 and told["higher_is_better"]
    saved = runs.load_config(tmp_path / "auto")
    assert saved.timestep == int(best["timestep"])
    names = {"none": "none", "a": "[{name: a, techniques: [prompt]}]",
             "b": "[{name: b, techniques: [prompt, controlnet]}]"}  # fmt: skip
    by_hand = run(tmp_path / "hand", f"techniques={names[best['candidate']]}", f"timestep={best['timestep']}", weights)
    assert metrics == by_hand
    line = [f"resume={tmp_path / 'auto'}"]
    assert train(composed(*line), line, tmp_path / "auto") == metrics  # nothing is chosen anew


def test_of_every_stride_the_best_layer_is_taken() -> None:
    def figure(value: float, higher: bool = True) -> list[Statistic]:
        return [Statistic(torch.full((3, 1), value, dtype=torch.float64), higher, single)]

    strides = {"a": 8, "b": 8, "c": 4, "d": 16}
    layers = {"a": figure(0.1), "b": figure(0.2), "c": figure(0.05), "d": figure(0.3)}
    names, statistics = _read(layers, strides)
    assert names == ("b", "c", "d")
    assert [one.value for one in statistics] == pytest.approx([0.2, 0.05, 0.3])
    assert _read({name: figure(ones[0].value, False) for name, ones in layers.items()}, strides)[0] == ("a", "c", "d")
    assert _read(layers, {})[0] == ("a", "b", "c", "d")


def test_layers_alone_are_chosen_for_the_techniques_that_are_given(tmp_path: Path) -> None:
    found = chosen(tmp_path, "techniques=prompt", "layers=auto")
    assert found["techniques"] == "prompt" and found["timestep"] == 50
    assert len(found["layers"]) > 1  # type: ignore[arg-type]
    assert read_csv(tmp_path / TABLE)[0]["candidate"] == "prompt"


@pytest.mark.thorough
def test_nothing_is_measured_again_where_another_process_has_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = chosen(tmp_path, "techniques=auto", "auto=laplacian")
    before = (tmp_path / CHOSEN).read_text()
    monkeypatch.setattr(automatic, "_choose", lambda *_: pytest.fail("measured again"))
    assert chosen(tmp_path, "techniques=auto", "auto=laplacian") == first
    assert (tmp_path / CHOSEN).read_text() == before
    with pytest.raises(pytest.fail.Exception):
        chosen(tmp_path, "techniques=auto", "auto=laplacian", "seed=1")


def test_passes_are_run_as_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, object] = {}

    def reader(*_: object, **given: object) -> None:
        found.update(given)
        raise ConfigError("far enough")

    monkeypatch.setattr(automatic, "ShiftReader", reader)
    with pytest.raises(ConfigError, match="far enough"):
        chosen(tmp_path, "techniques=auto", "features.passes=eager")
    assert found["passes"] == "eager" and "max_samples" not in found
    with pytest.raises(ConfigError, match="far enough"):
        chosen(tmp_path, "techniques=auto", "features.max_samples=5")
    assert found["max_samples"] == 5


@pytest.mark.thorough
def test_what_cannot_be_chosen_is_refused(tmp_path: Path) -> None:
    given = composed("techniques=none")
    assert with_choice(given, tmp_path) is given
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(automatic, "_measured", lambda *_: pytest.fail("measured before it was refused"))
        with pytest.raises(ConfigError, match=r"timestep=auto: figures of LaplacianScore .*use auto=probe"):
            chosen(tmp_path, "timestep=auto", "techniques=prompt", "auto=laplacian")
    with pytest.raises(ConfigError, match=r"auto\.timesteps=5000"):
        chosen(tmp_path, "timestep=auto", "techniques=prompt", "auto.timesteps=[5000]")
    with pytest.raises(ConfigError, match=r"splits .* anew, so that ClosedFormProbe would choose by labels of test"):
        chosen(tmp_path, "task=label_scarce", "techniques=auto", small=SMALL[:1])
    with pytest.raises(ConfigError, match=r"no masks.*\n.*auto=laplacian needs no masks"):
        chosen(tmp_path, "dataset=scene_pairs", "dataset.train=4", "techniques=auto", small=SMALL[:1])
    with pytest.raises(ConfigError, match=r"auto\.techniques=\[\] leaves nothing to choose from"):
        chosen(tmp_path, "techniques=auto", "auto.techniques=[]")
    with pytest.raises(ConfigError, match=r"auto\.techniques: .* has no name"):
        chosen(tmp_path, "techniques=auto", "auto.techniques=[{techniques: [prompt]}]")
    with pytest.raises(ConfigError, match=r"reads no auto, so it would change nothing"):
        run(tmp_path / "run", "techniques=none", "auto=laplacian")
    line = ["dataset=scene_pairs", "techniques=auto", f"output={tmp_path / 'eval'}"]
    with pytest.raises(ConfigError, match=r"techniques=auto is chosen on training images, by train\.py"):
        evaluate(composed(*line, name="eval"), line, tmp_path / "eval")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("auto.timesteps=[]", r"auto\.timesteps=\[\]: expected a list"),
        ("auto.timesteps=50", r"auto\.timesteps=50: expected a list"),
        ("auto.techniques=[prompt]", r"auto\.techniques: prompt has no name"),
        ("auto.techniques=[{name: none, techniques: [prompt]}]", "none"),
        ("auto.images=1", r"auto\.images=1: expected a whole number from 2"),
    ],
)
def test_settings_that_are_no_choice_are_refused_by_their_name(tmp_path: Path, setting: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        chosen(tmp_path, "techniques=auto", "timestep=auto", setting)
