"""Values of several processes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import multiprocessing

from gate_lightning.utils.processes import gathered


def test_one_process_has_its_own_value() -> None:
    assert gathered({"a": 1}) == [{"a": 1}]


def work(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    (folder / f"{rank}.txt").write_text(repr(gathered([f"row of {rank}"] * rank)))
    torch.distributed.destroy_process_group()


def test_every_process_has_the_values_of_all_in_the_order_of_ranks(tmp_path: Path) -> None:
    multiprocessing.start_processes(work, (tmp_path,), nprocs=2, start_method="fork")
    assert {(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)} == {"[[], ['row of 1']]"}
