"""A data set of pairs outside the package stands on the same base as segmentation, exact resume included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule
from omegaconf import OmegaConf
from torch import Tensor

from gate_lightning.data.files.report import DataReport
from gate_lightning.engine.parts.components import Components
from gate_lightning.errors import ConfigError, ResumeError
from gate_lightning.structures import PairBatch, SegmentationBatch
from tests.examples.pairs_data import PairsDataModule
from tests.support.toy_data import Stop, trainer_of

TARGET = "tests.examples.pairs_data.PairsDataModule"


class ShiftTask(LightningModule):
    """Learns the mean shift; remembers every pair it has seen."""

    batch_type = PairBatch

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(2))
        self.seen: list[tuple[str, ...]] = []

    def _error(self, batch: PairBatch) -> Tensor:
        return (batch.source_points + self.shift - batch.target_points).square().nanmean()

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        names = batch.source.conditions.sample_ids
        self.seen.append(names)
        assert batch.target.conditions.sample_ids == tuple(f"{name} moved" for name in names)
        return self._error(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([self.shift], lr=0.1)


def test_a_run_that_was_stopped_goes_on_with_the_pairs_it_would_have_seen(tmp_path: Path) -> None:
    whole, first, second = ShiftTask(), ShiftTask(), ShiftTask()
    settings = {"max_steps": 10, "max_epochs": -1}
    trainer_of(tmp_path / "whole", **settings).fit(whole, PairsDataModule(batch_size=2))
    stop = Stop("on_train_batch_end", 6)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer_of(tmp_path / "stopped", [stop], **settings).fit(first, PairsDataModule(batch_size=2))
    checkpoint = tmp_path / "stopped" / "on_exception.ckpt"
    trainer_of(tmp_path / "resumed", **settings).fit(second, PairsDataModule(batch_size=2), ckpt_path=checkpoint)
    assert first.seen + second.seen == whole.seen
    assert torch.equal(second.shift, whole.shift)
    with pytest.raises(ResumeError, match="batch_size: 2 → 4"):
        trainer_of(tmp_path / "other", **settings).fit(ShiftTask(), PairsDataModule(batch_size=4), ckpt_path=checkpoint)


def test_pairs_are_evaluated_image_by_image_and_padding_counts_nothing() -> None:
    data = PairsDataModule(batch_size=2)
    names = [name for batch in data.val_dataloader() for name in batch.conditions.sample_ids]
    assert sorted(names) == sorted({name for pair in data.pairs_of("val") for name in (pair.source, pair.target)})
    assert data.source("train").load(0).ignored().points.isnan().all()


def test_a_data_set_without_classes_can_be_checked() -> None:
    report = PairsDataModule().check()
    assert isinstance(report, DataReport)
    assert [split.count for split in report.splits] == [8, 6, 6]
    assert "classes" not in str(report)


def test_a_task_for_other_batches_is_refused_by_name(tmp_path: Path) -> None:
    node = {
        "dataset": {"_target_": TARGET},
        "task": {"_target_": "gate_lightning.tasks.segmentation.SegmentationTask"},
    }
    components = Components(OmegaConf.create(node), str(tmp_path))
    said = r"SegmentationTask \(task=\) takes batches of SegmentationBatch.*PairsDataModule \(dataset=\).*PairBatch"
    with pytest.raises(ConfigError, match=said):
        _ = components.task
    with pytest.raises(ConfigError, match=r"needs classes, and shifted pairs \(PairsDataModule\) has none"):
        _ = components.labels
    assert not issubclass(PairBatch, SegmentationBatch)
