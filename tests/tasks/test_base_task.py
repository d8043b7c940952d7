"""What all tasks have: frozen parts are left out of what processes exchange, and what a task does not give is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gate_lightning.errors import ConfigError
from gate_lightning.structures import Conditions
from gate_lightning.tasks.base import BaseTask
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


def test_a_task_says_what_it_does_not_give(tmp_path: Path) -> None:
    class Own(BaseTask):
        pass

    images, own = torch.zeros(1, 3, 8, 8), Own()
    with pytest.raises(ConfigError, match=r"^Own makes no label maps"):
        own.label_maps(images, Conditions(("a",)), (8, 8))
    with pytest.raises(ConfigError, match=r"^Own gives images no classes"):
        own.class_shares(images, Conditions(("a",)))
    with pytest.raises(ConfigError, match=r"^Own measures all at once"):
        own.go_on(tmp_path, "val", None)
