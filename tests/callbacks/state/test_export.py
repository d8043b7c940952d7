"""Files of the trained part, between and at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import nn

from gate_lightning.callbacks.state.ema import WeightAverage
from gate_lightning.callbacks.state.export import Export
from gate_lightning.errors import ConfigError


class Counting(LightningModule):
    """Its weight is the number of optimiser steps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return -self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=2.0)

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "part.txt").write_text(f"{float(self.weight.detach()):.3f}")


def fit(folder: Path, *callbacks: Export | WeightAverage, checkpoint: Path | None = None, steps: int = 5) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=2,  # steps are the optimiser's
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
    )
    loader = torch.utils.data.DataLoader(torch.zeros(20, 1))
    trainer.fit(Counting(), loader, ckpt_path=checkpoint, weights_only=False)
    return trainer


def written(folder: Path) -> dict[str, float]:
    return {path.parent.relative_to(folder).as_posix(): float(path.read_text()) for path in folder.rglob("part.txt")}


def test_parts_are_written_every_so_many_steps_and_at_the_end(tmp_path: Path) -> None:
    export = Export(every_n_steps=2)
    fit(tmp_path, export)
    assert written(tmp_path) == {"model/step_2": 4.0, "model/step_4": 8.0, "model": 10.0}
    assert export.written == tmp_path / "model"
    fit(tmp_path / "end", Export(tmp_path / "named"))
    assert written(tmp_path / "named") == {".": 10.0}


def test_parts_between_are_averages_where_there_are_any(tmp_path: Path) -> None:
    fit(tmp_path, WeightAverage(0.0), Export(every_n_steps=2))
    assert written(tmp_path)["model/step_4"] == 8.0  # an average without memory
    fit(tmp_path / "slow", WeightAverage(0.999), Export(every_n_steps=2))
    assert written(tmp_path / "slow")["model/step_4"] < 8.0


def test_a_resumed_training_writes_the_rest(tmp_path: Path) -> None:
    fit(tmp_path / "half", Export(every_n_steps=2), steps=2).save_checkpoint(tmp_path / "half.ckpt")
    fit(tmp_path / "rest", Export(every_n_steps=2), checkpoint=tmp_path / "half.ckpt")
    assert written(tmp_path / "rest") == {"model/step_4": 8.0, "model": 10.0}


def test_no_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="every_n_steps=0"):
        Export(every_n_steps=0)
