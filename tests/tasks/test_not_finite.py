"""Training stops at the first step whose numbers are not finite, and never saves one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from torch import Tensor, nn

from gate_lightning.callbacks.state.checkpoint import RunCheckpoint
from gate_lightning.errors import NotFiniteError
from tests.support.segmentation_fakes import FakeData, FakeExtractor, make_task, make_trainer


def fit(folder: Path, task: Any, *callbacks: Callback, **settings: Any) -> None:
    keeper = RunCheckpoint(1, "val/mIoU")
    make_trainer(folder, *callbacks, keeper, **settings).fit(task, FakeData())


class BreaksAt(nn.Module):
    """The loss of a task, not finite from a call on."""

    def __init__(self, inner: nn.Module, call: int) -> None:
        super().__init__()
        self.inner, self.call, self.calls = inner, call, 0

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        self.calls += self.training
        found: Tensor = self.inner(logits, masks)
        return found * float("inf") if self.calls >= self.call else found


def test_a_loss_names_step_and_images_and_the_last_state_is_whole(tmp_path: Path) -> None:
    task = make_task()
    task.loss = BreaksAt(task.loss, 3)
    with pytest.raises(NotFiniteError, match=r"step 3: the loss is inf \(images train/0\d\d, train/0.*optimizer.lr"):
        fit(tmp_path, task)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values() if value.is_floating_point())


def test_a_gradient_names_its_weight(tmp_path: Path) -> None:
    task = make_task()
    weight = dict(task.head.named_parameters())
    name = next(iter(weight))
    weight[name].register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NotFiniteError, match=rf"step 1: the gradient of head\.{name} is not finite"):
        fit(tmp_path, task)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("lr", [1e30, 1e37])
def test_a_run_that_diverges_is_stopped_and_no_checkpoint_is_not_finite(tmp_path: Path, lr: float) -> None:
    with pytest.raises(NotFiniteError):
        fit(tmp_path, make_task(optimizer=partial(torch.optim.AdamW, lr=lr)), val_check_interval=2)
    for path in (tmp_path / "checkpoints").glob("*.ckpt") if (tmp_path / "checkpoints").exists() else ():
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point())


def test_predictions_that_are_not_finite_are_no_labels() -> None:
    task = make_task()
    data = FakeData()
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        next(iter(task.head.parameters())).fill_(float("nan"))
    with pytest.raises(NotFiniteError, match=r"predictions of val/000"):
        task.label_maps(batch.images, batch.conditions, (16, 16))


def test_a_monitored_metric_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    class Nothing(Callback):
        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.log("val/nothing", torch.tensor(float("nan")))

    trainer = make_trainer(tmp_path, Nothing(), RunCheckpoint(1, "val/nothing"))
    with pytest.raises(NotFiniteError, match=r"val/nothing is nan after validation at step 4"):
        trainer.fit(make_task(FakeExtractor()), FakeData())
