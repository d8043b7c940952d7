"""Adapter files: diffusers' layout and kohya's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor, nn

from gate_lightning.utils.files import write_atomically

_METADATA_KEY = "lora_adapter_metadata"
"""Key under which diffusers looks for the adapter's settings; without them it assumes alpha = rank."""


def write_diffusers(path: Path, parts: Mapping[str, nn.Module], dtype: torch.dtype = torch.float16) -> None:
    """Write the adapters so that ``pipeline.load_lora_weights(path)`` reads them, alpha included.

    Args:
        path: file to write; folders are created.
        parts: any of ``unet text_encoder text_encoder_2``, each with one peft adapter named "default".
        dtype: type of the weights on disk.
    """
    tensors: dict[str, Tensor] = {}
    settings: dict[str, object] = {}
    for prefix, module in parts.items():
        state = get_peft_model_state_dict(module, adapter_name="default", save_embedding_layers=False)
        tensors |= {f"{prefix}.{key}": value for key, value in state.items()}
        # Everything else in peft's config is either a default or says nothing about the weights.
        config: Any = cast(Any, module).peft_config["default"]
        wanted = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": sorted(config.target_modules)}
        settings |= {f"{prefix}.{key}": value for key, value in wanted.items()}
    _write(path, tensors, dtype, {_METADATA_KEY: json.dumps(settings, indent=2, sort_keys=True)})


def write_kohya(path: Path, parts: Mapping[str, nn.Module], alpha: float, dtype: torch.dtype = torch.float16) -> None:
    """Write the adapters as ``lora_unet_<module>.lora_down.weight`` and so on, with ``.alpha``.

    Args:
        path: file to write; folders are created.
        parts: as for `write_diffusers`.
        alpha: scale of the adapters times their rank.
        dtype: type of the weights on disk.
    """
    both = "text_encoder_2" in parts
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1" if both else "lora_te", "text_encoder_2": "lora_te2"}
    tensors: dict[str, Tensor] = {}
    for part, module in parts.items():
        for key, value in get_peft_model_state_dict(
            module, adapter_name="default", save_embedding_layers=False
        ).items():
            name, which, _ = key.rsplit(".", 2)
            if part != "unet" and not name.startswith("text_model."):
                # transformers 5 dropped this level of CLIP; the file format keeps it.
                name = f"text_model.{name}"
            stem = f"{prefixes[part]}_{name.replace('.', '_')}"
            tensors[f"{stem}.{'lora_down' if which == 'lora_A' else 'lora_up'}.weight"] = value
            tensors[f"{stem}.alpha"] = torch.tensor(float(alpha))
    _write(path, tensors, dtype, {"ss_network_alpha": str(alpha)})


def _write(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, metadata: dict[str, str]) -> None:
    plain = {key: value.detach().to("cpu", dtype).contiguous() for key, value in tensors.items()}
    write_atomically(path, save(plain, metadata={"format": "pt", **metadata}))
