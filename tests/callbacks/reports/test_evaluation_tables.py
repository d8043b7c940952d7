"""Confusion matrix, table of images, pace of training, early stop."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from lightning import Callback
from omegaconf import OmegaConf
from PIL import Image

from gate_lightning.callbacks.loggers import RunLog
from gate_lightning.callbacks.pace import throughput
from gate_lightning.callbacks.pace.throughput import Throughput
from gate_lightning.callbacks.reports.confusion import ConfusionImage, worst_pairs
from gate_lightning.callbacks.reports.image_table import ImageTable
from gate_lightning.callbacks.state.checkpoint import RunCheckpoint
from gate_lightning.structures import Conditions
from tests.support.paths import CONF
from tests.support.segmentation_fakes import LABELS, FakeData, make_task, make_trainer


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def by_hand(task: Any, data: FakeData) -> dict[str, np.ndarray]:
    """Sample id → confusion matrix."""
    found = {}
    for sample in data.source("val").samples:
        image = torch.from_numpy(sample.image).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            labels = task.label_maps(image, Conditions((sample.sample_id,)), sample.mask.shape)[0].numpy()
        matrix = np.zeros((3, 3), int)
        np.add.at(matrix, (sample.mask[sample.mask != 255], labels[sample.mask != 255]), 1)
        found[sample.sample_id] = matrix
    return found


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray], str]:
    folder = tmp_path_factory.mktemp("run")
    task, data, records = make_task(), FakeData(), []
    trainer = make_trainer(folder, ConfusionImage(), ImageTable(), max_steps=4)
    trainer.fit(task, data)
    assert not list(folder.glob("*.csv"))
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("gate_lightning")
    logger.addHandler(handler)
    level, _ = logger.level, logger.setLevel(logging.INFO)
    trainer.validate(task, data, verbose=False)
    trainer.test(task, data, verbose=False)
    logger.removeHandler(handler)
    logger.setLevel(level)
    return folder, by_hand(task.eval(), data), "\n".join(records)


def test_confusion_is_written_in_pixels_with_the_truth_in_rows(evaluated: Any) -> None:
    folder, matrices, text = evaluated
    rows = read(folder / "confusion_val.csv")
    assert [row["truth"] for row in rows] == list(LABELS.classes)
    counts = [[int(row[name]) for name in LABELS.classes] for row in rows]
    assert np.array_equal(counts, sum(matrices.values()))
    assert {path.name for path in folder.glob("images/confusion_*.png")} == {
        "confusion_val.png",
        "confusion_test.png",
    }
    assert worst_pairs(np.array(counts), list(LABELS.classes))[0] in text


def test_the_worst_pairs_are_shares_of_the_truth() -> None:
    counts = np.array([[90, 10, 0], [3, 1, 0], [0, 0, 0]])
    assert worst_pairs(counts, ["a", "b", "c"]) == ["75 % of b is called a", "10 % of a is called b"]


def test_images_are_listed_from_the_worst(evaluated: Any) -> None:
    folder, matrices, text = evaluated
    rows = read(folder / "images_val.csv")
    assert {row["image"] for row in rows} == set(matrices)
    for row in rows:
        matrix = matrices[row["image"]]
        union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
        expected = np.mean(matrix.diagonal()[union > 0] / union[union > 0])
        assert float(row["mIoU"]) == pytest.approx(expected, abs=1e-6)
        assert float(row["aAcc"]) == pytest.approx(matrix.trace() / matrix.sum(), abs=1e-6)
        assert int(row["labelled"]) == matrix.sum()
    values = [float(row["mIoU"]) for row in rows]
    assert values == sorted(values)
    assert f"lowest mIoU: {rows[0]['image']} {100 * values[0]:.1f}" in text


class Slow(Callback):
    """A clock that a batch moves by half a second, and a validation by a hundred."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(throughput.time, "perf_counter", lambda: self.now)

    def on_train_batch_start(self, *_: Any) -> None:
        self.now += 0.5

    def on_validation_batch_start(self, *_: Any) -> None:
        self.now += 100.0


@pytest.mark.parametrize("accumulate", [1, 2])
def test_pace_counts_images_and_leaves_validation_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    settings = {"max_steps": 9, "log_every_n_steps": 3, "accumulate_grad_batches": accumulate}
    log = RunLog(str(tmp_path))
    trainer = make_trainer(tmp_path, Slow(monkeypatch), Throughput(), logger=log, **settings)
    trainer.fit(make_task(), FakeData())
    paces = {row["step"]: row["train/images_per_second"] for row in read(tmp_path / "metrics.csv")}
    assert {step: float(pace) for step, pace in paces.items() if pace} == {"2": 4.0, "5": 4.0, "8": 4.0}
    assert sum(bool(row["train/loss"]) for row in read(tmp_path / "metrics.csv")) == 3


class Scripted(Callback):
    """Logs the metric ``score`` that the test says."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("score", self.values.pop(0))


def test_training_stops_when_nothing_gets_better_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("lightning.pytorch.callbacks.early_stopping")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])  # Lightning's loggers may not propagate
    caplog.set_level(logging.INFO, logger.name)
    node = OmegaConf.load(CONF / "callbacks" / "early_stop" / "plateau.yaml")
    settings = OmegaConf.to_container(node, resolve=False)
    assert isinstance(settings, dict)
    stop = instantiate({**settings, "monitor": "score", "mode": "max", "patience": 2})
    keeper, scripted = RunCheckpoint(100, "score"), Scripted(0.5, 0.6, 0.6, 0.55, 0.9)
    trainer = make_trainer(tmp_path, scripted, stop, keeper, max_steps=40, max_epochs=-1, val_check_interval=4)
    trainer.fit(make_task(), FakeData())
    assert trainer.global_step == 16
    assert "score did not improve in the last 2 records" in caplog.text
    assert (keeper.best_score, keeper.best_step) == (pytest.approx(0.6), 8)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 16


def test_images_of_the_evaluation_can_be_opened(evaluated: Any) -> None:
    assert np.asarray(Image.open(evaluated[0] / "images" / "confusion_val.png")).shape[2] == 3
