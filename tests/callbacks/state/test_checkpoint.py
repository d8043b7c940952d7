from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback

from gate_lightning.callbacks.state.checkpoint import RunCheckpoint
from gate_lightning.callbacks.state.ema import WeightAverage
from gate_lightning.errors import CacheError, ConfigError, NotFiniteError
from tests.support.segmentation_fakes import FakeData, make_task, make_trainer


class Scripted(Callback):
    """Logs the metric ``score`` that the test says."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("score", self.values.pop(0))


class Watch(Callback):
    """The step of the last state on disk, after every batch and validation."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int | None]] = []

    def note(self, event: str, trainer: Any) -> None:
        path = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        step = torch.load(path, weights_only=True)["global_step"] if path.exists() else None
        self.seen.append((event, trainer.global_step, step))

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.note("batch", trainer)

    def on_validation_start(self, trainer: Any, *_: Any) -> None:
        self.note("validation", trainer)


def load(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def test_last_is_written_every_n_steps_after_a_validation_that_is_due(tmp_path: Path) -> None:
    watch = Watch()
    make_trainer(tmp_path, watch, RunCheckpoint(3), max_steps=9, val_check_interval=6).fit(make_task(), FakeData())
    saved = {step: last for event, step, last in watch.seen if event == "batch"}
    assert saved == {0: None, 1: None, 2: None, 3: 3, 4: 3, 5: 3, 6: 6, 7: 6, 8: 6}
    assert [entry for entry in watch.seen if entry[0] == "validation"] == [("validation", 6, 3)]
    assert load(tmp_path, "last")["global_step"] == 9


def test_last_counts_optimiser_steps(tmp_path: Path) -> None:
    watch = Watch()
    settings = {"max_steps": 4, "accumulate_grad_batches": 2, "val_check_interval": 100}
    make_trainer(tmp_path, watch, RunCheckpoint(2), **settings).fit(make_task(), FakeData())
    assert [last for _, _, last in watch.seen] == [None, None, None, None, 2, 2, 2, 2]


def test_final_state_is_written_whatever_the_interval(tmp_path: Path) -> None:
    make_trainer(tmp_path, RunCheckpoint(1000), max_steps=5).fit(make_task(), FakeData())
    assert load(tmp_path, "last")["global_step"] == 5


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [("max", (0.2, 0.5, 0.5, 0.1), 4), ("min", (0.5, 0.2, 0.1, 0.3), 6), ("max", (0.1, 0.05, 0.0, -0.1), 2)],
)
def test_best_is_the_best(tmp_path: Path, mode: str, values: tuple[float, ...], best: int) -> None:
    keeper = RunCheckpoint(3, "score", mode)
    trainer = make_trainer(tmp_path, Scripted(*values), keeper, max_steps=8, val_check_interval=2)
    trainer.fit(make_task(), FakeData())
    assert load(tmp_path, "best")["global_step"] == best
    assert keeper.best_step == best
    assert trainer.checkpoint_callback.best_model_path == str(tmp_path / "checkpoints" / "best.ckpt")


def test_best_score_survives_resume_in_a_folder_that_moved(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    settings = {"max_steps": 2, "val_check_interval": 2}
    make_trainer(old, Scripted(0.9), RunCheckpoint(1, "score"), **settings).fit(make_task(), FakeData())
    shutil.move(old, new)
    keeper, last = RunCheckpoint(1, "score"), new / "checkpoints" / "last.ckpt"
    trainer = make_trainer(new, Scripted(0.8), keeper, **{**settings, "max_steps": 4})
    trainer.fit(make_task(), FakeData(), ckpt_path=last, weights_only=True)
    assert (keeper.best_score, keeper.best_step) == (pytest.approx(0.9), 2)
    assert load(new, "best")["global_step"] == 2
    assert keeper.best_model_path == str(new / "checkpoints" / "best.ckpt")
    assert not old.exists()


def test_best_holds_the_averaged_weights_that_were_measured(tmp_path: Path) -> None:
    task, average = make_task(), WeightAverage(0.9)
    callbacks = [average, Scripted(0.5), RunCheckpoint(100, "score")]
    make_trainer(tmp_path, *callbacks, max_steps=4, val_check_interval=4).fit(task, FakeData())
    best = load(tmp_path, "best")["state_dict"]
    assert all(torch.equal(best[name], value) for name, value in average._average.items())
    assert not torch.equal(best["head.classifiers.0.weight"], task.head.classifiers[0].weight)


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    make_trainer(tmp_path, RunCheckpoint(1, "val/mIoU")).fit(make_task(), FakeData())
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_failed_write_leaves_the_last_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path, RunCheckpoint(2), max_steps=4)
    save, written = trainer.save_checkpoint, []

    def broken_second_time(path: Path, **kwargs: Any) -> None:
        written.append(path)
        if len(written) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "no space left")
        save(path, **kwargs)

    monkeypatch.setattr(trainer, "save_checkpoint", broken_second_time)
    with pytest.raises(CacheError, match=r"last\.ckpt cannot be written; the disk is full"):
        trainer.fit(make_task(), FakeData())
    assert load(tmp_path, "last")["global_step"] == 2
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


def test_unknown_monitor_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"monitor=val/miou: .*val/mIoU.*The state is kept"):
        make_trainer(tmp_path, RunCheckpoint(100, "val/miou"), max_steps=4, val_check_interval=4).fit(
            make_task(), FakeData()
        )
    assert load(tmp_path, "last")["global_step"] == 4  # with which the run goes on


def test_a_metric_that_is_no_number_loses_nothing(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, Scripted(float("nan")), RunCheckpoint(100, "score"), max_steps=4, val_check_interval=4
    )
    with pytest.raises(NotFiniteError, match="score is nan"):
        trainer.fit(make_task(), FakeData())
    assert load(tmp_path, "last")["global_step"] == 4


def test_best_is_what_trainer_evaluates_as_best(tmp_path: Path) -> None:
    task, data = make_task(), FakeData()
    trainer = make_trainer(tmp_path, RunCheckpoint(100, "val/mIoU"), max_steps=8)
    trainer.fit(task, data)
    score = trainer.checkpoint_callback.best_score
    (result,) = trainer.validate(task, data, ckpt_path=tmp_path / "checkpoints" / "best.ckpt", verbose=False)
    assert result["val/mIoU"] == pytest.approx(score, abs=1e-6)


def test_trial_runs_leave_no_files(tmp_path: Path) -> None:
    make_trainer(tmp_path, RunCheckpoint(1, "val/mIoU"), fast_dev_run=2).fit(make_task(), FakeData())
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("settings", [{"every_n_steps": 0}, {"mode": "best"}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        RunCheckpoint(**settings)


def test_a_run_with_no_step_left_has_its_metrics_from_the_checkpoint(tmp_path: Path) -> None:
    make_trainer(tmp_path, Scripted(0.5), RunCheckpoint(1, "score"), max_steps=4).fit(make_task(), FakeData())
    keeper = RunCheckpoint(1, "score")
    trainer = make_trainer(tmp_path, Scripted(), keeper, max_steps=4)
    last = tmp_path / "checkpoints" / "last.ckpt"
    trainer.fit(make_task(), FakeData(), ckpt_path=last, weights_only=True)
    assert keeper.metrics["val/mIoU"] == load(tmp_path, "last")["callbacks"]["RunCheckpoint"]["metrics"]["val/mIoU"]
    assert "val/mIoU" not in trainer.callback_metrics


def test_a_resumed_run_keeps_metrics_that_it_has_not_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"val/mIoU": 0.5, "train/loss": 2.0}
    keeper = RunCheckpoint(1, "val/mIoU")
    keeper.load_state_dict({"best_score": 0.5, "best_step": 3, "metrics": before})
    monkeypatch.setattr("gate_lightning.callbacks.state.checkpoint._save", lambda *given, **named: tmp_path)
    trainer: Any = SimpleNamespace(global_step=4, callback_metrics={"train/loss": 1.0}, default_root_dir=str(tmp_path))
    keeper.save_last(trainer)
    assert keeper.state_dict()["metrics"] == {"val/mIoU": 0.5, "train/loss": 1.0}
