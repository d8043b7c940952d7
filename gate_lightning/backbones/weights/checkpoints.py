"""Weight files: reading their tensors without running code."""

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
from gate_lightning.utils.archives import check_archive

__all__ = ["check_stored", "read_checkpoint", "read_safetensors", "read_tensors"]


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """State dict of a ``.safetensors`` file or of one written by ``torch.save``.

    Tensors under a key ``state_dict``, as Lightning writes them, are found too. No pickled code is run.

    Raises:
        WeightsError: the file is broken, no checkpoint, holds pickled code, or something else than a state dict.
    """
    content, _ = read_tensors(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    plain = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )
    if not plain:
        seen = ", ".join(list(map(str, content))[:6]) if isinstance(content, dict) else type(content).__name__
        raise WeightsError(f"{path} holds no state dict, names and tensors alone; it holds: {seen:.200}")
    wrapped = next((name for name in content if name.startswith("module.") or "_orig_mod." in name), None)
    if wrapped is not None:
        raise WeightsError(
            f"{path} was saved from a wrapped network ({wrapped}): save its tensors without module. (DataParallel) and "
            f"_orig_mod. (torch.compile) in their names"
        )
    for name, value in content.items():
        check_stored(value, name, path)
    return content


def check_stored(tensor: Tensor, name: str, path: Path) -> None:
    """Raise WeightsError unless every number of a tensor lies in the file: none is repeated, left out or quantised."""
    plain = tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_nested or tensor.is_quantized)
    if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise WeightsError(
            f"{path}: {name} is no plain tensor (sparse, quantised, repeated or without numbers); save the state dict "
            f"of the network itself, as .safetensors"
        )


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Tensors and header (``__metadata__``) of a safetensors file.

    Raises:
        WeightsError: the file is missing, damaged or something else.
    """
    header = check_weight_file(path)
    try:
        return load_file(path), header
    except Exception as error:  # number formats that torch does not know fail in several ways
        raise WeightsError(f"{path} holds tensors that torch cannot read ({first_line(error)})") from error


def read_tensors(path: Path) -> tuple[Any, Mapping[str, str]]:
    """Content, on the CPU, and header of a ``.safetensors`` file or of one written by ``torch.save`` (no header).

    Archives of ``torch.save`` are compared with their checksums: about 0.6 s per GB.

    Raises:
        WeightsError: the file is missing or damaged, or holds pickled code, which is not run.
    """
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(2)
    if start not in (b"PK", b"\x80\x02"):  # a zip archive, or an older pickle
        return read_safetensors(path)
    if start == b"PK":
        check_archive(path, WeightsError)
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
    except Exception as error:  # a damaged pickle fails in whatever instruction it happens to spell
        raise WeightsError(f"{path} is damaged or incomplete ({first_line(error)}); fetch it again") from error
