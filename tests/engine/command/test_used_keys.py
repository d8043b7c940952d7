"""Groups and keys that a task or tool does not read are refused, and not recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from gate_lightning.data.core.datamodule import LOADER_SETTINGS
from gate_lightning.engine.cli import config_folder
from gate_lightning.engine.command.used_keys import (
    READS,
    check_overrides,
    keys_of_run,
    keys_of_task,
    keys_of_tool,
    recorded,
)
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.jobs.training import train
from gate_lightning.engine.parts.components import Components
from gate_lightning.errors import ConfigError
from tests.support.composition import SMALL, composed
from tests.support.marks import thorough_but

TASKS = sorted(path.stem for path in Path(config_folder(), "task").glob("*.yaml"))
TOOLS = sorted(path.stem for path in Path(config_folder(), "tool").glob("[!_]*.yaml") if path.stem != "none")
WITH_BACKBONE = ("extract", "generate", "agreement", "layers", "match", "app", "propagate")
#: what generates or trains a part, and reads no features
WITHOUT_FEATURES = ("autoencoder", "cleandift", "controlnet", "lora", "single_object", "unet")
#: what measures features as they are, and has nothing that could be trained
TRAINED_BY_NOTHING = ("content_shift", "geometric", "lora_choice", "video")
OF_FEATURES = ("techniques", "technique", "timestep", "layers", "noise", "ensemble", "cache", "features", "head")
OF_FEATURES = (*OF_FEATURES, "loss", "amalgamation", "backbones", "edge_channels", "caption_channels", "repeats")


@pytest.mark.parametrize(
    "task", thorough_but(("segmentation", "label_scarce", "lora", "content_shift", "single_object"), TASKS)
)
def test_every_key_is_read_or_refused(task: str) -> None:
    config = composed(f"task={task}")
    read = keys_of_task(config)
    for key in map(str, config):
        if key in ("resume", "allow_changes", "trust", "paths"):  # of the invocation
            continue
        override = f"{key}=x"
        if key == "dataset" and key not in read:  # read in part
            check_overrides([override], read, task)
        elif key in read:
            check_overrides([override, f"{key}.inner=1", f"+x@{key}.y=z"], read, task)
        else:
            with pytest.raises(ConfigError, match=f"{key}=x: {task} reads no {key}, .* It reads .*dataset"):
                check_overrides([override], read, task)
    expected = {*OF_FEATURES} if task in WITHOUT_FEATURES else set()
    assert expected <= {*map(str, config)} - read
    assert {"datamodule", "trainer", "callbacks", "seed", "monitor"} - read <= {"monitor"}
    assert ({"optimizer", "scheduler"} <= read) == (task not in TRAINED_BY_NOTHING)
    assert ("repeats" in read) == (task in ("label_scarce", "nearest_pixels"))
    assert ("backbone" in read) == (task != "single_object")


#: choices with a data module of the task's own → settings of the data set that it leaves out, and one that it reads
IN_PART = {
    "task=label_scarce dataset=folder": ("batch_size augment num_workers flip", "ignore_index"),
    "task=nearest_pixels dataset=ade20k": ("batch_size eval_batch_size photometric", "subset"),
    "task=content_shift dataset=pairs": ("batch_size flip flip_one", "size"),
    "task=content_shift dataset=scenes": ("eval_batch_size augment", "domain"),
    "experiment=lora dataset=folder": ("augment ignore_index captions", "crop_size"),
    "experiment=lora dataset=images": ("resize_short eval_batch_size", "batch_size"),
}


@pytest.mark.parametrize("choice", IN_PART)
def test_settings_of_a_data_set_that_is_read_otherwise_are_refused(choice: str) -> None:
    left_out, read_one = IN_PART[choice]
    name = "eval" if "content_shift" in choice else "train"
    config = composed(*choice.split(), "dataset.root=x" if "scenes" not in choice else "dataset.size=64", name=name)
    read = keys_of_task(config)
    check_overrides([choice.split()[1], f"dataset.{read_one}=1"], read, "it")
    saved = recorded(config, read).dataset
    assert read_one in saved and "_target_" in saved
    for key in left_out.split():
        assert key in config.dataset and key not in saved
        with pytest.raises(ConfigError, match=rf"dataset\.{key}=1: it reads no dataset\.{key}, .*dataset\.{read_one}"):
            check_overrides([f"dataset.{key}=1"], read, "it")


def test_a_data_module_that_refers_to_the_whole_data_set_reads_all_of_it() -> None:
    config = composed("experiment=lora", "dataset=folder", "dataset.root=x", "+task.data.own=${dataset}")
    check_overrides(["dataset.augment=true"], keys_of_task(config), "it")


def test_a_data_module_that_is_not_there_is_told_of() -> None:
    with pytest.raises(ConfigError, match=r"_target_=gate_lightning\.no\.Data"):
        keys_of_task(composed("task=label_scarce", "task.data._target_=gate_lightning.no.Data"))


def test_only_what_is_read_of_a_data_set_named_anew_is_a_change() -> None:
    config = composed("task=label_scarce", "dataset=folder", "dataset.root=x")
    saved = recorded(runs.resolve(config), keys_of_task(config))
    given = ["run=y", "dataset=folder", "dataset.root=z"]
    now = composed("dataset=folder", "dataset.root=z", name="eval")
    patched = recorded(runs.patch(saved, runs.resolve(now), given), keys_of_run(saved, now))
    assert runs.changed_keys(saved, patched) == ["dataset.root: 'x' → 'z'"]


@pytest.mark.parametrize("given", [[], ["++dataset.root=z"], ["dataset=ade_bedroom30"]])
def test_a_run_keeps_the_settings_of_its_data_set_whatever_the_command_line_is_composed_with(given: list[str]) -> None:
    config = composed("task=label_scarce", "dataset=folder", "dataset.root=x", "dataset.ignore_index=11")
    saved = recorded(runs.resolve(config), keys_of_task(config))
    now = composed(*given, name="eval")  # generated scenes
    patched = recorded(runs.patch(saved, runs.resolve(now), given), keys_of_run(saved, now))
    if given == ["dataset=ade_bedroom30"]:  # named anew: its own settings alone
        assert patched.dataset._target_ != saved.dataset._target_
        assert {*patched.dataset} == {*now.dataset} - LOADER_SETTINGS
    else:
        assert patched.dataset == {**saved.dataset, **({"root": "z"} if given else {})}
        assert patched.dataset.ignore_index == 11


@pytest.mark.parametrize("task", TRAINED_BY_NOTHING)
def test_a_task_that_trains_nothing_is_referred_to_eval(task: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trains nothing; .* by python eval\.py"):
        train(composed(f"task={task}"), [f"task={task}"], tmp_path)


@pytest.mark.parametrize("key", ["techniques", "timestep", "layers"])
def test_settings_of_the_choice_are_read_where_something_is_chosen(key: str) -> None:
    assert "auto" in keys_of_task(composed(f"{key}=auto"))
    assert "auto" not in keys_of_task(composed())


@pytest.mark.parametrize("tool", thorough_but(("extract", "app", "report", "student_set"), TOOLS))
def test_every_tool_refuses_what_it_does_not_read(tool: str) -> None:
    config = composed(f"tool={tool}", name="eval")
    read = keys_of_tool(config)
    assert "tool" in read
    if tool in ("pseudo_label", "student_set"):
        return  # they read a run, which decides by itself
    assert not {"optimizer", "scheduler", "head", "loss", "trainer", "callbacks"} & read
    assert {"backbone"} <= read if tool in WITH_BACKBONE else "backbone" not in read
    assert ("techniques" in read) == (tool in ("extract", "match", "app", "propagate"))
    with pytest.raises(ConfigError, match=r"head=fcn, optimizer\.lr=1: .* reads no head, optimizer"):
        check_overrides(["head=fcn", "optimizer.lr=1"], read, tool)


class _Tracked(DictConfig):
    """A configuration that notes which of its top-level keys are asked for."""

    def __init__(self, config: DictConfig, asked: set[str]) -> None:
        super().__init__(OmegaConf.to_container(config))
        object.__setattr__(self, "asked", asked)

    def _get_impl(self, key: Any, default_value: Any, validate_key: bool = True) -> Any:
        self.__dict__["asked"].add(str(key))
        return super()._get_impl(key, default_value, validate_key)


def _closure(name: str) -> Iterator[str]:
    yield name
    for read in READS[name]:
        yield from _closure(read) if read in READS and read != name else [read]


@pytest.mark.parametrize(
    "name",
    thorough_but(("backbone", "extractor", "head", "datamodule"), sorted({*READS} - {"backbone_groups", "parts_of"})),
)
def test_a_component_reads_what_is_declared(name: str, tmp_path: Path) -> None:
    config = runs.resolve(composed(*SMALL))
    components = Components(config, str(tmp_path))
    asked: set[str] = set()
    components.config = _Tracked(config, asked)
    getattr(components, name)
    # a saved run says what it was trained on; the task, which may wrap a data set, is read by every run
    assert asked - {"trained_on", "task"} <= {*_closure(name)}


@pytest.mark.thorough
def test_a_run_records_what_it_used(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for index in range(2):
        cv2.imwrite(str(tmp_path / "set" / f"{index}.png"), np.full((40, 60, 3), 80 * index, np.uint8))
    given = ["experiment=lora", "backbone=tiny", f"dataset.root={tmp_path / 'set'}", "task.rank=2", "optimizer.lr=0.25"]
    given += ["task.targets=[attention]", "trainer.accelerator=cpu", "trainer.max_steps=1", "logger=none"]
    given += ["scheduler.warmup_steps=0", "trainer.val_check_interval=1"]
    with pytest.raises(ConfigError, match=r"head=segformer, timestep=7: LoraTask reads no head, timestep"):
        train(composed(*given), [*given, "head=segformer", "timestep=7"], tmp_path / "refused")
    train(composed(*given), given, tmp_path / "run")
    saved: Mapping[str, Any] = runs.load_config(tmp_path / "run")
    assert saved["optimizer"]["lr"] == 0.25
    assert not {*OF_FEATURES} & {*map(str, saved)}
    assert {"backbone", "dataset", "task", "optimizer", "scheduler", "trainer", "callbacks", "seed"} <= {
        *map(str, saved)
    }
    with pytest.raises(ConfigError, match=r"head=fcn: the run in .* reads no head"):
        train(composed(f"resume={tmp_path / 'run'}"), ["head=fcn"], tmp_path / "run")


def test_tools_refuse_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="techniques=none: check_data reads no techniques"):
        evaluate(composed("tool=check_data", name="eval"), ["tool=check_data", "techniques=none"], tmp_path)
