"""Checkpoints that are about to be used: whole on the disk, and full of numbers."""

from __future__ import annotations

from pathlib import Path

import torch

from gate_lightning.errors import ResumeError
from gate_lightning.utils.archives import check_archive
from gate_lightning.utils.finite import not_finite_in

__all__ = ["require_sound", "saved_step"]

#: what of a checkpoint has to be finite
_TRAINED = ("state_dict", "optimizer_states")


def require_sound(path: Path) -> Path:
    """The path, of a checkpoint whose checksums are right and whose weights and moments are finite.

    ``torch.load`` compares no checksum: flipped bits become other weights. Reads the file once (0.6 s per GB); the
    values are mapped, not copied.

    Raises:
        ResumeError: it is damaged; names it and the other checkpoint of the run.
    """
    try:
        check_archive(path, ResumeError)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        bad = list(not_finite_in({name: content.get(name) for name in _TRAINED}))
        if bad:
            raise ResumeError(f"{path} holds weights that are not finite ({bad[0]} and {len(bad) - 1} more)")
    except ResumeError as error:
        raise ResumeError(f"{error}{_other(path)}") from error
    except Exception as error:  # the unpickler raises whatever the bytes lead it to
        raise ResumeError(f"{path} is no checkpoint ({type(error).__name__}: {error}){_other(path)}") from error
    return path


def saved_step(path: Path) -> int:
    """Optimiser steps of a checkpoint; 0 where there is no file."""
    if not path.is_file():
        return 0
    return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def _other(path: Path) -> str:
    """Advice on the other checkpoint of the run, for messages."""
    if path.name == "best.ckpt" and path.with_name("last.ckpt").is_file():
        return f". The run has another one, {path.with_name('last.ckpt')}: evaluate it with checkpoint=last"
    if path.name == "last.ckpt" and path.with_name("best.ckpt").is_file():
        return (
            f". The run has another one, {path.with_name('best.ckpt')}: evaluate it with checkpoint=best. Training "
            f"cannot go on from that; without {path.name}, resume= begins again"
        )
    return ". There is no other checkpoint beside it; without it, resume= begins the run again"
