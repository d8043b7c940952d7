"""Reader of LoRA files.

Formats: diffusers and PEFT (``unet.<path>.lora_A.weight``), old diffusers (``….processor.to_q_lora.down.weight``,
``….lora.down.weight``, ``….lora_linear_layer.down.weight``), kohya (``lora_unet_<path, underscores>.lora_down.weight``
and ``.alpha``; convolutions as LoCon writes them, with or without a core ``lora_mid``), each for linear layers and
convolutions, U-Net and text encoders; and the original numbered one (`lora_positions`), with its learned tokens.
Settings of PEFT in the header or beside the file decide about the strength (`lora_settings`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from gate_lightning.backbones.adapters.bank import Adapter, LowRank
from gate_lightning.backbones.adapters.lora_names import LayerNames, find_layer, hidden_prefix
from gate_lightning.backbones.adapters.lora_positions import is_numbered, numbered_layers, numbered_tokens
from gate_lightning.backbones.adapters.lora_settings import (
    LoRASettings,
    header_settings,
    settings_beside,
    settings_file,
)
from gate_lightning.backbones.weights.checkpoints import read_safetensors
from gate_lightning.backbones.weights.locate import file_digest
from gate_lightning.backbones.weights.networks import check_numbers
from gate_lightning.errors import WeightsError

__all__ = ["check_token_width", "read_adapter"]

_SUFFIX = re.compile(
    r"^(?P<name>.+?)(?:\.lora_linear_layer|\.lora|_lora|\.lora_adapter)?"
    r"(?:\.(?P<role>lora_A|lora_B|lora_down|lora_up|lora_mid|down|up)(?:\.(?!weight$)\w+)?\.weight|\.(?P<alpha>alpha))$"
)
_ROLES = {"lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up", "lora_mid": "core"}
#: other low-rank methods, by what their keys contain
_FOREIGN = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
}
_KNOWN_FORMATS = "diffusers, PEFT, kohya (LoRA and LoCon) or the numbered format of cloneofsimo/lora"
_ADVICE = "Train one for it: python train.py experiment=lora"
_SHOWN = 4  # keys of an unknown file that the message lists


@dataclass
class _Pair:
    down: Tensor | None = None
    up: Tensor | None = None
    core: Tensor | None = None
    alpha: float | None = None
    key: str = field(default="")


def read_adapter(path: Path, networks: Mapping[str, nn.Module], source: str = "") -> Adapter:
    """Adapter of a LoRA file, with every branch matched to its layer.

    Args:
        path: safetensors file.
        networks: ``unet`` and ``text_encoder``, for SDXL ``text_encoder_2`` too.
        source: source of the adapter, for its identity; the path if empty.

    Raises:
        WeightsError: the file is broken, of another method or format, or made for another architecture.
    """
    tensors, header = read_safetensors(path)
    digest = file_digest(path)
    if is_numbered(tensors):
        parts = _numbered(path, tensors, header, networks)
        tokens = {"text_encoder": numbered_tokens(path, tensors, header)}
        check_token_width(path, tokens, networks)
        return Adapter(source or str(path), digest, parts, tokens)
    settings, beside = header_settings(path, header), settings_file(path)
    if beside is not None:
        if settings:
            raise WeightsError(
                f"{path} has settings in its header and in {beside.name} beside it; delete the wrong ones"
            )
        settings = settings_beside(beside)
        digest = hashlib.sha256(f"{digest} {file_digest(beside)}".encode()).hexdigest()
    return Adapter(source or str(path), digest, _named(path, tensors, settings, networks))


def check_token_width(
    path: Path, tokens: Mapping[str, Mapping[str, Tensor]], networks: Mapping[str, nn.Module]
) -> None:
    """Raise WeightsError unless the learned tokens (part → token → (n, C)) are as wide as the parts' own tokens."""
    for part, learned in tokens.items():
        for token, vectors in learned.items():
            width = networks[part].get_input_embeddings().weight.shape[1]  # type: ignore[operator,union-attr]
            if vectors.shape[-1] != width:
                raise WeightsError(
                    f"{path} is made for another text encoder: {token} has {vectors.shape[-1]} channels, the tokens of "
                    f"this backbone's {part} have {width} (768: SD 1.x, 1024: SD 2.x, 768 and 1280: SDXL)"
                )
            if not vectors.isfinite().all():
                raise WeightsError(f"{path} is broken: {token} holds values that are not finite")


def _numbered(
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str], networks: Mapping[str, nn.Module]
) -> dict[str, dict[str, LowRank]]:
    parts: dict[str, dict[str, LowRank]] = {}
    for part, layers in numbered_layers(path, tensors, header, networks).items():
        for name, (down, up) in layers.items():
            layer = networks[part].get_submodule(name)
            parts.setdefault(part, {})[name] = _branch(
                path, layer, name, _Pair(*_both(path, part, name, down, up)), LoRASettings()
            )
    return parts


def _both(path: Path, part: str, name: str, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return _matrix(path, f"down of {part}.{name}", down), _matrix(path, f"up of {part}.{name}", up)


def _named(
    path: Path,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, LoRASettings],
    networks: Mapping[str, nn.Module],
) -> dict[str, dict[str, LowRank]]:
    names = {part: LayerNames(network) for part, network in networks.items()}
    parts: dict[str, dict[str, LowRank]] = {}
    unknown: list[str] = []
    pairs = _pairs(path, tensors)
    for raw, pair in pairs.items():
        place = find_layer(raw, names)
        if place is None:
            unknown.append(raw)
            continue
        part, found = place
        if found in parts.get(part, {}):
            raise WeightsError(f"{path} holds {part}.{found} twice, once as {raw}; a merge of files went wrong")
        layer = networks[part].get_submodule(found)
        parts.setdefault(part, {})[found] = _branch(path, layer, found, pair, settings.get(part, LoRASettings()))
    if unknown:
        prefix = hidden_prefix(unknown, names)
        if prefix:
            raise WeightsError(
                f"{path} fits this backbone but for {prefix!r} in the names of {len(unknown)} of its {len(pairs)} "
                f"layers, such as {unknown[0]}; save it again without"
            )
        raise WeightsError(
            f"{path} is a LoRA for another architecture: {len(unknown)} of its {len(pairs)} layers "
            f"are not in this backbone, such as {unknown[0]:.200}. {_ADVICE}"
        )
    return parts


def _pairs(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, _Pair]:
    pairs: dict[str, _Pair] = {}
    strange: list[str] = []
    for key, tensor in tensors.items():
        for mark, method in _FOREIGN.items():
            if mark in key:
                raise WeightsError(f"{path} is a {method} file ({key}); expected LoRA: {_KNOWN_FORMATS}")
        match = _SUFFIX.match(key)
        if match is None:
            strange.append(key)
            continue
        pair = pairs.setdefault(match["name"], _Pair(key=key))
        role = "alpha" if match["alpha"] else _ROLES.get(match["role"], match["role"])
        if getattr(pair, role) is not None:
            raise WeightsError(f"{path} holds two adapters in one: {key} and the same under another name; save one")
        setattr(pair, role, _alpha(path, key, tensor) if role == "alpha" else _matrix(path, key, tensor))
    if strange or not pairs:
        shown = ", ".join(sorted(strange)[:_SHOWN]) + (f" … ({len(strange)} such keys)" if strange[_SHOWN:] else "")
        raise WeightsError(
            f"{path} is no LoRA file: it holds {shown or 'no tensors'}; expected the keys of {_KNOWN_FORMATS}, "
            f"pairs such as lora_A/lora_B or lora_down/lora_up. A whole model goes to backbone.weights"
        )
    return pairs


def _branch(path: Path, layer: nn.Module, name: str, pair: _Pair, settings: LoRASettings) -> LowRank:
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    if pair.down is None or pair.up is None:
        raise WeightsError(f"{path} holds only half of a pair: {pair.key}; the file is incomplete")
    down, up = _as_layer(pair.down, layer), _as_layer(pair.up, layer)
    if pair.core is not None and down.ndim == 4 and pair.core.shape[1:2] == down.shape[:1]:
        # a 1 × 1 convolution followed by the core is one convolution with the core's kernel
        down = torch.einsum("srhw,ri->sihw", pair.core.float(), down[:, :, 0, 0].float())
    weight = layer.weight
    fits = (
        down.ndim == up.ndim == weight.ndim
        and 0 < down.shape[0] == up.shape[1]
        and up.shape[0] == weight.shape[0]
        and down.shape[1:] == weight.shape[1:]
        and up.shape[2:] in ((), (1, 1))
    )
    if not fits:
        raise WeightsError(
            f"{path} is a LoRA for another architecture: {name} is {tuple(weight.shape)} in this backbone, "
            f"{tuple(pair.down.shape)} and {tuple(pair.up.shape)} in the file. {_ADVICE}"
        )
    for matrix in (down, up):
        if not matrix.isfinite().all():
            raise WeightsError(
                f"{path} is broken: its {name} holds values that are not finite; take another checkpoint"
            )
        if not matrix.to(weight.dtype).isfinite().all():
            kind = str(weight.dtype).removeprefix("torch.")
            raise WeightsError(
                f"{path}: its {name} holds numbers too large for {kind}; set backbone.dtype=bfloat16 or float32"
            )
    return LowRank(layer, down, up, settings.strength(name, down.shape[0], pair.alpha))


def _alpha(path: Path, key: str, tensor: Tensor) -> float:
    if tensor.numel() != 1 or tensor.dtype == torch.bool or not tensor.float().isfinite().all():
        raise WeightsError(f"{path}: {key} is {_values(tensor)}, expected one finite number")
    return float(tensor)


def _values(tensor: Tensor) -> str:
    return f"{tensor.item()}" if tensor.numel() == 1 else f"a tensor {tuple(tensor.shape)}"


def _matrix(path: Path, key: str, tensor: Tensor) -> Tensor:
    """The tensor, numbers of 8 bits as 32: torch computes nothing in them."""
    check_numbers(tensor, key, str(path))
    return tensor.float() if tensor.element_size() == 1 else tensor


def _as_layer(tensor: Tensor, layer: nn.Module) -> Tensor:
    """Matrices of a linear layer written as 1 × 1 convolutions, and the other way round."""
    if isinstance(layer, nn.Linear) and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        return tensor[:, :, 0, 0]
    if isinstance(layer, nn.Conv2d) and tensor.ndim == 2:
        return tensor[:, :, None, None]
    return tensor
