from __future__ import annotations

import csv
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning import Callback
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from gate_lightning.callbacks.description import RunDescription
from gate_lightning.callbacks.loggers import RunLog, tensorboard_logger, wandb_logger
from gate_lightning.callbacks.reports.class_table import ClassTable
from gate_lightning.callbacks.reports.dashboards import publish_predictions
from gate_lightning.callbacks.reports.predictions import PredictionImages
from gate_lightning.callbacks.state.checkpoint import RunCheckpoint
from gate_lightning.callbacks.state.interrupt import Interrupt
from gate_lightning.callbacks.wandb_run import close_dashboards
from gate_lightning.data.card import ClassLabels
from gate_lightning.errors import ConfigError, Interrupted
from gate_lightning.visualization.predictions import PredictedImage
from tests.support.paths import REPOSITORY
from tests.support.segmentation_fakes import FakeData, make_task, make_trainer


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_of_a_step_share_a_row_and_new_metrics_get_a_column(tmp_path: Path) -> None:
    log = RunLog(str(tmp_path))
    log.log_metrics({"train/loss": 0.5, "epoch": 0}, 1)
    log.log_metrics({"val/mIoU": 0.25}, 1)
    log.log_metrics({"train/loss": 0.4, "weights/a": 1.0}, 2)
    log.finalize("success")
    assert rows(tmp_path) == [
        {"step": "1", "train/loss": "0.5", "val/mIoU": "0.25", "weights/a": ""},
        {"step": "2", "train/loss": "0.4", "val/mIoU": "", "weights/a": "1.0"},
    ]


def test_a_resumed_run_replaces_the_rows_it_does_again(tmp_path: Path) -> None:
    first = RunLog(str(tmp_path))
    for step in (1, 2, 3, 4):
        first.log_metrics({"loss": float(step)}, step)
    first.finalize("failed")
    second = RunLog(str(tmp_path))
    second.log_metrics({"loss": 30.0}, 3)
    second.save()
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [("1", "1.0"), ("2", "2.0"), ("3", "30.0")]


class Kill(Callback):
    """Ends training without any farewell, as SIGKILL does."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 7:
            for logger in trainer.loggers:
                logger.finalize = lambda status: None
            raise RuntimeError("killed")


def test_metrics_of_a_killed_and_resumed_run_are_those_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    make_trainer(whole, RunCheckpoint(3), logger=RunLog(str(whole))).fit(make_task(), FakeData())
    with pytest.raises(RuntimeError, match="killed"):
        make_trainer(cut, Kill(), RunCheckpoint(3), logger=RunLog(str(cut))).fit(make_task(), FakeData())
    last = cut / "checkpoints" / "last.ckpt"
    trainer = make_trainer(cut, RunCheckpoint(3), logger=RunLog(str(cut)))
    trainer.fit(make_task(), FakeData(), ckpt_path=last, weights_only=True)
    assert rows(cut) == rows(whole)
    assert len(rows(whole)) == 10
    assert [row["step"] for row in rows(whole)] == [str(step) for step in range(10)]
    assert [row["step"] for row in rows(whole) if row["val/mIoU"]] == ["3", "7"]


class Signal(Callback):
    """Ctrl-C at the n-th call of a hook."""

    def __init__(self, hook: str, call: int) -> None:
        self.left = call
        setattr(self, hook, self.send)

    def send(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.thorough
@pytest.mark.parametrize(("hook", "call"), [("on_train_batch_start", 6), ("on_validation_batch_start", 3)])
def test_metrics_of_an_interrupted_and_resumed_run_are_those_of_an_uninterrupted_one(
    tmp_path: Path, hook: str, call: int
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    make_trainer(whole, RunCheckpoint(100), logger=RunLog(str(whole))).fit(make_task(), FakeData())
    first = make_trainer(cut, Signal(hook, call), RunCheckpoint(100), Interrupt(), logger=RunLog(str(cut)))
    with pytest.raises(Interrupted):
        first.fit(make_task(), FakeData())
    second = make_trainer(cut, RunCheckpoint(100), Interrupt(), logger=RunLog(str(cut)))
    second.fit(make_task(), FakeData(), ckpt_path=cut / "checkpoints" / "last.ckpt", weights_only=True)
    assert rows(cut) == rows(whole)


def test_wandb_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        wandb_logger(str(tmp_path))


def test_tensorboard_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        tensorboard_logger(str(tmp_path))


def test_tensorboard_has_metrics_images_and_tables(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    task, data = make_task(), FakeData()
    trainer = make_trainer(tmp_path, PredictionImages(1), ClassTable(), logger=tensorboard_logger(str(tmp_path)))
    trainer.fit(task, data)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert len(events.Scalars("train/loss")) == 10
    assert [event.step for event in events.Scalars("val/mIoU")] == [3, 7]
    (*_, drawn) = events.Images("images/predictions_val")
    shown = np.asarray(Image.open(io.BytesIO(drawn.encoded_image_string)))
    assert np.array_equal(shown, np.asarray(Image.open(tmp_path / "images" / "predictions_step000008.png")))
    (*_, table) = events.Tensors("tables/classes_val/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    assert text.startswith("| class | IoU | ")
    assert f"| sea | {task.per_class['val']['sea']['IoU']}" in text


def test_tensorboard_has_the_settings_as_hyperparameters(tmp_path: Path) -> None:
    plugin_data_pb2 = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = RunDescription("x", values={"timestep": 25, "backbone": "tiny", "cached": None}, monitor="val/mIoU")
    logger = tensorboard_logger(str(tmp_path), told)
    for step in range(2):
        logger.log_metrics({"val/mIoU": 0.5}, step)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    data = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = plugin_data_pb2.HParamsPluginData.FromString(data).session_start_info.hparams
    assert found["timestep"].number_value == 25
    assert found["backbone"].string_value == "tiny"
    assert [event.step for event in events.Scalars("val/mIoU")] == [0, 1]


def test_all_dashboards_get_images_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    shown: list[str] = []
    monkeypatch.setattr(WandbLogger, "log_image", lambda self, key, *_, **__: shown.append(key))
    monkeypatch.setattr(WandbLogger, "log_table", lambda self, key, *_, **__: shown.append(key))
    trainer = make_trainer(tmp_path, PredictionImages(1), ClassTable(), logger=wandb_logger(str(tmp_path)))
    trainer.validate(make_task(), FakeData(), verbose=False)
    close_dashboards()
    assert shown == ["images/predictions_val", "predictions/val", "tables/classes_val"]


def test_predictions_have_masks_one_can_switch_on_and_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    shown: list[tuple[str, Any, Any]] = []
    monkeypatch.setattr(
        WandbLogger, "log_image", lambda self, key, images, step, **more: shown.append((key, images, more))
    )
    trainer = make_trainer(tmp_path, logger=wandb_logger(str(tmp_path)))
    image, truth = np.full((2, 3, 3), 7, np.uint8), np.array([[0, 1, 255], [1, 1, 0]])
    labels = ClassLabels(("sky", "sea"), ((0, 0, 0), (1, 1, 1)))
    publish_predictions(trainer, "worst", [PredictedImage("a/b", image, truth, 1 - truth % 2, miou=0.25)], labels)
    close_dashboards()
    ((key, images, more),) = shown
    assert key == "predictions/worst"
    assert np.array_equal(images[0], image)
    assert more["caption"] == ["a/b: mIoU 25.0 %"]
    (masks,) = more["masks"]
    assert masks["ground_truth"]["mask_data"].tolist() == [[0, 1, 255], [1, 1, 0]]
    assert masks["prediction"]["mask_data"].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert masks["prediction"]["class_labels"] == {0: "sky", 1: "sea", 255: "not labelled"}


WITHOUT_DASHBOARDS = """
import sys
from pathlib import Path

sys.modules |= {"wandb": None, "tensorboard": None}  # as if they were not installed
from gate_lightning.callbacks.loggers import RunLog
from gate_lightning.callbacks.reports.class_table import ClassTable
from gate_lightning.callbacks.reports.predictions import PredictionImages
from gate_lightning.callbacks.wandb_run import close_dashboards
from tests.support.segmentation_fakes import FakeData, make_task, make_trainer

folder = sys.argv[1]
callbacks = [PredictionImages(1), ClassTable()]
make_trainer(Path(folder), *callbacks, logger=RunLog(folder), max_steps=4).fit(make_task(), FakeData())
close_dashboards()
"""


@pytest.mark.slow
def test_training_needs_no_dashboard(tmp_path: Path) -> None:
    code = [sys.executable, "-c", WITHOUT_DASHBOARDS, str(tmp_path)]
    done = subprocess.run(code, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path)) == 4
    assert (tmp_path / "images" / "predictions_step000004.png").is_file()


def test_only_four_files_deal_with_wandb_or_tensorboard() -> None:
    package = REPOSITORY / "gate_lightning"
    told = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search("wandb|tensorboard", path.read_text().replace("callbacks.wandb_run import", ""), re.IGNORECASE)
    }
    # others know names only: of parts and places that a saved run may have, and of keys that hold secrets
    names = {
        "engine/checks/saved_parts.py",
        "engine/checks/saved_paths.py",
        "engine/checks/redaction.py",
        "engine/folder/description.py",
    }
    dealing = {"loggers.py", "wandb_run.py", "workspace.py", "reports/dashboards.py"}
    assert told == {*(f"callbacks/{name}" for name in dealing), *names}
