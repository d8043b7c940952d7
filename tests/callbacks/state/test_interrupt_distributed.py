"""Two processes: one gets the signal, both stop at one step, both random states are in the checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.paths import REPOSITORY

SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from lightning import Callback
torch.set_num_threads(1)
from gate_lightning.callbacks.state.checkpoint import RunCheckpoint
from gate_lightning.callbacks.state.interrupt import Interrupt
from gate_lightning.errors import Interrupted
from tests.support.segmentation_fakes import FakeData, make_task, make_trainer

class SignalOne(Callback):
    def on_before_backward(self, trainer, *_):
        if sys.argv[2] == "cut" and trainer.global_rank == 1 and trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGINT)

class Keep(Callback):
    def on_train_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            torch.save(pl_module.state_dict(), Path(trainer.default_root_dir) / "weights.pt")

folder = Path(sys.argv[1])
path = folder / "checkpoints" / "last.ckpt"
callbacks = [SignalOne(), Keep(), RunCheckpoint(100, "val/mIoU"), Interrupt()]
trainer = make_trainer(folder, *callbacks, strategy="ddp_fork", devices=2, max_steps=9)
try:
    trainer.fit(make_task(), FakeData(), ckpt_path=path if path.exists() else None, weights_only=True)
except BaseException as error:
    sys.exit(130 if "stopped at step 5" in str(error) else f"{type(error)}: {error}")
"""


def run(folder: Path, how: str) -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", SCRIPT, str(folder), how]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, timeout=300, capture_output=True, text=True)
    assert done.returncode in (0, 130), done.stderr[-3000:]
    return done.returncode


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on_exactly(tmp_path: Path) -> None:
    assert run(tmp_path / "whole", "whole") == 0
    assert run(tmp_path / "cut", "cut") == 130
    saved = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 5
    assert len(saved["random_state"]) == 2
    assert run(tmp_path / "cut", "resume") == 0
    whole, cut = (torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("whole", "cut"))
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
