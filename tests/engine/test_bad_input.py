"""What is refused when a trained run meets something else: other classes, head, backbone, number of processes."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.jobs.training import train
from gate_lightning.errors import ResumeError
from tests.support.composition import SMALL, composed


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    given = [*SMALL, "techniques=none", "trainer.max_steps=2"]
    train(composed(*given), given, folder)
    return folder


def evaluated(run: Path, folder: Path, *overrides: str) -> dict[str, float]:
    given = [f"run={run}", f"output={folder}", *overrides]
    return evaluate(composed(*given, name="eval"), given, folder)


@pytest.mark.slow
def test_a_checkpoint_of_another_number_of_classes_says_so(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ResumeError, match=r"trained on 16 classes \(.+, …\), the data set has 8 \(.+\)\. Use the data set"
    ):
        evaluated(trained, tmp_path, "dataset.labels=merged")


@pytest.mark.thorough
def test_a_checkpoint_of_another_head_names_the_weights(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match=r"do not fit this task:\n.*absent in the checkpoint"):
        evaluated(trained, tmp_path, "head=linear")


@pytest.mark.slow
def test_a_checkpoint_of_another_backbone_names_what_changed(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match=r"other features than this run has .*\n.*backbone\.digest: '\w+' → '\w+'"):
        evaluated(trained, tmp_path, "backbone.seed=1")


@pytest.mark.thorough
def test_a_change_that_is_meant_is_warned_of(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = evaluated(trained, tmp_path, "backbone.seed=1", "allow_changes=true")
    assert "val/mIoU" in metrics
    assert any("other features" in one.getMessage() and "backbone.digest" in one.getMessage() for one in caplog.records)


@pytest.mark.thorough
def test_classes_of_other_names_are_warned_of(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gate_lightning.engine.jobs.trained_run import load_run

    run = load_run(trained)
    state = {"classes": ["other", *run.classes[1:]]}
    with caplog.at_level(logging.WARNING):
        run.task._check_classes(state["classes"])
    assert f"class 0 was 'other' when the checkpoint was trained and is '{run.classes[0]}'" in caplog.text


@pytest.mark.thorough
def test_another_number_of_processes_is_refused_before_training_goes_on(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "world_size.json").write_text(json.dumps(2))
    (folder / "status.json").write_text('{"status": "interrupted"}')
    given = [f"resume={folder}"]
    with pytest.raises(ResumeError, match=r"trained with 2 processes and would go on with 1.*allow_changes=true"):
        train(composed(*given), given, folder)
