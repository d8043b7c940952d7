"""LoRA files of the formats in use, matched to the network's own module names.

Formats: diffusers and PEFT (``unet.<path>.lora_A.weight``), old diffusers (``….processor.to_q_lora.down.weight``,
``….lora.down.weight``), kohya (``lora_unet_<path with underscores>.lora_down.weight`` and ``.alpha``), each for linear
layers and convolutions, U-Net and text encoder.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from gate_lightning.backbones.adapters import Adapter, LowRank
from gate_lightning.backbones.weights import check_weight_file, file_digest
from gate_lightning.errors import WeightsError

__all__ = ["read_adapter"]

_SUFFIX = re.compile(
    r"^(?P<name>.+?)(?:\.lora_linear_layer|\.lora|_lora|\.lora_adapter)?"
    r"(?:\.(?P<role>lora_A|lora_B|lora_down|lora_up|down|up)(?:\.default)?\.weight|\.(?P<alpha>alpha))$"
)
_DOWN = ("lora_A", "lora_down", "down")
#: other low-rank methods, by what their keys contain
_FOREIGN = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoCon with a Tucker core",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
}
_PREFIXES = {
    "unet": ("base_model.model.unet.", "unet.", "lora_unet_"),
    "text_encoder": ("base_model.model.text_encoder.", "text_encoder.", "lora_te1_", "lora_te_"),
}


@dataclass
class _Pair:
    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None
    key: str = field(default="")


def read_adapter(path: Path, unet: nn.Module, text_encoder: nn.Module, source: str = "") -> Adapter:
    """The adapter of a LoRA file, every branch matched to the layer it is for.

    Args:
        path: safetensors file.
        unet, text_encoder: the networks it must fit; not changed.
        source: what the adapter is told to come from, the path where empty.

    Raises:
        WeightsError: the file is broken, of another method or format, or made for another architecture.
    """
    metadata = _metadata(check_weight_file(path))
    parts: dict[str, dict[str, LowRank]] = {}
    networks = {"unet": unet, "text_encoder": text_encoder}
    names = {part: _Names(network) for part, network in networks.items()}
    unknown: list[str] = []
    for raw, pair in _pairs(path).items():
        part, name = _part_of(raw)
        found = names[part].find(name)
        if found is None:
            unknown.append(raw)
            continue
        layer = networks[part].get_submodule(found)
        parts.setdefault(part, {})[found] = _branch(path, layer, found, pair, metadata.get(part, {}))
    if unknown:
        raise WeightsError(
            f"{path} is a LoRA for another architecture: {len(unknown)} of its {len(unknown) + _count(parts)} layers "
            f"are not in this backbone, such as {unknown[0]}. Train one for it: python train.py experiment=lora"
        )
    return Adapter(source or str(path), file_digest(path), parts)


def _pairs(path: Path) -> dict[str, _Pair]:
    pairs: dict[str, _Pair] = {}
    strange: list[str] = []
    for key, tensor in load_file(path).items():
        for mark, method in _FOREIGN.items():
            if mark in key:
                raise WeightsError(
                    f"{path} is a {method} file ({key}); expected LoRA for linear layers and convolutions"
                )
        match = _SUFFIX.match(key)
        if match is None:
            strange.append(key)
            continue
        pair = pairs.setdefault(match["name"], _Pair(key=key))
        if match["alpha"]:
            pair.alpha = float(tensor)
        elif match["role"] in _DOWN:
            pair.down = tensor
        else:
            pair.up = tensor
    if strange or not pairs:
        seen = strange[0] if strange else "no tensors"
        raise WeightsError(
            f"{path} is no LoRA file: it holds {seen}; expected pairs of lora_A/lora_B or lora_down/lora_up"
        )
    return pairs


def _part_of(raw: str) -> tuple[str, str]:
    for part, prefixes in _PREFIXES.items():
        for prefix in prefixes:
            if raw.startswith(prefix):
                return part, raw.removeprefix(prefix)
    return "unet", raw  # files of a U-Net alone carry no prefix


class _Names:
    """Module paths of a network by the names that LoRA files give them."""

    def __init__(self, network: nn.Module) -> None:
        self.paths: dict[str, str] = {}
        for path, module in network.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                # kohya's names have underscores for dots; files of older transformers say text_model.
                for name in (path, path.replace(".", "_")):
                    self.paths[name] = path
                    self.paths.setdefault(f"text_model.{name}", path)
                    self.paths.setdefault(f"text_model_{name}", path)

    def find(self, name: str) -> str | None:
        name = name.replace(".processor.", ".")
        candidates = (name, f"{name}.0", name.removeprefix("text_model."), name.removeprefix("text_model_"))
        return next((self.paths[candidate] for candidate in candidates if candidate in self.paths), None)


def _branch(path: Path, layer: nn.Module, name: str, pair: _Pair, config: Mapping[str, Any]) -> LowRank:
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    if pair.down is None or pair.up is None:
        raise WeightsError(f"{path} holds only half of a pair: {pair.key}; the file is incomplete")
    down, up = (_as_layer(tensor, layer) for tensor in (pair.down, pair.up))
    weight = layer.weight
    fits = down.shape[0] == up.shape[1] and up.shape[0] == weight.shape[0] and down.shape[1:] == weight.shape[1:]
    if not fits or (up.ndim == 4 and up.shape[2:] != (1, 1)):
        raise WeightsError(
            f"{path} is a LoRA for another architecture: {name} is {tuple(weight.shape)} in this backbone, "
            f"{tuple(pair.down.shape)} and {tuple(pair.up.shape)} in the file. "
            f"Train one for it: python train.py experiment=lora"
        )
    return LowRank(layer, down, up, _strength(down.shape[0], pair.alpha, name, config))


def _as_layer(tensor: Tensor, layer: nn.Module) -> Tensor:
    """Matrices of a linear layer written as 1 × 1 convolutions, and the other way round."""
    if isinstance(layer, nn.Linear) and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        return tensor[:, :, 0, 0]
    if isinstance(layer, nn.Conv2d) and tensor.ndim == 2:
        return tensor[:, :, None, None]
    return tensor


def _strength(rank: int, alpha: float | None, name: str, config: Mapping[str, Any]) -> float:
    """alpha / rank: alpha from its tensor, else from the file's PEFT settings, else the rank itself."""
    if alpha is None:
        alpha = _by_pattern(config.get("alpha_pattern") or {}, name, config.get("lora_alpha", rank))
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, float], name: str, default: float) -> float:
    # PEFT's rule: a pattern is a regular expression that matches the end of the module path, at a dot
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _metadata(header: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """PEFT settings by part, as diffusers writes them into the header; keys there are "<part>.<setting>"."""
    text = (header.get("__metadata__") or {}).get("lora_adapter_metadata")
    if not text:
        return {}
    settings: dict[str, dict[str, Any]] = {"unet": {}, "text_encoder": {}}
    for key, value in json.loads(text).items():
        part, _, setting = key.partition(".")
        if part in settings and setting:
            settings[part][setting] = value
        else:
            settings["unet"][key] = value  # a file of the U-Net alone
    return settings


def _count(parts: Mapping[str, Mapping[str, LowRank]]) -> int:
    return sum(len(layers) for layers in parts.values())
