"""The main job in small: train, evaluate, predict, resume, repeat."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

import gate_lightning
from gate_lightning.callbacks.state.interrupt import Interrupt
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.jobs import training
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.jobs.training import train
from gate_lightning.errors import ConfigError, GateError, ResumeError
from gate_lightning.utils.text import read_csv
from tests.support.composition import SMALL, composed


def run(folder: Path, *overrides: str) -> dict[str, float]:
    given = [*SMALL, *overrides]
    return train(composed(*given), given, folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    run(folder, "techniques=prompt", "callbacks=default")
    return folder


def test_a_run_leaves_what_the_readme_promises(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    assert {"val/mIoU", "val/aAcc", "val/mAcc", "test/mIoU"} <= metrics.keys()
    assert all(0 <= metrics[name] <= 1 for name in ("val/mIoU", "test/mIoU"))
    assert json.loads((trained / "status.json").read_text()) == {"status": "done"}
    for name in ("config.yaml", "environment.json", "metrics.csv", "classes_val.csv", "images/feature_pca.png"):
        assert (trained / name).stat().st_size > 0
    page = (trained / "report.html").read_text()
    assert page.count('class="example"') == 16
    assert f"{100 * metrics['val/mIoU']:.1f} %" in page
    assert len(page) < 2e6


@pytest.mark.slow
def test_processes_that_are_forked_leave_all_rows_of_the_metrics(tmp_path: Path) -> None:
    """The parent counts none of their steps; the final evaluation must not be logged as step 0."""
    code = (
        "from pathlib import Path; from tests.support.composition import SMALL, composed; "
        "from gate_lightning.engine.jobs.training import train; "
        "given = [*SMALL, 'techniques=prompt', 'trainer.devices=2', '+trainer.strategy=ddp_fork', 'logger=csv', "
        "'trainer.log_every_n_steps=1']; "
        f"train(composed(*given), given, Path({str(tmp_path)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    rows = read_csv(tmp_path / "metrics.csv")
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps)) and steps[0] < steps[-1]
    assert rows[-1]["test/mIoU"] and any(row["train/loss"] for row in rows)


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], list[Any]]:
    """Metrics of the same run once more, and what its callbacks were told at the end, with the files at that time."""
    folder, told = tmp_path_factory.mktemp("repeated") / "run", []

    def on_run_end(callback: Interrupt, trainer: object, task: object, metrics: dict[str, float]) -> None:
        state = json.loads((folder / "status.json").read_text())
        told.append((state, metrics, json.loads((folder / "metrics.json").read_text())))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Interrupt, "on_run_end", on_run_end, raising=False)
        return run(folder, "techniques=prompt"), told


@pytest.mark.thorough
def test_callbacks_are_told_of_the_end_when_all_is_written(repeated: tuple[dict[str, float], list[Any]]) -> None:
    metrics, told = repeated
    assert told == [({"status": "done"}, metrics, metrics)]


def test_checkpoints_hold_no_frozen_weights(trained: Path) -> None:
    state = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    assert state["state_dict"]
    assert not [name for name in state["state_dict"] if name.startswith("extractor")]
    assert state["frozen"]["backbone"]


def test_evaluation_repeats_the_reported_metrics(trained: Path, tmp_path: Path) -> None:
    config = composed(f"run={trained}", f"output={tmp_path}", "split=test", name="eval")
    history = (trained / "metrics.csv").read_text()
    metrics = evaluate(config, [f"run={trained}"], tmp_path)
    assert (trained / "metrics.csv").read_text() == history
    assert (tmp_path / "classes_test.csv").is_file()
    reported = json.loads((trained / "metrics.json").read_text())
    assert metrics["test/mIoU"] == pytest.approx(reported["test/mIoU"], abs=1e-9)


@pytest.mark.thorough
def test_another_data_set_is_read_with_the_trained_prompts(trained: Path, tmp_path: Path) -> None:
    given = [f"run={trained}", "dataset.domain=source", f"output={tmp_path}"]
    metrics = evaluate(composed(*given, name="eval"), given, tmp_path)
    assert 0 <= metrics["val/mIoU"] <= 1
    trained_on = runs.load_config(trained).trained_on
    assert trained_on.prompt_simple == "a photo"


def test_labelling_images(trained: Path, tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    config = composed(f"run={trained}", f"input={tmp_path / 'a.png'}", f"output={tmp_path / 'out'}", name="eval")
    evaluate(config, [f"run={trained}"], tmp_path)
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "a.png"))
    assert mask.shape == (70, 90)
    assert np.array_equal(mask, gate_lightning.load_run(trained).predict(tmp_path / "a.png"))


@pytest.mark.thorough
def test_same_seed_same_metrics(trained: Path, repeated: tuple[dict[str, float], list[Any]]) -> None:
    again, _ = repeated
    reported = json.loads((trained / "metrics.json").read_text())
    assert {name: again[name] for name in reported} == reported


def test_resume_equals_uninterrupted(trained: Path, tmp_path: Path) -> None:
    class Stop(Exception):  # noqa: N818 - no error
        pass

    from gate_lightning.tasks.segmentation import SegmentationTask

    original = SegmentationTask.training_step

    def stopping(self: SegmentationTask, batch: object, batch_idx: int) -> object:
        if self.global_step == 3:
            raise Stop
        return original(self, batch, batch_idx)  # type: ignore[arg-type]

    folder = tmp_path / "killed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentationTask, "training_step", stopping)
        with pytest.raises(Stop):
            run(folder, "techniques=prompt", "callbacks.checkpoint.every_n_steps=1")
    given = [f"resume={folder}"]
    resumed = train(composed(*given), given, folder)
    reported = json.loads((trained / "metrics.json").read_text())
    assert {name: resumed[name] for name in reported} == pytest.approx(reported, abs=1e-7)


def test_resuming_a_finished_run_says_so_and_measures_nothing(
    trained: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(training, "_train", None)
    given, before = [f"resume={trained}"], (trained / "metrics.json").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        assert train(composed(*given), given, trained) == json.loads((trained / "metrics.json").read_text())
    assert f"{trained} is finished" in caplog.text
    assert (trained / "metrics.json").stat().st_mtime_ns == before


def test_resume_names_changed_keys(trained: Path) -> None:
    given = [f"resume={trained}", "seed=5"]
    with pytest.raises(ResumeError, match=r"seed: 0 → 5"):
        train(composed(*given), given, trained)


def test_a_missing_adapter_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"technique\.lora\.weights\.moderate"):
        run(tmp_path / "run", "techniques=lora", "technique.lora.weights.moderate=null")


def test_a_run_of_a_gpu_is_refused_before_it_is_loaded_unless_no_trainer_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loaded(Exception):  # noqa: N818 - no error
        pass

    def load(*_: object) -> None:
        raise Loaded

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("gate_lightning.engine.jobs.trained_run.TrainedRun", load)
    runs.save_config(runs.resolve(composed("trainer=gpu")), tmp_path)
    for given in ([], ["split=test"], ["submission=true"]):
        with pytest.raises(ConfigError, match=r"trainer\.accelerator=gpu: torch finds no GPU here; .* trainer=cpu"):
            evaluate(composed(f"run={tmp_path}", *given, name="eval"), [f"run={tmp_path}", *given], tmp_path)
    for given in (["trainer=cpu"], [f"input={tmp_path}"]):  # images are labelled on the CPU
        with pytest.raises(Loaded):
            evaluate(composed(f"run={tmp_path}", *given, name="eval"), [f"run={tmp_path}", *given], tmp_path)


def test_eval_without_anything_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run=<run folder>"):
        evaluate(composed(name="eval"), [], tmp_path)


@pytest.mark.parametrize(
    "overrides",
    [
        ("ablation=pixels", "~backbone.weights"),
        pytest.param(("ablation=plain_edges",), marks=pytest.mark.thorough),
        pytest.param(("ablation=plain_noise3",), marks=pytest.mark.thorough),
        pytest.param(
            ("techniques=prompt", "captions=shuffled", "head=linear", "amalgamation=concat", "layers=practical"),
            marks=pytest.mark.thorough,
        ),
    ],
    ids=lambda overrides: overrides[0],
)
def test_settings_train(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    given = [item for item in SMALL if not (item.startswith("head.") and "head=linear" in overrides)]
    given = [item for item in given if not (item.startswith("backbone.") and "ablation=pixels" in overrides)]
    given += [item for item in overrides if not item.startswith("~")]
    given += ["dataset.train=4", "trainer.max_steps=1", "trainer.val_check_interval=1"]
    config: DictConfig = composed(*given)
    assert math.isfinite(train(config, given, tmp_path / "run")["val/loss"])
