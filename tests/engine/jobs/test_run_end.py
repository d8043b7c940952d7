from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gate_lightning.callbacks.state.checkpoint import RunCheckpoint
from gate_lightning.callbacks.state.export import Export
from gate_lightning.engine.jobs.run_end import headline, tell
from gate_lightning.engine.jobs.training import train
from gate_lightning.tasks.base import BaseTask
from tests.support.composition import SMALL, composed

METRICS = {"val/mIoU": 0.6779, "val/aAcc": 0.93, "test/mIoU": 0.6711, "test/loss": 0.57781, "test/aAcc": 0.9309}


def told(folder: Path, caplog: pytest.LogCaptureFixture, *callbacks: Any, task: Any = None) -> list[str]:
    caplog.set_level("INFO", "gate_lightning")
    trainer: Any = SimpleNamespace(is_global_zero=True, default_root_dir=str(folder), callbacks=callbacks)
    task = task or SimpleNamespace()
    task.headline = getattr(task, "headline", lambda: None)
    tell(trainer, task, METRICS, 200.0)
    return [record.getMessage() for record in caplog.records]


def test_the_end_names_the_metric_what_it_is_and_the_places(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keeper = RunCheckpoint(monitor="val/mIoU")
    keeper.best_step = 400
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    (tmp_path / "report.html").touch()
    results = SimpleNamespace(labels=None, per_class={}, confusion={})
    assert told(tmp_path, caplog, keeper, task=results) == [
        "done in 3 min 20 s: val/mIoU 67.8 % (the best in validation, at step 400), test/mIoU 67.1 %",
        f"images: {tmp_path}/images",
        f"report: {tmp_path}/report.html (0 bytes)",
        f"all metrics, as fractions: {tmp_path}/metrics.json",
        f"label your own images: python eval.py run={tmp_path} input=<image or folder>",
    ]


def test_a_run_on_pairs_is_compared_with_another_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    results = SimpleNamespace(measured={}, pck=None)
    line = f"""compare it with another run: python eval.py tool=compare "run=['{folder}',<another run>]\""""
    assert told(folder, caplog, task=results)[-1] == line
    config = composed(line.partition('"')[2].rstrip('"').replace("<another run>", "other"), name="eval")
    assert config.run == [str(folder), "other"]


def test_without_a_monitored_metric_the_last_split_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, *rest = told(tmp_path, caplog)
    assert first == "done in 3 min 20 s: test/aAcc 93.1 %, test/mIoU 67.1 %, test/loss 0.5778"
    assert rest == [f"all metrics, as fractions: {tmp_path}/metrics.json"]
    assert headline({}) == "no metric was measured"
    assert headline({"val/error": 0.25, "train/error": 0.5}, "val/mIoU", 3) == "val/error 0.25"


def test_a_task_may_say_what_it_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = SimpleNamespace(headline=lambda: "ranked first: lora by drift_moves")
    assert told(tmp_path, caplog, task=task)[0] == "done in 3 min 20 s: ranked first: lora by drift_moves"


@pytest.mark.thorough
def test_without_validation_the_configured_metric_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gate_lightning")
    given = (*SMALL, "techniques=none", "trainer.max_steps=1", "callbacks.report=null")
    train(composed(*given), given, tmp_path)
    (line,) = (record.getMessage() for record in caplog.records if record.getMessage().startswith("done in "))
    assert re.fullmatch(r"done in .*: val/mIoU [\d.]+ %, test/mIoU [\d.]+ %", line)


def test_an_exported_part_is_told_with_its_use(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export = Export()
    export.written = tmp_path / "model"
    task = SimpleNamespace(usage=lambda folder: BaseTask.usage(SimpleNamespace(), folder))  # type: ignore[arg-type]
    assert told(tmp_path, caplog, export, task=task)[-1] == f"trained part: {tmp_path}/model"
