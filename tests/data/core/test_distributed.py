"""Two real processes: the images of a step are those of one process with the double batch, evaluated once each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gate_lightning.data.card import IGNORE_INDEX
from gate_lightning.structures import SegmentationBatch
from tests.support.toy_data import ToyData, ToyModule, trainer_of


class Recorder(ToyModule):
    """Writes what its process saw; validation goes through the distributed wrapper and its buffers."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.norm = torch.nn.BatchNorm1d(3)  # its buffers are broadcast in every forward pass, also in validation
        self.counted: list[str] = []

    def training_step(self, batch: SegmentationBatch, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) + self.norm(batch.images.mean((2, 3))).square().mean()

    def validation_step(self, batch: SegmentationBatch, batch_idx: int) -> None:
        self.norm(batch.images.mean((2, 3)))
        labelled = (batch.masks != IGNORE_INDEX).flatten(1).any(1)
        self.counted += [name for name, real in zip(batch.conditions.sample_ids, labelled, strict=True) if real]

    def on_train_end(self) -> None:
        state = {"seen": [names for names, *_ in self.seen], "counted": self.counted}
        (self.folder / f"rank{self.global_rank}.json").write_text(json.dumps(state))


@pytest.mark.slow
@pytest.mark.parametrize("use_distributed_sampler", [True, False])
def test_two_processes_see_what_one_sees(tmp_path: Path, use_distributed_sampler: bool) -> None:
    settings: dict[str, Any] = {"max_epochs": 2, "use_distributed_sampler": use_distributed_sampler}
    single = ToyModule()
    trainer_of(tmp_path / "single", **settings).fit(single, ToyData(batch_size=4))
    trainer = trainer_of(tmp_path, **{**settings, "strategy": "ddp_fork", "devices": 2})
    trainer.fit(Recorder(tmp_path), ToyData(batch_size=2, eval_batch_size=1))
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    steps = [first + second for first, second in zip(ranks[0]["seen"], ranks[1]["seen"], strict=True)]
    assert steps == [list(names) for names, *_ in single.seen]
    # five images on two processes, in two epochs
    assert sorted(ranks[0]["counted"] + ranks[1]["counted"]) == sorted(2 * [f"val/{n}" for n in range(5)])
