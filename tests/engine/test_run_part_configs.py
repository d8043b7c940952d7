"""Callbacks, loggers, trainers and the segmentation task as configured: every key is one that its target takes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from lightning import Callback, Trainer
from lightning.pytorch.loggers.logger import Logger

from gate_lightning.engine.command.configuration import composed
from gate_lightning.engine.parts.components import Components
from gate_lightning.tasks.inference import Inference
from gate_lightning.tasks.segmentation import SegmentationTask
from tests.support.segmentation_fakes import FakeData, make_task


@pytest.mark.parametrize("name", ["default", "quiet"])
def test_callbacks_build(name: str) -> None:
    for node in composed(f"callbacks={name}").callbacks.values():
        if node is None:
            continue
        assert isinstance(instantiate(node, _convert_="all"), Callback)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("csv", ["csv"]),
        ("wandb", ["csv", "wandb"]),
        ("tensorboard", ["csv", "tensorboard"]),
        ("[wandb,tensorboard]", ["csv", "wandb", "tensorboard"]),
        ("none", []),
    ],
)
def test_loggers_build(tmp_path: Path, name: str, kinds: list[str]) -> None:
    nodes: Any = composed(f"logger={name}").get("logger") or {}
    assert list(nodes) == kinds
    for node in nodes.values():
        assert isinstance(instantiate(node, _convert_="all")(run_folder=str(tmp_path)), Logger)


@pytest.mark.parametrize("name", ["default", "cpu", "gpu", "ddp"])
def test_trainers_know_their_keys(name: str) -> None:
    node = composed(f"trainer={name}").trainer
    assert set(node) - {"_target_"} <= set(inspect.signature(Trainer.__init__).parameters)


def test_default_trainer_builds_on_the_cpu(tmp_path: Path) -> None:
    trainer = instantiate(composed("trainer=cpu").trainer, default_root_dir=str(tmp_path), logger=False)
    assert trainer.max_epochs == -1
    assert trainer.accelerator.__class__.__name__ == "CPUAccelerator"


@pytest.mark.parametrize(
    ("group", "option"), [("average", "ema"), pytest.param("early_stop", "plateau", marks=pytest.mark.thorough)]
)
def test_further_callbacks_are_chosen_by_name(group: str, option: str) -> None:
    for name in ("default", "quiet"):
        assert composed(f"callbacks={name}").callbacks.get(group) is None
        node = composed(f"callbacks={name}", f"callbacks/{group}={option}").callbacks[group]
        assert isinstance(instantiate(node, _convert_="all"), Callback)


def test_an_auxiliary_head_goes_with_any_head() -> None:
    node = composed("head=bn_linear", "+head/auxiliary=fcn", "head.auxiliary.channels=16").head.auxiliary
    head = instantiate(node, _convert_="all")(in_channels=[8, 8], strides=[8, 16], num_classes=3)
    assert head.decode_head.channels == 16


class Validations(Callback):
    """The steps after which a validation came."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.steps.append(trainer.global_step)


@pytest.mark.parametrize(
    ("accumulate", "steps"), [(1, [6]), (2, [3, 6]), pytest.param(3, [2, 4, 6], marks=pytest.mark.thorough)]
)
def test_the_validation_interval_counts_batches_as_lightning_does(
    tmp_path: Path, accumulate: int, steps: list[int]
) -> None:
    given = ["trainer=cpu", "callbacks=quiet", "logger=none", "trainer.max_steps=6", "trainer.val_check_interval=6"]
    config = composed(*given, f"trainer.accumulate_grad_batches={accumulate}")
    trainer, seen = Components(config, str(tmp_path)).trainer, Validations()
    trainer.callbacks.append(seen)
    trainer.fit(make_task(), FakeData())
    assert seen.steps == steps


def test_segmentation_task_knows_its_keys() -> None:
    node = composed("task=segmentation", "task.inference.mode=slide", "task.inference.crop_size=[48,64]").task
    own = set(node) - {"_target_"}
    assert own <= set(inspect.signature(SegmentationTask).parameters)
    inference = instantiate(node.inference, _convert_="all")
    assert inference == Inference("slide", [48, 64])
    assert set(node.inference) - {"_target_"} == set(inspect.signature(Inference).parameters)
