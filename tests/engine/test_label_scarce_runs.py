"""The label-scarce protocol as one command: splits, members that stop, resume, evaluation."""

from __future__ import annotations

import csv
import json
import os
import signal
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.jobs import resplits
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.jobs.resplits import of_split, repeats_of
from gate_lightning.engine.jobs.trained_run import load_run
from gate_lightning.engine.jobs.training import train
from gate_lightning.errors import ConfigError, GateError, Interrupted, ResumeError
from gate_lightning.tasks.label_scarce.task import LabelScarceTask
from gate_lightning.tools.comparison.compare import find_runs
from tests.support.composition import composed

SMALL = (
    "task=label_scarce",
    "backbone.weights=random",
    "techniques=[{name: a, techniques: []}, {name: b, techniques: []}]",  # two noises of the same branch
    "layers=[up-level1-upsampler-out,up-level2-upsampler-out]",
    *("dataset.train=3", "dataset.val=1", "dataset.test=2"),
    *("task.data.members=3", "task.data.pixels_per_batch=16", "task.start_epoch=0", "task.patience=4"),
    *("trainer.accelerator=cpu", "logger=csv"),
)


class Stop(Exception):  # noqa: N818 - no error
    pass


def run(folder: Path, *overrides: str) -> dict[str, float]:
    given = [*SMALL, *overrides]
    return train(composed(*given), given, folder)


def resume(folder: Path, *overrides: str) -> dict[str, float]:
    given = [f"resume={folder}", *overrides]
    return train(composed(*given), given, folder)


def killed(folder: Path, step: int, seed: int, *overrides: str) -> None:
    """A run that dies before ``step`` of the split with this seed."""
    original = LabelScarceTask.training_step

    def dying(self: LabelScarceTask, batch: object, batch_idx: int) -> object:
        if self.global_step == step and self.trainer.datamodule.split_seed == seed:  # type: ignore[attr-defined]
            raise Stop
        return original(self, batch, batch_idx)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelScarceTask, "training_step", dying)
        with pytest.raises(Stop):
            run(folder, "callbacks=quiet", "callbacks.checkpoint.every_n_steps=1", *overrides)


def state(folder: Path) -> dict[str, object]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def protocol(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("protocol") / "run"
    run(folder, "repeats=2")
    return folder


@pytest.mark.slow
def test_every_split_is_a_run_of_its_own_and_the_protocol_their_mean(protocol: Path) -> None:
    singles = [json.loads((protocol / f"split{number}" / "metrics.json").read_text()) for number in range(2)]
    together = json.loads((protocol / "metrics.json").read_text())
    for name in ("test/mIoU_ddpm", "test/mIoU", "test/uncertainty"):
        values = [single[name] for single in singles]
        assert together[name] == pytest.approx(statistics.mean(values))
        assert together[f"{name}_std"] == pytest.approx(statistics.stdev(values))
    assert singles[0] != singles[1]
    with (protocol / "splits.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["split0", "split1", "mean", "std"]
    assert [rows[number]["task.data.split_seed"] for number in range(2)] == ["0", "1"]
    with (protocol / "classes_test.csv").open() as file:
        assert {"class", "IoU_ddpm", "IoU_ddpm std"} <= set(next(csv.DictReader(file)))
    for name in ("split.json", "classes_test.csv", "uncertainty_test.csv", "images/uncertainty_test.png"):
        assert (protocol / "split1" / name).stat().st_size > 0


@pytest.mark.thorough
def test_every_image_is_extracted_once_for_all_splits(protocol: Path) -> None:
    assert len(list((protocol / "features").rglob("*.safetensors"))) == 5
    assert not list(protocol.glob("split*/features"))


@pytest.mark.thorough
def test_members_stop_by_themselves_at_different_steps(protocol: Path) -> None:
    stopping = state(protocol / "split0")["stopping"]
    assert not stopping["active"].any()
    assert len(set(stopping["steps"].tolist())) > 1


@pytest.mark.slow
def test_two_processes_train_the_splits_that_one_does(protocol: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, "repeats=2", "trainer.devices=2", "+trainer.strategy=ddp")
    assert json.loads((folder / "metrics.json").read_text()) == json.loads((protocol / "metrics.json").read_text())
    for name in ("split0", "split1"):
        assert (folder / name / "config.yaml").read_bytes() == (protocol / name / "config.yaml").read_bytes()
        for key, value in state(protocol / name)["state_dict"].items():
            assert torch.equal(value, state(folder / name)["state_dict"][key]), key


@pytest.mark.parametrize(("devices", "shares"), [(2, [[0, 2], [1]]), ("0,3", [[0, 2], [1]]), (8, [[0], [1], [2]])])
def test_splits_are_divided_among_devices(
    devices: object, shares: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[list[int]] = []

    def note(config: DictConfig, folder: Path, checkpoint: Path | None) -> dict[str, float]:
        assert (config.trainer.devices, config.repeats, "strategy" in config.trainer) == (1, 1, False)
        trained[-1].append(config.task.data.split_seed)
        return {}

    def here(work: Callable[..., None], arguments: Sequence[tuple[object, ...]]) -> int:
        for given in arguments:
            trained.append([])
            work(*given)
        return 0

    monkeypatch.setattr(resplits, "run_in_processes", here)
    monkeypatch.setattr(resplits.multiprocessing.current_process(), "name", "SpawnProcess-1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("gate_lightning.utils.resources._Shared.processes", 1)
    config = runs.resolve(composed(*SMALL, "repeats=3", f"trainer.devices='{devices}'", "+trainer.strategy=ddp"))
    resplits.train_repeats(config, [], tmp_path, note)
    assert trained == shares


def test_a_process_that_fails_or_is_stopped_says_how_all_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = runs.resolve(composed(*SMALL, "repeats=3", "trainer.devices=2"))
    for status, error, said in ((2, GateError, "exit status 2"), (143, Interrupted, "stopped by SIGTERM")):
        monkeypatch.setattr(resplits, "run_in_processes", lambda *_, status=status: status)
        with pytest.raises(error, match=rf"{said}.*python train\.py resume={tmp_path}"):
            resplits.train_repeats(config, [], tmp_path, lambda *_: {})


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(protocol: Path, tmp_path: Path) -> None:
    steps = sorted(state(protocol / "split1")["stopping"]["steps"].tolist())
    middle = steps[0] + 1  # one member has stopped
    assert middle < steps[-1]
    folder = tmp_path / "killed"
    killed(folder, middle, 1, "repeats=2")
    assert state(folder / "split1")["stopping"]["active"].sum() in (1, 2)
    untouched = (folder / "split0" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert resume(folder) == json.loads((protocol / "metrics.json").read_text())
    assert (folder / "split0" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == untouched
    for name, value in state(protocol / "split1")["state_dict"].items():
        assert torch.equal(value, state(folder / "split1")["state_dict"][name]), name


def test_an_interrupt_says_how_all_splits_go_on(tmp_path: Path) -> None:
    original = LabelScarceTask.training_step

    def asked(self: LabelScarceTask, batch: object, batch_idx: int) -> object:
        if self.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch, batch_idx)  # type: ignore[arg-type]

    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelScarceTask, "training_step", asked)
        with pytest.raises(Interrupted, match=f"with all splits: python train.py resume={folder}$"):
            run(folder, "callbacks=quiet", "repeats=2")
    assert json.loads((folder / "split0" / "status.json").read_text())["status"] == "interrupted"
    assert state(folder / "split0")["global_step"] == 3
    assert not (folder / "split1").exists()


@pytest.mark.slow
def test_a_run_that_had_only_its_evaluation_left_trains_no_more(protocol: Path, tmp_path: Path) -> None:
    folder = tmp_path / "late"
    with pytest.MonkeyPatch.context() as patch:

        def dying(*args: object, **kwargs: object) -> None:
            raise Stop

        patch.setattr(LabelScarceTask, "test_step", dying)
        with pytest.raises(Stop):
            run(folder, "callbacks=quiet", "repeats=1")
    before = state(folder)["global_step"]
    metrics = resume(folder)
    assert metrics == pytest.approx(json.loads((protocol / "split0" / "metrics.json").read_text()))
    assert state(folder)["global_step"] == before


@pytest.mark.parametrize(("where", "words"), [("on_fit_start", "before the first step"), ("test_step", "evaluation")])
@pytest.mark.slow
def test_ctrl_c_where_no_step_is_made(where: str, words: str, protocol: Path, tmp_path: Path) -> None:
    """While features are computed, and while images are measured, both of which take long with a large model."""

    def ctrl_c(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    folder, handler = tmp_path / "run", signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelScarceTask, where, ctrl_c)
        with pytest.raises(Interrupted, match=rf"{words} by SIGINT.*resume={folder}$"):
            run(folder, "callbacks=quiet", "repeats=1")
    assert signal.getsignal(signal.SIGINT) == handler
    assert json.loads((folder / "status.json").read_text())["status"] == "running"  # what SIGKILL leaves, too
    assert resume(folder) == pytest.approx(json.loads((protocol / "split0" / "metrics.json").read_text()))


@pytest.mark.thorough
def test_evaluation_repeats_the_reported_metrics(protocol: Path, tmp_path: Path) -> None:
    reported = json.loads((protocol / "metrics.json").read_text())
    config = composed(f"run={protocol}", name="eval")
    assert evaluate(config, [f"run={protocol}"], tmp_path) == pytest.approx(reported)
    single = protocol / "split1"
    config = composed(f"run={single}", f"output={tmp_path}", name="eval")
    found = evaluate(config, [f"run={single}"], tmp_path)
    assert found == pytest.approx(json.loads((single / "metrics.json").read_text()))


@pytest.mark.thorough
def test_images_are_labelled_by_one_split(protocol: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (80, 80, 3), dtype=np.uint8)
    labels = load_run(protocol / "split0").predict(image)
    assert labels.shape == (80, 80)
    with pytest.raises(ConfigError, match="split0"):
        evaluate(composed(f"run={protocol}", "input=x", name="eval"), [f"run={protocol}"], tmp_path)


@pytest.mark.thorough
def test_resuming_a_finished_protocol_trains_nothing_again(protocol: Path) -> None:
    before = (protocol / "split0/checkpoints/last.ckpt").stat().st_mtime_ns
    assert resume(protocol) == json.loads((protocol / "metrics.json").read_text())
    assert (protocol / "split0/checkpoints/last.ckpt").stat().st_mtime_ns == before


@pytest.mark.thorough
def test_splits_of_other_settings_are_not_taken_for_one_s_own(protocol: Path) -> None:
    written = (protocol / "config.yaml").read_text()
    with pytest.raises(ResumeError, match=r"holds a run already.*resume="):
        run(protocol, "repeats=2", "task.patience=9")
    with pytest.raises(ResumeError, match=r"(?s)the configuration differs.*task\.patience: 4 → 9"):
        resume(protocol, "++task.patience=9")
    assert (protocol / "config.yaml").read_text() == written


@pytest.mark.thorough
def test_splits_are_compared_like_seeds(protocol: Path) -> None:
    found = find_runs([protocol])
    assert [one.folder.name for one in found] == ["split0", "split1"]
    assert len({one.seed for one in found}) == 2
    assert len({one.label for one in found}) == 1


@pytest.mark.slow
def test_a_cap_stops_all_members(tmp_path: Path) -> None:
    run(tmp_path / "run", "callbacks=quiet", "repeats=1", "task.max_steps_per_member=3", "task.patience=100")
    saved = state(tmp_path / "run")
    assert saved["stopping"]["steps"].tolist() == [3, 3, 3]
    assert saved["global_step"] == 3


def test_the_uncertainty_of_the_test_images_is_reported(tmp_path: Path) -> None:
    given = ("callbacks=label_scarce", "callbacks.cost=null", "repeats=1", "task.max_steps_per_member=2")
    run(tmp_path / "run", *given)
    with (tmp_path / "run" / "uncertainty_test.csv").open(newline="") as file:
        values = [float(row["uncertainty"]) for row in csv.DictReader(file)]
    assert values == sorted(values, reverse=True)
    assert values
    assert (tmp_path / "run" / "images" / "uncertainty_test.png").is_file()


def test_memory_is_refused_before_it_is_taken(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"this needs .* for the features of 3 labelled images.*labelled"):
        run(tmp_path / "run", "repeats=1", "task.memory_gib=0.01")


@pytest.mark.slow
def test_concatenation_takes_branches_of_any_width(tmp_path: Path) -> None:
    branches = (
        "techniques=[{name: a, layers: [up-level1-upsampler-out]}, {name: b, layers: [up-level3-repeat0-vit-out]}]"
    )
    settings = ("callbacks=quiet", "repeats=1", branches, "amalgamation=concat_pixels", "task.max_steps_per_member=2")
    assert 0 <= run(tmp_path / "run", *settings)["test/mIoU_ddpm"] <= 1
    with pytest.raises(ConfigError, match="concat_pixels"):
        run(tmp_path / "other", "repeats=1", branches)


def test_seeds_of_a_split_and_what_cannot_be_split() -> None:
    config = composed(*SMALL)
    third = of_split(config, 3)
    assert (third.repeats, third.seed, third.task.data.split_seed, third.head.decode.seed) == (1, 0, 3, 3)
    assert third.cache.folder == "run:../features"
    with pytest.raises(ConfigError, match="split is fixed"):
        repeats_of(composed(*SMALL, "task.data.split_seed=null"))
    with pytest.raises(ConfigError, match="whole number from 1"):
        repeats_of(composed(*SMALL, "repeats=0"))
    with pytest.raises(ConfigError, match=r"python train\.py trainer\.devices"):
        repeats_of(composed(*SMALL, "+trainer.num_nodes=2"))
