"""Single-file checkpoints: their tensors, without running any code that the file may hold."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from gate_lightning.backbones.weights.locate import check_weight_file
from gate_lightning.errors import WeightsError

__all__ = ["read_checkpoint"]


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file or of one that ``torch.save`` wrote, by name.

    Nothing but tensors and plain containers is unpickled, so that no code of the file is run. Where the names lie under
    ``state_dict``, as Lightning writes them, these are given.

    Raises:
        WeightsError: the file is broken, no checkpoint, holds pickled code, or something else than a state dict.
    """
    with path.open("rb") as file:
        start = file.read(2)
    if start not in (b"PK", b"\x80\x02"):
        check_weight_file(path)
        return load_file(path)
    try:
        # a zip archive can stay on disk until its tensors are used
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=start == b"PK")
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            f"{path} holds more than tensors, and pickled code is not run ({reason}); save its state dict alone, as "
            f".safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{path} is damaged or incomplete ({reason}); fetch it again") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        seen = ", ".join(list(map(str, content))[:6]) if isinstance(content, dict) else type(content).__name__
        raise WeightsError(f"{path} holds no state dict, names and tensors alone; it holds: {seen}")
    return content
