"""The k-NN probe as a run: labelled pixels are kept, saved and asked."""

from __future__ import annotations

import csv

import pytest
import torch

from gate_lightning.engine.jobs.trained_run import load_run
from gate_lightning.engine.jobs.training import train
from gate_lightning.errors import ConfigError
from tests.support.composition import composed

SMALL = (
    "task=nearest_pixels",
    "backbone=pixels",
    "techniques=none",
    "layers=pixels",
    "timestep=0",
    "repeats=1",
    *("dataset.train=3", "dataset.val=1", "dataset.test=2"),
    *("task.data.pixels_per_batch=64", "head.decode.bank=200"),
    *("trainer.accelerator=cpu", "callbacks.cost=null", "logger=csv"),
)


def test_a_run_fills_the_bank_and_is_evaluated(tmp_path):
    metrics = train(composed(*SMALL), SMALL, tmp_path)
    assert 0 < metrics["test/mIoU_ddpm"] <= metrics["test/mIoU"]
    assert metrics["train/steps_most"] == 4  # 4 · 64 ≥ 200
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert saved["head.kept"].item() == 200
    norms = saved["head.features"].norm(dim=2)
    assert ((norms - 1).abs() < 1e-5).logical_or(norms == 0).all()  # black pixels have no direction
    assert len(saved["head.labels"].unique()) > 2
    with (tmp_path / "classes_test.csv").open() as file:
        assert "IoU_ddpm" in next(csv.reader(file))
    head = load_run(tmp_path).task.head
    assert torch.equal(head.features, saved["head.features"])


def test_weights_that_would_stay_random_are_refused(tmp_path):
    two = "techniques=[{name: a, techniques: []}, {name: b, techniques: []}]"
    with pytest.raises(ConfigError, match="use amalgamation=concat_pixels"):
        train(composed(*SMALL, two, "amalgamation=weighted_pixels"), SMALL, tmp_path)
