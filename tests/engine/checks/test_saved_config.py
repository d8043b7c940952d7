"""config.yaml of a run folder: plain values, of the shape of a run's, and places to write inside the folder."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from gate_lightning.engine import cli
from gate_lightning.engine.checks.saved_config import read_saved
from gate_lightning.engine.checks.saved_paths import check_links, check_writes
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.jobs.trained_run import load_run
from gate_lightning.errors import ConfigError, GateError
from tests.support.composition import SMALL, composed

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
TASK = "task: {_target_: x}\n"


def written(tmp_path: Path, content: bytes | str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "names no task"),
        ("text", "names no task"),
        ("[task]", "names no task"),
        ("task: 3", "names no task"),
        (TASK + BOMB, r"line 3: a YAML alias \(\*a0\)"),
        (TASK + "a: " + "[" * 2000, "nested more than 40 deep"),
        (TASK + "a: " + "{b: " * 45 + "1" + "}" * 45, "nested more than 40 deep"),
        (TASK + "a: !!python/object/apply:os.system [x]", r"line 2: a YAML tag \(tag:yaml.org,2002:python/object"),
        (TASK + "a: !!binary aGk=", "a YAML tag"),
        (TASK + "a: [1, 2", "is no YAML"),
        (TASK + "a: 1\na: 2", "is no YAML.*duplicate key"),
        (TASK + "a: \x01", "is no YAML"),
        (TASK.encode() + b"a: \xff", "not UTF-8"),
        (TASK + "a: ${oc.env:HOME}", r"a is the interpolation '\$\{oc.env:HOME\}'"),
        (TASK + "a: {b: [0, 'x${task}']}", r"a\.b\[1\] is the interpolation"),
        (TASK + "a: ${", "config.yaml"),
        (TASK + "a: {'${x}': 1}", "config.yaml"),
        (TASK + "1: 2", "the key 1 is no text"),
        (TASK + "? [a, b]\n: 1", "config.yaml"),
        (TASK + "dataset: [1]", r"dataset is \[1\], expected a mapping"),
        (TASK + "seed: zero", "seed is 'zero', expected a whole number"),
        (TASK + "repeats: 1.5", "repeats is 1.5"),
        (TASK + "a: " + "9" * 5000, "config.yaml"),
        (TASK + "#" * (5 << 20), "more than 4,194,304"),
    ],
)
def test_what_is_no_configuration_is_refused(content: bytes | str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"(?s)config.yaml.*{said}" if said != "config.yaml" else said):
        read_saved(written(tmp_path, content))


def test_what_train_py_writes_is_read(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "task": {"_target_": "a"},
        "dataset": {"label_map": {0: 0, 255: 1}, "prompt": "a 'photo': of {x} & *y\nnext", "void": None},
        "optimizer": {"lr": 1e-5, "betas": [0.9, 0.99], "big": float("inf")},
        "seed": 0,
    }
    runs.save_config(OmegaConf.create(config), tmp_path)
    assert read_saved(tmp_path / "config.yaml") == config


#: settings that name a place, with their configuration
OUTSIDE: dict[str, dict[str, Any]] = {
    "cache.folder": {"cache": {"folder": "OUT"}},
    "dataset.cache": {"dataset": {"cache": "OUT"}},
    "callbacks.mine.folder": {"callbacks": {"mine": {"folder": "OUT"}}},
    "callbacks.mine.run_folder": {"callbacks": {"mine": {"run_folder": "OUT"}}},
    "logger.csv.run_folder": {"logger": {"csv": {"run_folder": "OUT"}}},
    "trainer.default_root_dir": {"trainer": {"default_root_dir": "OUT"}},
    "head.decode.run_folder": {"head": {"decode": {"run_folder": "OUT"}}},
    "dataset.inner.cache": {"cache": {"folder": None}, "dataset": {"inner": {"cache": "OUT"}}},
    "trainer.profiler.dirpath": {"trainer": {"profiler": {"dirpath": "OUT"}}},
}
OF_TRAINING: dict[str, dict[str, Any]] = {
    "callbacks.export.folder": {"callbacks": {"export": {"folder": "OUT"}}},
    "task.store_folder": {"task": {"store_folder": "OUT"}},
    "paths.cached_views": {"cache": {"folder": None, "augmented_views": 2}, "paths": {"cached_views": "OUT"}},
}


def at(config: dict[str, Any], place: str) -> Any:
    return OmegaConf.create(
        {
            key: at(value, place) if isinstance(value, dict) else place if value == "OUT" else value
            for key, value in config.items()
        }
    )


@pytest.mark.parametrize("place", ["ABSOLUTE", "elsewhere", "run:../x", "run:a/../../x", "run:", "~/x", "run:/etc"])
@pytest.mark.parametrize("key", [*OUTSIDE, *OF_TRAINING])
def test_nothing_is_written_outside(key: str, place: str, tmp_path: Path) -> None:
    place = str(tmp_path / "x") if place == "ABSOLUTE" else place
    folder = tmp_path / "run"
    config = at({**OUTSIDE, **OF_TRAINING}[key], place)
    with pytest.raises(ConfigError, match=rf"{re.escape(key)} is '{re.escape(place)}', outside.*trust=true"):
        check_writes(config, folder, None, training=True)
    check_writes(config, folder, config, training=True)  # the command line says so, too
    check_writes(at({**OUTSIDE, **OF_TRAINING}[key], "run:x/y"), folder, None, training=True)
    if key in OF_TRAINING:
        check_writes(config, folder, None, training=False)


def test_a_folder_that_leads_outside_is_outside(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/features").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="outside"):
        check_writes(at(OUTSIDE["cache.folder"], "run:features/x"), tmp_path / "run", None, training=False)


def test_advice_is_typed_as_hydra_takes_it(tmp_path: Path) -> None:
    """A key of the saved configuration that conf/ does not compose by itself is added, with ++."""
    said = composed(*SMALL)
    config = at({"callbacks": {"export": {"folder": "OUT"}}, "cache": {"folder": "OUT"}}, str(tmp_path))
    for keys, advice in ((["cache"], "so: cache.folder=/"), (["callbacks"], r"so: \+\+callbacks.export.folder=/")):
        with pytest.raises(ConfigError, match=advice):
            check_writes(OmegaConf.masked_copy(config, keys), tmp_path / "run", said, training=True)
    hidden = OmegaConf.create({"callbacks": {"mine": {"api_key": "***"}}})
    with pytest.raises(ConfigError, match=r"'\+\+callbacks\.mine\.api_key=\$"):
        runs.check_patched(hidden, tmp_path / "run", said)


@pytest.mark.parametrize("name", ["train.log", "lock.json", "images", "predictions/masks", "checkpoints", "wandb"])
def test_links_out_of_a_run_folder_are_not_written_through(name: str, tmp_path: Path) -> None:
    """Hydra's log and the lock were: any file of the reader's."""
    place = tmp_path / "run" / name
    place.parent.mkdir(parents=True)
    (place.parent / "inside").symlink_to(tmp_path / "run")
    place.symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigError, match=re.escape(f"{place} is a link out of the run folder")):
        check_links(tmp_path / "run", training=True)
    if name == "checkpoints":
        check_links(tmp_path / "run", training=False)


def test_a_resumed_folder_is_looked_at_before_hydra_writes_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    mine, run = tmp_path / "mine", tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["train.py", f"resume={run}"])
    assert cli.train_main() == 2
    assert "is no run folder" in capfd.readouterr().err
    assert not run.exists()
    run.mkdir()
    (run / "config.yaml").write_text(TASK)
    mine.write_text("mine\n")
    for name in ("train.log", "lock.json"):
        (run / name).symlink_to(mine)
    assert cli.train_main() == 2
    assert f"{run / 'lock.json'} is a link out of the run folder, to {mine}" in capfd.readouterr().err
    assert mine.read_text() == "mine\n"


def test_links_that_stay_inside_and_those_of_wandb_are_fine(tmp_path: Path) -> None:
    (tmp_path / "run/wandb/run-1").mkdir(parents=True)
    (tmp_path / "run/wandb/run-1/core.log").symlink_to(tmp_path / "home/cache/wandb.log")
    (tmp_path / "run/wandb/latest-run").symlink_to("run-1")
    (tmp_path / "run/last").symlink_to("wandb")
    check_links(tmp_path / "run", training=True)


def test_splits_share_features_with_each_other_only(tmp_path: Path) -> None:
    config = at(OUTSIDE["cache.folder"], "run:../features")
    with pytest.raises(ConfigError, match="outside"):
        check_writes(config, tmp_path / "split0", None, training=True)
    (tmp_path / "config.yaml").touch()
    check_writes(config, tmp_path / "split0", None, training=True)
    with pytest.raises(ConfigError, match="outside"):
        check_writes(at(OUTSIDE["cache.folder"], "run:../../features"), tmp_path / "split0", None, training=True)


def test_a_shared_folder_of_features_is_gone_on_with(tmp_path: Path) -> None:
    config = at(OUTSIDE["cache.folder"], str(tmp_path / "shared"))
    with pytest.raises(ConfigError, match="outside"):
        check_writes(config, tmp_path / "run", None, training=True)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/manifest.json").touch()
    check_writes(config, tmp_path / "run", None, training=True)


def test_a_name_of_a_file_is_no_path(tmp_path: Path) -> None:
    check_writes(OmegaConf.create({"task": {"name": "moderate"}}), tmp_path, None, training=True)
    for name in ("../x", "a/b", "/x"):
        with pytest.raises(ConfigError, match=r"task\.name"):
            check_writes(OmegaConf.create({"task": {"name": name}}), tmp_path, None, training=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("head", {}), ("layers", 1.5), ("trained_on", {}), ("cache.memory_gib", "x"), ("task.auxiliary_weight", {})),
        *(("dataset._target_", 1), ("amalgamation._partial_", 3), ("backbone.controlnets", ["a"]), ("backbones", 1)),
    ],
)
def test_values_that_do_not_fit_name_the_folder(key: str, value: object, tmp_path: Path) -> None:
    config = runs.resolve(composed(*SMALL, "techniques=none"))
    OmegaConf.update(config, key, value, merge=False)
    runs.save_config(config, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/best.ckpt").touch()
    with pytest.raises(GateError) as error:
        load_run(tmp_path)
    assert str(tmp_path) in str(error.value) or key.split(".")[0] in str(error.value)
