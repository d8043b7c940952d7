"""Signals: one exception with its number, sent twice or not, and workers that leave it to their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gate_lightning.utils import signals
from tests.support.paths import REPOSITORY


def send(number: signal.Signals) -> None:
    """To this process; its handler has run when this returns."""
    signal.raise_signal(number)
    time.sleep(0)


@pytest.mark.parametrize("number", signals.STOPPING)
def test_a_signal_raises_with_its_number_and_handlers_are_given_back(number: signal.Signals) -> None:
    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, handler)  # under nohup SIGHUP is ignored, and stays so
    try:
        with pytest.raises(signals.Stop) as caught, signals.stopping():
            send(number)
        assert caught.value.signal == number
        assert signal.getsignal(number) == handler
        assert signals.received() is None
    finally:
        signal.signal(number, before)


def test_a_signal_that_comes_twice_is_one_and_a_later_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with signals.stopping():
        with pytest.raises(signals.Stop):
            send(signal.SIGTERM)
        send(signal.SIGTERM)  # `timeout` sends it to the process and to its group
        assert signals.received() == signal.SIGTERM
        monkeypatch.setattr(signals, "SAME", -1.0)
        with pytest.raises(signals.Stop) as caught:
            send(signal.SIGINT)
    assert caught.value.signal == signal.SIGTERM  # the first one is named


class _Ended:
    """Raises a signal where Python drops exceptions."""

    def __del__(self) -> None:
        send(signal.SIGTERM)


def _dropped_stop() -> None:
    ended = _Ended()
    del ended
    for _ in range(100):
        time.sleep(0.05)


def test_a_signal_in_a_destructor_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(signals.Stop) as caught, signals.stopping():
        _dropped_stop()
    assert caught.value.signal == signal.SIGTERM
    assert "Exception ignored" not in capsys.readouterr().err


def test_nohup_stays_in_force() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.stopping():
            send(signal.SIGHUP)
            assert signals.received() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def _worker(ready: multiprocessing.connection.Connection) -> None:
    signals.leave_to_parent()
    ready.send(True)
    time.sleep(30)


@pytest.mark.parametrize("method", ["fork", "forkserver"])  # the default of Python 3.13, and of 3.14
def test_a_worker_survives_the_groups_signals_and_obeys_its_parent(method: str) -> None:
    ours, theirs = multiprocessing.Pipe()
    context: Any = multiprocessing.get_context(method)
    worker = context.Process(target=_worker, args=(theirs,), daemon=True)
    with signals.starting_workers():
        worker.start()
    assert ours.recv()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # from another process, as a group signal is
        subprocess.run(["kill", f"-{int(number)}", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    for _ in range(15):  # it would end by itself after 30 s
        worker.terminate()  # signals do not queue: one that comes while another's is pending is lost
        worker.join(1)
        if not worker.is_alive():
            break
    assert worker.exitcode == 0


BEGINS_THREADS = """
import os, signal, threading, time
import torch
from gate_lightning.data.core.samplers import BatchLoader

os.register_at_fork(after_in_child=lambda: threading.Thread(target=time.sleep, args=(60,), daemon=True).start())
class Batches(torch.utils.data.Dataset):
    def __getitem__(self, places): return len(places)
batches = iter(BatchLoader(Batches(), sampler=[[0, 1], [2]], num_workers=1))
assert next(batches) == 2
worker = batches._workers[0]
worker.terminate()
worker.join(10)
assert worker.exitcode == 0, worker.exitcode
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(30)
"""


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="nothing is forked")
def test_a_loader_s_worker_obeys_its_parent_whatever_threads_libraries_start_in_it() -> None:
    command = [sys.executable, "-c", BEGINS_THREADS]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "Error" in done.stderr) == (-signal.SIGTERM, False), done.stderr  # as this process does


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_the_command_is_imported(number: signal.Signals, status: int, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(30)\n")
    code = "import sys; from gate_lightning.utils.signals import run_command; sys.exit(run_command('slow', 'main'))"
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{tmp_path}"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == status
    assert said.strip().splitlines() == [signals.stopped_text(number)]
