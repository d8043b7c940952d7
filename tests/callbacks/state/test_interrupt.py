"""A run that is stopped by a signal and resumed ends as if nothing had happened: against real Lightning loops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from gate_lightning.callbacks.state.checkpoint import RunCheckpoint
from gate_lightning.callbacks.state.ema import WeightAverage
from gate_lightning.callbacks.state.interrupt import Interrupt
from gate_lightning.errors import ConfigError, Interrupted
from tests.support.marks import thorough_but
from tests.support.paths import REPOSITORY
from tests.support.segmentation_fakes import FakeData, make_task, make_trainer

#: six batches an epoch
SETTINGS: dict[str, dict[str, Any]] = {
    "steps": {},
    "accumulate": {"accumulate_grad_batches": 2, "max_steps": 7},
    "epochs": {"max_steps": -1, "max_epochs": 2, "val_check_interval": 0.5, "check_val_every_n_epoch": 1},
}


class History(Callback):
    """What validation measured, by step."""

    def __init__(self) -> None:
        self.values: list[tuple[int, float, float]] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        metrics = trainer.callback_metrics
        self.values.append((trainer.global_step, float(metrics["val/mIoU"]), float(metrics["val/loss"])))


class Signal(Callback):
    """Sends this process a signal in the n-th call of a hook (from 1)."""

    def __init__(self, hook: str, call: int, number: int = signal.SIGINT) -> None:
        def send(*_: Any, **__: Any) -> None:
            self.calls += 1
            if self.calls == call:
                os.kill(os.getpid(), number)

        self.calls = 0
        setattr(self, hook, send)


class Dice(Callback):
    """Draws random numbers wherever it can, as other people's callbacks do."""

    def on_train_batch_end(self, *_: Any) -> None:
        torch.rand(3)

    def on_validation_end(self, *_: Any) -> None:
        torch.rand(5)


@dataclass
class Outcome:
    weights: dict[str, torch.Tensor]
    history: list[tuple[int, float, float]]
    best: tuple[float | None, int | None]
    average: dict[str, torch.Tensor]


def run(folder: Path, name: str, *callbacks: Callback, resume: bool = False, averaged: bool | None = None) -> Outcome:
    torch.set_num_threads(1)  # a fixture of wider scope runs before the one that sets it
    history, keeper, average, task = History(), RunCheckpoint(3, "val/mIoU"), WeightAverage(0.9), make_task()
    extra: list[Callback] = [Dice()] if resume else []
    if averaged or (averaged is None and name != "accumulate"):
        extra.append(average)
    trainer = make_trainer(folder, *callbacks, *extra, history, keeper, Interrupt(), **SETTINGS[name])
    path = folder / "checkpoints" / "last.ckpt" if resume else None
    try:
        trainer.fit(task, FakeData(), ckpt_path=path, weights_only=True if resume else None)
    except Interrupted:
        assert not resume
    weights = {key: value.clone() for key, value in task.state_dict().items()}
    return Outcome(weights, history.values, (keeper.best_score, keeper.best_step), dict(average._average))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return {name: run(tmp_path_factory.mktemp(name), name) for name in SETTINGS}


def check_equal(whole: Outcome, before: Outcome, after: Outcome) -> None:
    assert before.history + after.history == whole.history
    assert whole.weights.keys() == after.weights.keys()
    assert all(torch.equal(whole.weights[key], after.weights[key]) for key in whole.weights)
    assert all(torch.equal(whole.average[key], after.average[key]) for key in whole.average)
    assert after.best == whole.best


@pytest.mark.parametrize("name", thorough_but(("steps",), SETTINGS))
@pytest.mark.parametrize(
    ("hook", "call"),
    [
        ("on_train_batch_start", 1),
        ("on_train_batch_start", 6),
        ("on_before_optimizer_step", 2),
        ("on_train_batch_end", 4),
        ("on_validation_start", 1),
        ("on_validation_batch_start", 1),
        ("on_validation_batch_end", 3),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(
    tmp_path: Path, whole: dict[str, Outcome], name: str, hook: str, call: int
) -> None:
    before = run(tmp_path, name, Signal(hook, call))
    assert len(before.history) < len(whole[name].history)
    check_equal(whole[name], before, run(tmp_path, name, resume=True))


@pytest.mark.thorough
def test_averaged_weights_survive_inside_accumulation(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", "accumulate", averaged=True)
    before = run(tmp_path, "accumulate", Signal("on_train_batch_start", 1), averaged=True)
    check_equal(whole, before, run(tmp_path, "accumulate", resume=True, averaged=True))


def test_sigterm_is_handled_alike(tmp_path: Path, whole: dict[str, Outcome]) -> None:
    before = run(tmp_path, "steps", Signal("on_before_backward", 5, signal.SIGTERM))
    check_equal(whole["steps"], before, run(tmp_path, "steps", resume=True))


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_batch_end"])
def test_a_signal_in_the_last_step_lets_its_validation_finish(
    tmp_path: Path, whole: dict[str, Outcome], hook: str
) -> None:
    before = run(tmp_path, "steps", Signal(hook, 10))
    after = run(tmp_path, "steps", resume=True)
    assert after.history == []
    check_equal(whole["steps"], before, after)


def test_the_state_is_saved_at_exactly_the_step_of_the_signal(tmp_path: Path) -> None:
    task = make_task()
    trainer = make_trainer(tmp_path, RunCheckpoint(100), Signal("on_before_optimizer_step", 5), Interrupt())
    with pytest.raises(Interrupted) as caught:
        trainer.fit(task, FakeData())
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 5
    assert all(torch.equal(value, task.state_dict()[name]) for name, value in saved["state_dict"].items())
    assert "step 5" in str(caught.value)
    assert f"resume={tmp_path}" in str(caught.value)


def test_a_second_signal_aborts_at_once(tmp_path: Path) -> None:
    twice = [Signal("on_before_backward", 3), Signal("on_after_backward", 3)]
    trainer = make_trainer(tmp_path, RunCheckpoint(100), *twice, Interrupt())
    with pytest.raises(SystemExit):
        trainer.fit(make_task(), FakeData())
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("call", [100, 3])
def test_signal_handlers_are_given_back(tmp_path: Path, call: int) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    trainer = make_trainer(tmp_path, RunCheckpoint(100), Signal("on_train_batch_start", call), Interrupt())
    try:
        trainer.fit(make_task(), FakeData())
    except Interrupted:
        assert call == 3
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_it_needs_something_to_save_with(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="RunCheckpoint"):
        make_trainer(tmp_path, Interrupt(), enable_checkpointing=True).fit(make_task(), FakeData())


SCRIPT = """
import sys, time
from pathlib import Path
import torch
from lightning import Callback
torch.set_num_threads(1)
from gate_lightning.callbacks.state.checkpoint import RunCheckpoint
from gate_lightning.callbacks.state.interrupt import Interrupt
from gate_lightning.errors import Interrupted
from tests.support.segmentation_fakes import FakeData, make_task, make_trainer

class Slow(Callback):
    def on_train_batch_end(self, trainer, *_):
        print("step", trainer.global_step, flush=True)
        time.sleep(0.05)

trainer = make_trainer(Path(sys.argv[1]), Slow(), RunCheckpoint(1000), Interrupt(), max_steps=40)
try:
    trainer.fit(make_task(), FakeData())
except Interrupted as stopped:
    print(stopped, flush=True)
    sys.exit(130)
"""


@pytest.mark.slow
def test_ctrl_c_from_outside_then_resume(tmp_path: Path) -> None:
    """A real SIGINT at an arbitrary moment in another process; what it left goes on in this one."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 5"):
                time.sleep(0.07)
                process.send_signal(signal.SIGINT)
                break
        output = process.stdout.read()
        assert process.wait(timeout=60) == 130, output
    assert "Go on with: python train.py resume=" in output
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert 5 <= torch.load(last, weights_only=True)["global_step"] < 40
    whole, resumed = make_task(), make_task()
    make_trainer(tmp_path / "whole", RunCheckpoint(1000), max_steps=40).fit(whole, FakeData())
    make_trainer(tmp_path, RunCheckpoint(1000), max_steps=40).fit(
        resumed, FakeData(), ckpt_path=last, weights_only=True
    )
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
