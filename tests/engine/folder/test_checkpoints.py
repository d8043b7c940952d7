"""Damaged checkpoints are refused with their name and that of the other one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from gate_lightning.engine.folder.checkpoints import require_sound
from gate_lightning.errors import ResumeError


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    torch.save({"state_dict": {"a": torch.randn(1000)}, "global_step": 3}, tmp_path / "last.ckpt")
    shutil.copy(tmp_path / "last.ckpt", tmp_path / "best.ckpt")
    return tmp_path


def test_whole_ones_pass(checkpoints: Path) -> None:
    assert require_sound(checkpoints / "last.ckpt") == checkpoints / "last.ckpt"


@pytest.mark.parametrize("which", ["last", "best"])
def test_one_flipped_bit_of_a_weight_names_the_other_one(checkpoints: Path, which: str) -> None:
    path = checkpoints / f"{which}.ckpt"
    content = bytearray(path.read_bytes())
    values = torch.load(path, weights_only=True)["state_dict"]["a"].numpy().tobytes()
    content[content.index(values) + 2001] ^= 4
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["state_dict"]["a"].shape == (1000,)  # torch does not see it
    other = {"last": "best", "best": "last"}[which]
    with pytest.raises(ResumeError, match=rf"{which}\.ckpt.*{other}\.ckpt: evaluate it with checkpoint={other}"):
        require_sound(path)


@pytest.mark.parametrize("length", [0, 10, 2000, -30])
def test_a_file_that_is_cut_off(checkpoints: Path, length: int) -> None:
    path = checkpoints / "best.ckpt"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ResumeError, match=r"best\.ckpt"):
        require_sound(path)


def test_weights_that_are_not_finite(checkpoints: Path) -> None:
    path = checkpoints / "last.ckpt"
    torch.save({"state_dict": {"a": torch.tensor([1.0, float("nan")])}}, path)
    with pytest.raises(ResumeError, match=r"not finite \(state_dict\.a"):
        require_sound(path)


def test_another_archive(checkpoints: Path) -> None:
    path = checkpoints / "last.ckpt"
    torch.save(torch.ones(2), path)
    with pytest.raises(ResumeError, match="is no checkpoint"):
        require_sound(path)
