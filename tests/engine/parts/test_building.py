"""Values and parts of the wrong kind: a message with the key, never a traceback of a library."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from gate_lightning.engine.command.used_keys import keys_of_task
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.parts.building import built, call_with, called, check_kinds, check_values
from gate_lightning.engine.parts.components import Components
from gate_lightning.errors import ConfigError
from gate_lightning.tasks.segmentation import SegmentationTask
from tests.support.composition import SMALL, composed
from tests.support.paths import REPOSITORY

#: command line → component that is built, and what the message says
WRONG = [
    ("optimizer.lr=high", "optimizer", r"optimizer\.lr='high': expected a number$"),
    ("optimizer.lr=-1", "optimizer", r"AdamW, given lr, weight_decay: Invalid learning rate: -1"),
    ("optimizer.weight_decay=heavy", "optimizer", r"optimizer\.weight_decay='heavy'"),
    ("optimizer._target_=torch.nn.Linear", "optimizer", r"Linear, given lr, .*unexpected keyword"),
    ("optimizer._target_=torch.nn.Module", "optimizer", "Module, given lr"),
    ("scheduler.power=steep", "scheduler", r"scheduler\.power='steep': expected a number"),
    ("scheduler._target_=torch.optim.Adam", "scheduler", "Adam, given power"),
    ("loss._target_=gate_lightning.losses.nothing.X", "loss", "Error locating target .*nothing.X"),
    ("loss._target_=gate_lightning.callbacks.pace.throughput.Throughput", "loss", "Throughput, given losses"),
    ("trainer.max_steps=many", "trainer", r"trainer\.max_steps='many': expected a whole number"),
    ("trainer.max_steps=2.5", "trainer", r"trainer\.max_steps=2\.5: expected a whole number"),
    ("trainer.precision=7", "trainer", r"trainer\.precision=7: expected .*bf16-mixed"),
    ("trainer.accelerator=quantum", "trainer", "invalid accelerator name"),
    ("trainer._target_=torch.nn.Linear", "trainer", "unexpected keyword"),
    ("callbacks.checkpoint.every_n_steps=often", "trainer", r"checkpoint\.every_n_steps='often'"),
    ("callbacks.checkpoint._target_=torch.nn.Identity", "trainer", "is a Identity, expected a Callback"),
    ("callbacks.checkpoint=5", "trainer", r"callbacks\.checkpoint=5: expected keys below it"),
    ("callbacks.progress.every_seconds=often", "trainer", r"progress\.every_seconds='often': expected a number"),
    ("callbacks/early_stop=plateau callbacks.early_stop.patience=x", "trainer", r"early_stop\.patience='x'"),
    ("logger.csv=5", "trainer", r"logger\.csv=5"),
    ("techniques=5", "branches", "techniques=5: expected none, all, a technique"),
    ("techniques=[5]", "branches", r"techniques=\[5\]"),
    ("timestep=abc", "branches", "timestep='abc': expected a whole number"),
    ("layers=5", "branches", "layers=5"),
    ("ensemble=many", "branches", "ensemble='many'"),
    ("backbone._target_=torch.nn.Linear", "backbone", "of key backbone"),
    ("backbone.native_size=large", "backbone", r"backbone\.native_size='large': expected a whole number or null"),
    ("cache=5", "extractor", "cache=5: expected keys below it"),
    ("cache.memory_gib=lots", "extractor", r"memory_gib \(cache.memory_gib\)='lots': expected a number"),
    ("features=5", "extractor", "features=5"),
    ("noise=loud", "extractor", "noise='loud'"),
    ("backbone_scale=big", "extractor", "big"),
    ("seed=x", "trainer", "seed='x': expected a whole number"),
    ("allow_changes=maybe", "trainer", "allow_changes='maybe': expected true or false"),
    ("dataset.train=x", "datamodule", r"dataset\.train='x': expected a whole number"),
    ("dataset._target_=torch.nn.Linear", "datamodule", "of key dataset"),
    ("task.auxiliary_weight=x", "task", r"task\.auxiliary_weight='x': expected a number"),
    ("task.inference._target_=torch.nn.Linear", "task", "unexpected keyword"),
    ("head.decode._target_=gate_lightning.losses.dice.DiceLoss", "head", "DiceLoss, given type"),
    ("head.decode.channels=many", "head", r"head\.decode\.channels='many': expected a whole number"),
    ("amalgamation._target_=torch.nn.ReLU", "amalgamation", "ReLU, given num_assigners"),
]


def make(component: str, config: Any, folder: Path) -> None:
    """Build a component, and use it where it is built by its use."""
    made = getattr(Components(runs.resolve(config), str(folder)), component)
    if component == "optimizer":
        made([nn.Parameter(torch.zeros(1))])
    elif component == "scheduler":
        made(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), total_steps=3)


@pytest.mark.parametrize(("line", "component", "message"), WRONG, ids=[line for line, *_ in WRONG])
@pytest.mark.slow
def test_wrong_values_are_told_of(line: str, component: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        make(component, composed(*SMALL, *line.split()), tmp_path)


def test_a_task_that_is_not_there_is_told_of() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.Task: .*No module named 'nowhere'"):
        keys_of_task(composed(*SMALL, "task._target_=nowhere.Task"))


def test_parts_are_compared_with_what_the_task_takes() -> None:
    with pytest.raises(ConfigError, match="head is a Linear; SegmentationTask takes a Head"):
        check_kinds(SegmentationTask, {"head": nn.Linear(1, 1), "auxiliary_head": None})
    with pytest.raises(ConfigError, match="makes a Linear, expected a Optimizer"):
        called(partial(nn.Linear, 1), torch.optim.Optimizer, 1)
    with pytest.raises(ConfigError, match="already built"):
        call_with(nn.Linear(1, 1))


def test_what_annotations_do_not_tell_passes() -> None:
    node: dict[str, Any] = {"_target_": "torch.optim.AdamW", "lr": 1, "betas": [0.9, 0.99], "amsgrad": False}
    check_values({**node, "foreach": None}, "optimizer")
    with pytest.raises(ConfigError, match=r"optimizer\.amsgrad='yes': expected true or false"):
        check_values({**node, "amsgrad": "yes"}, "optimizer")
    with pytest.raises(ConfigError, match=r"optimizer\.lr=True: expected a number"):
        check_values({**node, "lr": True}, "optimizer")
    assert built({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}, "x").out_features == 3


@pytest.mark.parametrize("path", sorted((REPOSITORY / "conf").glob("**/*.yaml")), ids=lambda path: path.stem)
def test_the_files_hold_what_the_annotations_say(path: Path) -> None:
    def walk(node: Any, where: str) -> None:
        if isinstance(node, dict) and "_target_" in node:
            # ``auto`` is resolved before anything is built
            check_values({k: v for k, v in node.items() if "${" not in str(v) and v not in ("???", "auto")}, where)
        elif isinstance(node, dict):
            for key, value in node.items():
                walk(value, f"{where}.{key}")

    walk(OmegaConf.to_container(OmegaConf.load(path)), path.stem)
