"""Folders of U-Nets as diffusers reads them, with adapters merged."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from gate_lightning.utils.files import publish, write_atomically, writing

__all__ = ["merged_state", "write_unet"]

_WEIGHTS = "diffusion_pytorch_model.safetensors"


def write_unet(folder: Path, unet: Any, header: Mapping[str, str]) -> None:
    """Write ``config.json`` and one file of weights, in the floating-point type they are in.

    Args:
        folder: created where missing.
        unet: a diffusers network, which may have adapters of peft; it is not changed.
        header: further entries of the header of the weights.
    """
    config = json.loads(unet.to_json_string())
    config.pop("_name_or_path", None)  # the folder it was read from
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unet.") as beside:
            save_file(merged_state(unet), Path(beside) / _WEIGHTS, metadata={"format": "pt", **header})
            publish(Path(beside) / _WEIGHTS, folder / _WEIGHTS)
    write_atomically(folder / "config.json", f"{json.dumps(config, indent=2)}\n".encode())


@torch.no_grad()
def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """State dict, on the CPU, of the network without its adapters, which are added to its weights."""
    adapted = {name: module for name, module in network.named_modules() if isinstance(module, BaseTunerLayer)}
    state = {}
    for name, tensor in network.state_dict().items():
        if ".lora_" in name:
            continue
        path, _, last = name.rpartition(".")
        owner = path.removesuffix(".base_layer")
        if last == "weight" and owner in adapted:
            layer: Any = adapted[owner]
            tensor = sum((layer.get_delta_weight(adapter) for adapter in layer.active_adapters), tensor)
        state[f"{owner}.{last}"] = tensor.detach().cpu().contiguous()
    return state
