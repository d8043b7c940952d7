"""Values of several processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from gate_lightning.utils.processes import gathered, run_in_processes


def test_one_process_has_its_own_value() -> None:
    assert gathered({"a": 1}) == [{"a": 1}]


def work(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    (folder / f"{rank}.txt").write_text(repr(gathered([f"row of {rank}"] * rank)))
    torch.distributed.destroy_process_group()


def test_every_process_has_the_values_of_all_in_the_order_of_ranks(tmp_path: Path) -> None:
    multiprocessing.start_processes(work, (tmp_path,), nprocs=2, start_method="fork")
    assert {(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)} == {"[[], ['row of 1']]"}


def end(status: int, others: Path) -> None:
    """A process that ends with this status, once there are two; with 0 it waits to be told to."""
    (others / str(os.getpid())).touch()
    if status:
        while len(list(others.iterdir())) < 2:
            time.sleep(0.01)
        sys.exit(status)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit((others / "told").touch()))
    time.sleep(100)


@pytest.mark.thorough
def test_where_one_process_fails_the_others_are_told_to_stop(tmp_path: Path) -> None:
    assert run_in_processes(end, [(0, tmp_path), (3, tmp_path)]) == 3
    assert (tmp_path / "told").exists()


def tell(parent: int, others: Path) -> None:
    (others / "begun").touch()
    os.kill(parent, signal.SIGINT)
    end(0, others)


@pytest.mark.thorough
def test_a_signal_to_the_parent_reaches_the_processes(tmp_path: Path) -> None:
    # a shell ignores the signal for what it starts in the background
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_in_processes(tell, [(os.getpid(), tmp_path)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "begun").exists()


def test_all_processes_are_waited_for(tmp_path: Path) -> None:
    assert run_in_processes(Path.touch, [(tmp_path / name,) for name in "ab"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
