from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from gate_lightning.callbacks.loggers import RunLog
from gate_lightning.callbacks.pace.health import TrainingHealth
from gate_lightning.utils.text import read_csv
from tests.support.segmentation_fakes import FakeData, make_task, make_trainer


class Norms(Callback):
    """Gradient norm, computed in another way, and learning rate of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.rates: list[float] = []

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        squares = [float(p.grad.double().square().sum()) for p in pl_module.parameters() if p.grad is not None]
        self.values.append(sum(squares) ** 0.5)
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def trained(folder: Path, *callbacks: Callback, **settings: Any) -> Any:
    torch.manual_seed(0)
    task = make_task()
    make_trainer(folder, *callbacks, logger=RunLog(str(folder)), **settings).fit(task, FakeData())
    return task


def test_norm_and_rate_are_those_of_the_steps_that_are_logged(tmp_path: Path) -> None:
    norms = Norms()
    trained(tmp_path, TrainingHealth(), norms, log_every_n_steps=3)
    rows = {int(row["step"]): row for row in read_csv(tmp_path / "metrics.csv") if row.get("train/gradient_norm")}
    assert list(rows) == [2, 5, 8]
    assert len(set(norms.rates)) > 1
    for step, row in rows.items():
        assert float(row["train/gradient_norm"]) == pytest.approx(norms.values[step], rel=1e-5)
        assert float(row["train/lr"]) == pytest.approx(norms.rates[step])
        assert 0.05 < float(row["cost/memory_gib"]) < 1000


def test_a_training_is_equal_with_and_without_it(tmp_path: Path) -> None:
    with_it = trained(tmp_path / "a", TrainingHealth(), gradient_clip_val=0.1).state_dict()
    without = trained(tmp_path / "b", gradient_clip_val=0.1).state_dict()
    assert all(torch.equal(value, without[name]) for name, value in with_it.items())


def test_the_norm_is_that_before_clipping(tmp_path: Path) -> None:
    trained(tmp_path, TrainingHealth(), gradient_clip_val=1e-4)
    assert all(float(row["train/gradient_norm"]) > 1e-3 for row in read_csv(tmp_path / "metrics.csv"))
