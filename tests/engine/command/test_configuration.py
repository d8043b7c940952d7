"""Command lines that name a run: keys that it has may be set, whatever is composed without its choices."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from gate_lightning.engine.checks.saved_config import read_saved
from gate_lightning.engine.command.configuration import with_data
from gate_lightning.engine.folder import run_folder as runs
from tests.support.composition import composed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = {"_target_": "gate_lightning.data.segmentation.folder.FolderDataModule", "root": "old", "ignore_index": 11}
    (tmp_path / "a b").mkdir()
    OmegaConf.save({"dataset": data, "task": {"data": {"size": 8}}}, tmp_path / "a b" / "config.yaml")
    return tmp_path / "a b"


@pytest.mark.parametrize("key", ["run", "resume"])
def test_keys_of_the_run_may_be_set(key: str, folder: Path) -> None:
    named = f"{key}='{folder}'"
    left = ["dataset.rooot=x", "+dataset.root=x", "hydra.run.dir=x", "tool.size=3", "seed=1", "-m"]
    given = [named, "dataset.root=/moved", "task.data.size=16", *left]
    assert with_data(given) == [named, "++dataset.root=/moved", "++task.data.size=16", *left]
    assert with_data(given[1:]) == given[1:]
    assert with_data([f"{key}=null", *given[1:]]) == [f"{key}=null", *given[1:]]
    other = folder.parent / "other"
    other.mkdir()
    OmegaConf.save({"dataset": {"root": "x"}, "task": {}}, other / "config.yaml")
    both = [f"{key}={folder},{other}", "dataset.root=/moved", "dataset.ignore_index=3"]
    assert with_data(both) == [both[0], "++dataset.root=/moved", both[2]]


def test_a_data_set_that_is_named_anew_has_its_own_keys(folder: Path) -> None:
    given = [f"run='{folder}'", "dataset=ade20k", "dataset.root=x", "task.data.size=16"]
    assert with_data(given) == [*given[:3], "++task.data.size=16"]


def test_only_what_is_set_changes(folder: Path) -> None:
    given = [f"run='{folder}'", "dataset.root=/moved"]
    found = runs.patch(
        read_saved(folder / "config.yaml"), runs.resolve(composed(*given, name="eval")), with_data(given)
    )
    assert (found.dataset.root, found.dataset.ignore_index) == ("/moved", 11)
    with pytest.raises(HydraException, match=r"dataset\.rooot"):
        composed(given[0], "dataset.rooot=x", name="eval")
