"""Run folders: saved configurations, patches from the command line, checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.errors import ConfigError, ResumeError

SAVED = OmegaConf.create(
    {"task": {"_target_": "a"}, "dataset": {"_target_": "scenes", "size": 64}, "seed": 0, "trainer": {"max_steps": 5}}
)


def composed(**changes: object) -> object:
    return OmegaConf.merge(SAVED, OmegaConf.create(changes))


def test_patch_takes_only_what_was_overridden() -> None:
    fresh = composed(seed=3, trainer={"max_steps": 7})
    patched = runs.patch(SAVED, fresh, ["trainer.max_steps=7"])
    assert patched.trainer.max_steps == 7
    assert patched.seed == 0


def test_patch_replaces_whole_groups() -> None:
    fresh = OmegaConf.create({**OmegaConf.to_container(SAVED), "dataset": {"_target_": "folder", "root": "x"}})
    patched = runs.patch(SAVED, fresh, ["dataset=folder"])
    assert patched.dataset == {"_target_": "folder", "root": "x"}


def test_patch_refuses_another_task() -> None:
    with pytest.raises(ConfigError, match="task of a run is fixed"):
        runs.patch(SAVED, composed(), ["task=label_scarce"])


@pytest.mark.parametrize("override", ["experiment=study/controls", "ablation=pixels", "+technique=mine"])
def test_patch_refuses_what_sets_many_values(override: str) -> None:
    with pytest.raises(ConfigError, match="sets many values at once"):
        runs.patch(SAVED, composed(), [override])


def test_invocation_keys_change_nothing() -> None:
    patched = runs.patch(SAVED, composed(), ["resume=x", "allow_changes=true", "hydra.run.dir=y", "run=z"])
    assert runs.changed_keys(SAVED, patched) == []


def test_changed_keys_name_both_values() -> None:
    patched = runs.patch(SAVED, composed(seed=1), ["seed=1"])
    assert runs.changed_keys(SAVED, patched) == ["seed: 0 → 1"]


def test_resolve_leaves_no_interpolation_and_no_hydra() -> None:
    config = OmegaConf.create({"a": 1, "b": "${a}", "hydra": {"x": "${now:%H}"}})
    assert OmegaConf.to_container(runs.resolve(config), resolve=False) == {"a": 1, "b": 1}


def test_resolve_names_a_missing_value() -> None:
    with pytest.raises(ConfigError, match="root"):
        runs.resolve(OmegaConf.create({"dataset": {"root": "???"}}))


def test_round_trip(tmp_path: Path) -> None:
    runs.save_config(SAVED, tmp_path)
    assert runs.read_config(tmp_path) == SAVED
    assert runs.read_json(tmp_path / "environment.json")["packages"]["torch"] != "absent"


@pytest.mark.parametrize(
    ("written", "said"),
    [({}, r"written by gate_lightning before 0\.2\.0.*train it anew"), ({"version": "99.0.0"}, "newer than this one")],
)
def test_a_run_folder_of_another_version_is_refused(tmp_path: Path, written: dict[str, str], said: str) -> None:
    runs.save_config(SAVED, tmp_path)
    runs.write_json(tmp_path / "environment.json", written)
    with pytest.raises(ConfigError, match=said):
        runs.load_config(tmp_path)


def test_no_run_folder_lists_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(ConfigError, match=r"no config.yaml.*images"):
        runs.load_config(tmp_path)


def test_newest_checkpoint_of_a_kind(tmp_path: Path) -> None:
    import os

    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for age, name in enumerate(["best.ckpt", "best-v1.ckpt", "last.ckpt"]):
        (folder / name).touch()
        os.utime(folder / name, (age, age))
    assert runs.checkpoint_of(tmp_path, "best").name == "best-v1.ckpt"
    assert runs.checkpoint_of(tmp_path, "last").name == "last.ckpt"


@pytest.mark.parametrize("which", ["best", "nowhere.ckpt"])
def test_missing_checkpoint(tmp_path: Path, which: str) -> None:
    with pytest.raises(ResumeError, match=which):
        runs.checkpoint_of(tmp_path, which)


def test_a_run_without_best_checkpoint_names_the_last_one(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()

    with pytest.raises(ResumeError, match=r"no best checkpoint.*checkpoint=last"):
        runs.checkpoint_of(tmp_path, "best")


@pytest.mark.parametrize("name", ["status.json", "metrics.json", "world_size.json", "environment.json"])
@pytest.mark.parametrize("content", ["", "{", "\xff", "[" * 100_000, '"a"', "NaN"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(ResumeError, match=rf"{tmp_path / name}.*delete it"):
        runs.read_json(tmp_path / name)


def test_json_files_hold_json(tmp_path: Path) -> None:
    runs.write_json(tmp_path / "metrics.json", {"a": float("nan"), "b": [float("inf"), 1.0], "c": {"d": -1}})
    assert runs.read_json(tmp_path / "metrics.json") == {"a": None, "b": [None, 1.0], "c": {"d": -1}}


@pytest.mark.parametrize("version", ["abc", 3, [], "1.2", "0.2.0rc1", "9" * 5000 + ".0.0"])
def test_a_version_that_is_none_is_named(tmp_path: Path, version: object) -> None:
    runs.save_config(SAVED, tmp_path)
    runs.write_json(tmp_path / "environment.json", {"version": version})
    with pytest.raises(ConfigError, match=r"environment\.json: version is"):
        runs.read_config(tmp_path)
