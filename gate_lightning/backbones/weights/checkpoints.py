"""Single-file checkpoints: reading their tensors without running code, and comparing them with a network."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gate_lightning.backbones.weights.locate import check_weight_file
from gate_lightning.errors import WeightsError, first_line

__all__ = ["misfits", "read_checkpoint", "read_safetensors", "read_tensors"]


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """State dict of a ``.safetensors`` file or of one written by ``torch.save``.

    Tensors under a key ``state_dict``, as Lightning writes them, are found too. No pickled code is run.

    Raises:
        WeightsError: the file is broken, no checkpoint, holds pickled code, or something else than a state dict.
    """
    content, _ = read_tensors(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        seen = ", ".join(list(map(str, content))[:6]) if isinstance(content, dict) else type(content).__name__
        raise WeightsError(f"{path} holds no state dict, names and tensors alone; it holds: {seen}")
    return content


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Tensors and header (``__metadata__``) of a safetensors file.

    Raises:
        WeightsError: the file is missing, damaged or something else.
    """
    header = check_weight_file(path)
    return load_file(path), header


def read_tensors(path: Path) -> tuple[Any, Mapping[str, str]]:
    """Content, on the CPU, and header of a ``.safetensors`` file or of one written by ``torch.save`` (no header).

    Raises:
        WeightsError: the file is missing or damaged, or holds pickled code, which is not run.
    """
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(2)
    if start not in (b"PK", b"\x80\x02"):  # a zip archive, or an older pickle
        return read_safetensors(path)
    try:
        # older files of A1111 hold a ParameterDict, which is data too
        with torch.serialization.safe_globals([nn.ParameterDict]):
            # an archive can stay on disk until its tensors are used
            return torch.load(path, map_location="cpu", weights_only=True, mmap=start == b"PK"), {}
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors, and pickled code is not run ({first_line(error)}); save its state dict "
            f"alone, as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} is damaged or incomplete ({first_line(error)}); fetch it again") from error


def misfits(network: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Differences between a network's state dict and ``weights``, such as ``conv.bias is (3,), expected (4,)``."""
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    return [
        f"{name} is {found.get(name, 'missing')}, expected {wanted.get(name, 'nothing')}"
        for name in dict.fromkeys([*wanted, *found])
        if wanted.get(name) != found.get(name)
    ]
