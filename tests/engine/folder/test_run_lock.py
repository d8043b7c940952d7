"""One process writes into a run folder, and no run begins where one is."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from hydra.core.hydra_config import HydraConfig

from gate_lightning.engine import cli
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.folder import run_lock
from gate_lightning.engine.folder.run_lock import holder_of, new_folder, occupied, require_new
from gate_lightning.engine.jobs.evaluation import _results_of
from gate_lightning.engine.jobs.training import train
from gate_lightning.errors import ConfigError, ResumeError
from tests.support.composition import SMALL, composed
from tests.support.paths import REPOSITORY

HOLDING = """
import sys, time
from pathlib import Path
from gate_lightning.engine.folder.run_lock import occupied
from gate_lightning.errors import ResumeError
try:
    with occupied(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except ResumeError as error:
    print("refused", error, flush=True)
"""

HERE = {"host": socket.gethostname(), "since": "now"}


def start(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,  # type: ignore[call-overload]
    )


def test_a_second_process_is_refused_and_a_killed_one_is_not_waited_for(tmp_path: Path) -> None:
    other = start(tmp_path)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with (
        pytest.raises(ResumeError, match=rf"process {other.pid} on {socket.gethostname()} has been writing into"),
        occupied(tmp_path),
    ):
        pytest.fail("two hold it")
    holder = holder_of(tmp_path)
    assert holder is not None
    assert holder.pid == other.pid
    other.kill()
    other.wait()
    assert holder_of(tmp_path) is None
    with occupied(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_of_several_that_begin_at_once_one_holds_it(tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text(json.dumps({**HERE, "pid": 1 << 30, "started": 1}))
    others = [start(tmp_path) for _ in range(4)]
    said = [other.stdout.readline().split()[0] for other in others if other.stdout is not None]
    for other in others:
        other.communicate("")
    assert sorted(said) == ["held", "refused", "refused", "refused"]


def test_a_number_that_was_given_again_is_another_process(tmp_path: Path) -> None:
    lock = {"host": socket.gethostname(), "pid": os.getppid(), "started": psutil.Process(os.getppid()).create_time()}
    (tmp_path / "lock.json").write_text(json.dumps({**lock, "since": "now"}))
    with pytest.raises(ResumeError), occupied(tmp_path):
        pass
    (tmp_path / "lock.json").write_text(json.dumps({**lock, "started": lock["started"] - 60, "since": "then"}))
    with occupied(tmp_path):
        pass


def test_of_another_machine_nothing_is_assumed(tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text(json.dumps({"host": "node7", "pid": 1, "started": 1, "since": "yesterday"}))
    with (
        pytest.raises(ResumeError, match=rf"process 1 on node7.*since yesterday.*delete {tmp_path}/lock.json"),
        occupied(tmp_path),
    ):
        pass
    assert holder_of(tmp_path) is not None


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"host": 1}', "[" * 100_000, '{"pid": 1e999}', "\xff"])
def test_a_cut_lock_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text(content)
    assert holder_of(tmp_path) is None
    with occupied(tmp_path):
        assert holder_of(tmp_path) is not None
    assert not (tmp_path / "lock.json").exists()


def test_processes_of_one_job_share_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with occupied(tmp_path):
        monkeypatch.setenv("LOCAL_RANK", "1")
        with occupied(tmp_path):
            pass
        assert (tmp_path / "lock.json").exists()
        monkeypatch.setenv("RANK", "0")  # what Lightning looks at first
        with pytest.raises(ResumeError), occupied(tmp_path):
            pass


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"lock.json cannot be written"), occupied(tmp_path / "file"):
        pass


@pytest.mark.parametrize("there", ["config.yaml", "checkpoints"])
def test_no_run_begins_where_one_is(there: str, tmp_path: Path) -> None:
    (tmp_path / "train.log").touch()  # what Hydra writes before
    (tmp_path / "status.json").write_text('{"status": "failed"}')  # before anything was done
    require_new(tmp_path)
    (tmp_path / there).mkdir()
    with pytest.raises(ResumeError, match=rf"holds a run already \({there}\).*resume={tmp_path}; or begin in another"):
        train(composed(), [], tmp_path)


def test_default_folders_are_each_run_s_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_folder(str(tmp_path / "day" / "12-00-00")), range(24)))
    assert len(set(made)) == 24
    assert sorted(path.name for path in (tmp_path / "day").iterdir()) == sorted(
        f"12-00-00{'' if number == 1 else f'-{number}'}" for number in range(1, 25)
    )


def test_a_default_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/day/12 cannot be made.*paths\.outputs="):
        new_folder(str(tmp_path / "file" / "day" / "12"))


def test_ranks_are_read_as_lightning_reads_them() -> None:
    import inspect

    from lightning.fabric.utilities import rank_zero

    assert str(run_lock._RANKS) in inspect.getsource(rank_zero._get_rank).replace('"', "'")


@pytest.mark.thorough
def test_a_run_that_goes_on_is_neither_resumed_nor_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    runs.save_config(runs.resolve(composed(*SMALL)), folder)
    runs.write_json(folder / "status.json", {"status": "running"})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = start(folder)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    for words in ((f"resume={folder}",), (*SMALL, f"hydra.run.dir={folder}")):
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        assert cli.train_main() == 2
        assert f"process {other.pid} on" in capfd.readouterr().err
    assert _results_of(folder, None, tmp_path / "own") == tmp_path / "own"
    assert _results_of(folder, "chosen", tmp_path / "own") == Path("chosen")
    other.communicate("")
    assert _results_of(folder, None, tmp_path / "own") == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "train.log"} == before


@pytest.mark.thorough
def test_the_default_folder_of_a_command_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where Hydra's configuration is asked again, as Lightning does for the other processes of a job."""
    seen: list[tuple[str, str]] = []

    def noted(config: object, overrides: object, folder: Path, choices: object) -> dict[str, float]:
        seen.append((str(folder), str(Path(HydraConfig.get().run.dir).resolve())))
        return {}

    monkeypatch.setattr("gate_lightning.engine.jobs.training.train", noted)
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["train.py", f"paths.outputs={tmp_path}"])
        assert cli.train_main() == 0
    assert all(folder == asked for folder, asked in seen)
    assert {Path(folder) for folder, _ in seen} == set(tmp_path.glob("*/*"))
    assert len(set(seen)) == 2
