"""Tasks in several processes: frozen parts are left out of what is exchanged."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.support.segmentation_fakes import make_task


def test_frozen_weights_and_buffers_are_not_exchanged(tmp_path: Path) -> None:
    task = make_task()
    frozen = nn.BatchNorm2d(4).requires_grad_(False)
    task.extractor.norm = frozen
    task.extractor.learned = nn.Parameter(torch.zeros(3))
    task.head.norm = nn.BatchNorm2d(2)
    task.setup("fit")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(task)
        exchanged = {id(one) for one in wrapped._module_parameters}
        buffers = {id(one) for one in wrapped.modules_buffers}
    finally:
        torch.distributed.destroy_process_group()
    trained = {id(one) for one in task.trained_parameters()}
    assert trained == exchanged and id(task.extractor.learned) in exchanged
    assert id(task.head.norm.running_mean) in buffers
    assert not {id(one) for one in frozen.buffers()} & buffers
