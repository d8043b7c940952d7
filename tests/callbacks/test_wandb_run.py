"""Runs on Weights & Biases: offline ones are read back, those with a key meet no network and a bad key."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gate_lightning.callbacks import wandb_run
from gate_lightning.callbacks.description import RunDescription
from gate_lightning.callbacks.loggers import RunLog, wandb_logger
from gate_lightning.callbacks.state.checkpoint import RunCheckpoint
from gate_lightning.callbacks.wandb_run import close_dashboards, closing_dashboards
from gate_lightning.errors import Interrupted
from tests.support.segmentation_fakes import FakeData, make_task, make_trainer
from tests.support.wandb_files import offline_runs

wandb = pytest.importorskip("wandb")

#: nobody listens there
NOBODY = "http://127.0.0.1:9"
KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(autouse=True)
def nobody_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    from wandb.sdk.lib import wbauth

    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home" / "wandb"))
    monkeypatch.setattr(wandb_run, "_offline_because", [])
    wandb.teardown()
    yield
    close_dashboards()
    wbauth.unauthenticate_session(update_settings=True)
    wandb.teardown()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def netrc(tmp_path: Path, host: str) -> None:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    (home / ".netrc").write_text(f"machine {host} login user password {KEY}\n")
    (home / ".netrc").chmod(0o600)


def test_a_run_is_offline_without_a_key_and_nobody_is_warned(caplog: pytest.LogCaptureFixture) -> None:
    assert wandb_run._mode() == "offline"
    assert warnings_of(caplog) == []


def test_a_key_is_found_where_wandb_login_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(wandb_run, "_unreachable", asked.append)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    netrc(tmp_path, "api.wandb.ai")
    assert wandb_run._mode() == "offline"  # a key of another server
    netrc(tmp_path, "wandb.example.org")
    wandb.teardown()
    assert wandb_run._mode() == "online"
    assert asked == ["https://wandb.example.org"]


def test_a_key_of_wandbs_own_server_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.sdk.lib import wbauth

    monkeypatch.setattr(wandb_run, "_unreachable", lambda server: None)
    server = wandb.setup().settings.base_url
    wbauth.write_netrc_auth(host=server, api_key=KEY)  # what `wandb login` does
    assert wandb_run._mode() == "online"


def test_a_key_without_network_goes_on_offline_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", NOBODY)
    assert [wandb_run._mode() for _ in range(3)] == ["offline"] * 3
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"wandb: {NOBODY} does not answer: ")
    assert KEY not in caplog.text


def test_a_malformed_key_goes_on_offline_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert [wandb_run._mode() for _ in range(2)] == ["offline"] * 2
    (warning,) = warnings_of(caplog)
    assert "WANDB_API_KEY invalid" in warning


@pytest.mark.parametrize("mode", ["onlin", ""])
def test_a_bad_mode_goes_on_offline_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    assert [wandb_run._mode() for _ in range(2)] == ["offline"] * 2
    assert warnings_of(caplog) == [
        f"wandb: WANDB_MODE is {mode!r}, expected online, offline or disabled; the run goes on offline"
    ]


def test_online_on_request_without_a_key_never_asks_for_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    assert wandb_run._mode() == "offline"
    assert warnings_of(caplog) == ["wandb: there is no key: wandb login; the run goes on offline"]


@pytest.mark.thorough
def test_a_server_that_fails_at_the_beginning_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", NOBODY)
    monkeypatch.setattr(wandb_run, "_unreachable", lambda server: None)
    monkeypatch.setattr(wandb_run, "BEGIN", 1.0)
    logger = wandb_logger(str(tmp_path))
    logger.log_metrics({"a": 1.0}, 5)
    assert logger.experiment.offline
    close_dashboards()
    (warning,) = [text for text in warnings_of(caplog) if text.startswith("wandb: ")]
    assert warning.startswith("wandb: the run could not begin on the server: ")
    (run,) = offline_runs(tmp_path)
    assert [(row["_step"], row["a"]) for row in run.rows] == [(5, 1.0)]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_an_unwritable_home_is_no_reason_to_stop_or_to_talk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/dev/null")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    wandb_logger(str(tmp_path)).log_metrics({"a": 1.0}, 0)
    close_dashboards()
    (run,) = offline_runs(tmp_path)
    assert run.exit_code == 0
    assert capfd.readouterr() == ("", "")


def test_what_is_told_of_a_run_reaches_its_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    told = RunDescription(
        "timestep=25",
        group="layers",
        tags=("scenes", "tiny"),
        values={"timestep": 25, "backbone": "tiny", "cached": None},
        settings={"optimizer": {"lr": 0.1}},
        monitor="val/mIoU",
    )
    logger = wandb_logger(str(tmp_path), description=told)
    for step, value in enumerate((0.25, 0.5, 0.375)):
        logger.log_metrics({"val/mIoU": value}, step)
    close_dashboards()
    (run,) = offline_runs(tmp_path)
    assert (run.run.display_name, run.run.run_group, run.run.job_type) == ("timestep=25", "layers", "train")
    assert list(run.run.tags) == ["scenes", "tiny"]
    config = {key: value for key, value in run.config.items() if not key.startswith("_")}
    assert config == {"timestep": 25, "backbone": "tiny", "cached": None, "settings": {"optimizer": {"lr": 0.1}}}
    assert run.summary["val/mIoU"] == {"max": 0.5, "last": 0.375}
    assert run.exit_code == 0
    place = f"wandb: offline, in {tmp_path}/wandb; upload it by: wandb sync {tmp_path}/wandb"
    said = [record.getMessage() for record in caplog.records if record.name == wandb_run.__name__]
    assert said == [place, place]
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", str(tmp_path / "wandb")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Would sync 1 run(s)" in shown.stderr and f"run-{run.run.run_id}.wandb" in shown.stderr


@pytest.mark.parametrize(
    ("error", "exit_code"), [(ValueError("x"), 1), (Interrupted("stopped", 2), 255), (KeyboardInterrupt(), 255)]
)
def test_a_run_that_fails_or_is_stopped_is_finished_as_that(
    tmp_path: Path, error: BaseException, exit_code: int
) -> None:
    def training() -> None:
        with closing_dashboards():
            wandb_logger(str(tmp_path)).log_metrics({"a": 1.0}, 0)
            raise error

    with pytest.raises(type(error)):
        training()
    assert wandb.run is None
    (run,) = offline_runs(tmp_path)
    assert run.exit_code == exit_code


def test_a_run_that_nobody_ended_is_no_part_of_the_next(tmp_path: Path) -> None:
    for name in ("a", "b"):
        wandb_logger(str(tmp_path / name)).log_metrics({name: 1.0}, 0)
    close_dashboards()
    ((first,), (second,)) = offline_runs(tmp_path / "a"), offline_runs(tmp_path / "b")
    assert first.run.run_id != second.run.run_id
    assert [set(run.rows[0]) & {"a", "b"} for run in (first, second)] == [{"a"}, {"b"}]


def test_rows_are_steps_and_none_is_lost(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, logger=wandb_logger(str(tmp_path)))
    trainer.fit(make_task(), FakeData())
    trainer.test(make_task(), FakeData(), verbose=False)
    close_dashboards()
    (run,) = offline_runs(tmp_path)
    assert [row["_step"] for row in run.rows if "train/loss" in row] == list(range(10))
    assert [row["_step"] for row in run.rows if "val/mIoU" in row] == [3, 7]
    assert sum("test/mIoU" in row for row in run.rows) == 1


@pytest.mark.thorough
def test_a_resumed_run_continues_the_same_run_without_double_rows(tmp_path: Path) -> None:
    def trained(steps: int) -> None:
        loggers = [RunLog(str(tmp_path)), wandb_logger(str(tmp_path))]
        trainer = make_trainer(tmp_path, RunCheckpoint(3), logger=loggers, max_steps=steps)
        last = tmp_path / "checkpoints" / "last.ckpt"
        trainer.fit(make_task(), FakeData(), ckpt_path=last if last.is_file() else None, weights_only=True)
        close_dashboards()

    trained(6)
    time.sleep(1)  # the names of the folders count seconds
    trained(10)
    first, second = offline_runs(tmp_path)
    assert first.run.run_id == second.run.run_id
    steps = [row["_step"] for run in (first, second) for row in run.rows if "train/loss" in row]
    assert steps == list(range(10))
