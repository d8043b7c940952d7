"""What dashboards are told of a run: names that say what differs, groups, plain values, and no secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from gate_lightning.engine.folder.description import described, publish_comparison, update_choices
from tests.support.wandb_files import offline_runs

CHOSEN = {"backbone": "tiny", "dataset": "scenes", "task": "segmentation", "head": "fcn"}
CONFIG: dict[str, Any] = {
    "techniques": ["prompt", "controlnet"],
    "timestep": 50,
    "layers": "practical",
    "backbone": {"_target_": "some.class", "weights": "tiny"},
    "callbacks": {"checkpoint": {"monitor": "val/loss", "mode": "min"}},
    "logger": {"mine": {"api_key": "very secret"}},
    "trained_on": {"name": "scenes"},
}


def run_folder(folder: Path, overrides: list[str], choices: bool = True) -> Path:
    folder.mkdir(parents=True)
    files = {"overrides.json": overrides, "environment.json": {"command": ["train.py", "a b"], "version": "9.9.9"}}
    for name, value in {**files, **({"choices.json": CHOSEN} if choices else {})}.items():
        (folder / name).write_text(json.dumps(value))
    return folder


def sweep(folder: Path, *overrides: str) -> Path:
    folder.mkdir(parents=True)
    OmegaConf.save({"hydra": {"overrides": {"task": list(overrides)}}}, folder / "multirun.yaml")
    return folder


def test_values_are_plain_and_choices_are_among_them(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", ["dataset=scenes", "timestep=50"])
    told = described(OmegaConf.create(CONFIG), folder)
    assert told.values == {
        **CHOSEN,
        "techniques": "prompt,controlnet",
        "timestep": 50,
        "layers": "practical",
        "seed": None,
        "command": "train.py 'a b'",
        "version": "9.9.9",
        "overrides": "dataset=scenes timestep=50",
        "run_folder": str(folder),
    }
    assert told.settings["backbone"] == {"_target_": "some.class", "weights": "tiny"}
    assert told.settings["logger"]["mine"]["api_key"] == "***"
    assert told.tags == ("segmentation", "scenes", "tiny", "techniques=prompt,controlnet")
    assert (told.name, told.group, told.job_type) == ("dataset=scenes timestep=50", None, "train")
    assert (told.monitor, told.mode) == ("val/loss", "min")


def test_a_run_without_overrides_has_the_name_of_its_folder(tmp_path: Path) -> None:
    assert described(OmegaConf.create(CONFIG), run_folder(tmp_path / "12-00-00", [])).name == "12-00-00"


def test_a_name_is_no_longer_than_the_server_takes(tmp_path: Path) -> None:
    name = described(OmegaConf.create(CONFIG), run_folder(tmp_path / "run", ["x=" + "y" * 200])).name
    assert len(name) == 128 and name.startswith("x=yy") and name.endswith(" …")


@pytest.mark.parametrize(("place", "group"), [("2026-01-01/12-00-00", "2026-01-01 12-00-00"), ("mine", "mine")])
def test_runs_of_a_sweep_are_named_by_what_differs(tmp_path: Path, place: str, group: str) -> None:
    folder = sweep(tmp_path / place, "trainer.max_steps=4", "timestep=25,50")
    run = run_folder(folder / "1", ["trainer.max_steps=4", "timestep=50"])
    told = described(OmegaConf.create(CONFIG), run)
    assert (told.name, told.group) == ("timestep=50", group)


def test_splits_are_in_the_group_of_their_protocol_and_have_its_choices(tmp_path: Path) -> None:
    protocol = run_folder(sweep(tmp_path / "s", "dataset=a,b", "repeats=2") / "0", ["dataset=a", "repeats=2"])
    (protocol / "config.yaml").write_text("{}")
    told = described(OmegaConf.create(CONFIG), run_folder(protocol / "split1", ["dataset=a"], choices=False))
    assert (told.name, told.group) == ("split1 dataset=a", "s 0")
    assert told.values["backbone"] == "tiny"


def test_a_resumed_run_tells_what_it_chose_anew(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", [])
    update_choices(folder, ["resume=x", "head=fpn", "trainer.max_steps=9"], {**CHOSEN, "head": "fpn", "task": "other"})
    assert json.loads((folder / "choices.json").read_text()) == {**CHOSEN, "head": "fpn"}


def test_tables_and_charts_of_a_sweep_are_a_run_in_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = sweep(tmp_path / "layers", "seed=0,1")
    (folder / "comparison.csv").write_text("label,seed,val/mIoU\na,0,0.25\nb,default,\n")
    Image.new("RGB", (4, 3)).save(folder / "comparison_grid.png")
    publish_comparison(folder, OmegaConf.create({"logger": {"csv": {"_target_": "x"}, "none": None}}))
    assert not (folder / "wandb").exists()
    node = {"_target_": "gate_lightning.callbacks.loggers.wandb_logger", "project": "mine", "name": "x"}
    publish_comparison(folder, OmegaConf.create({"logger": {"wandb": node}}))
    (run,) = offline_runs(folder)
    assert (run.run.display_name, run.run.run_group, run.run.job_type) == ("summary of layers", "layers", "summary")
    assert run.run.project == "mine" and run.exit_code == 0
    (row,) = run.rows
    table = json.loads((run.folder / "files" / row["tables/comparison"]["path"]).read_text())
    assert table["columns"] == ["label", "seed", "val/mIoU"]
    assert table["data"] == [["a", "0", 0.25], ["b", "default", None]]
    assert row["images/comparison_grid"]["width"] == 4
