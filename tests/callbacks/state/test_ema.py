"""The moving average in segmentation runs: what is measured, kept and loaded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from torch import Tensor

from gate_lightning.callbacks.state.checkpoint import RunCheckpoint
from gate_lightning.callbacks.state.ema import WeightAverage, averaged_weights
from tests.support.segmentation_fakes import FakeData, make_task, make_trainer


class History(Callback):
    """The trained weights and statistics after every step, and what validations measured."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.measured: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.weights.append(trained(pl_module))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.measured.append(float(trainer.callback_metrics["val/loss"]))


def trained(task: Any) -> dict[str, Tensor]:
    state = task.state_dict().items()
    return {k: v.clone() for k, v in state if not k.startswith("extractor") and v.is_floating_point()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, WeightAverage, History, Any]:
    folder = tmp_path_factory.mktemp("run")
    task, average, history = make_task(), WeightAverage(0.8), History()
    # the best validation is the first one: training goes astray
    task._make_optimizer = partial(torch.optim.SGD, lr=0.3, maximize=True)
    trainer = make_trainer(folder, average, history, RunCheckpoint(4, "val/loss", "min"), max_steps=8)
    trainer.fit(task, FakeData())
    return folder, task, average, history, trainer


def test_the_average_is_that_of_weights_and_their_statistics(run: Any) -> None:
    _, _, average, history, _ = run
    start = trained(make_task())
    for name, value in average._average.items():
        expected = start[name]
        for step, weights in enumerate(history.weights, start=1):
            decay = min(0.8, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * weights[name]
        torch.testing.assert_close(value, expected)
    assert "head.norms.0.running_mean" in average._average
    assert not any(name.startswith(("extractor", "metrics")) for name in average._average)


def test_validation_measures_the_average_and_training_goes_on_with_its_own(run: Any, tmp_path: Path) -> None:
    _, _, average, history, _ = run
    task = make_task()
    task.load_state_dict(average._average, strict=False)
    (result,) = make_trainer(tmp_path).validate(task, FakeData(), verbose=False)
    assert result["val/loss"] == pytest.approx(history.measured[1], rel=1e-5)
    task.load_state_dict(history.weights[-1], strict=False)
    (result,) = make_trainer(tmp_path).validate(task, FakeData(), verbose=False)
    assert result["val/loss"] != pytest.approx(history.measured[1], rel=1e-3)


def test_the_best_checkpoint_is_evaluated_and_not_the_last_average(run: Any) -> None:
    folder, task, _, history, trainer = run
    measured = list(history.measured)
    assert measured[0] < measured[1]
    after = trained(task)
    best = folder / "checkpoints" / "best.ckpt"
    (result,) = trainer.validate(task, FakeData(), ckpt_path=best, verbose=False)
    assert result["val/loss"] == pytest.approx(measured[0], rel=1e-5)
    # without a checkpoint it is the average, as during training
    task.load_state_dict(after, strict=False)
    (result,) = trainer.validate(task, FakeData(), verbose=False)
    assert result["val/loss"] == pytest.approx(measured[1], rel=1e-5)
    assert all(torch.equal(after[name], value) for name, value in trained(task).items())
    (tested,) = trainer.test(task, FakeData(), verbose=False)
    task.load_state_dict(history.weights[-1], strict=False)
    plain = make_trainer(folder).test(task, FakeData(), verbose=False)[0]
    assert tested["test/loss"] != pytest.approx(plain["test/loss"], rel=1e-3)


def test_the_last_checkpoint_has_the_average_beside_the_weights(run: Any) -> None:
    folder, _, average, history, _ = run
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    found = averaged_weights(state)
    assert all(torch.equal(found[name], value) for name, value in average._average.items())
    name = "head.classifiers.0.weight"
    assert torch.equal(state["state_dict"][name], history.weights[-1][name])
    assert not torch.equal(found[name], state["state_dict"][name])
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert averaged_weights(best) == {}
