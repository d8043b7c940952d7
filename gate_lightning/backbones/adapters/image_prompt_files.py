"""Reader of IP-Adapters: ``ip-adapter_sd15``, ``ip-adapter-plus_sd15``, ``ip-adapter_sdxl`` … as they are published.

A file holds ``image_proj.*`` (the projection) and ``ip_adapter.<n>.to_k_ip.weight`` and ``.to_v_ip.weight`` of every
cross-attention, n = 1, 3, 5 … in the order of the U-Net's attention processors; ``.bin`` files hold the same, nested.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from gate_lightning.backbones.adapters.image_prompts import ImagePromptAdapter
from gate_lightning.backbones.weights.checkpoints import check_stored, read_tensors
from gate_lightning.backbones.weights.locate import file_digest, folder_digest, weight_files
from gate_lightning.backbones.weights.networks import build_network, check_numbers, fill_network, open_part
from gate_lightning.errors import WeightsError

__all__ = ["read_image_prompt_adapter"]

_PARTS = ("image_proj", "ip_adapter")
_HEAD = 64  # channels of an attention head in the projection of "plus"
#: names inside a block of that projection → those of diffusers
_BLOCK = {
    r"(layers\.\d+)\.0\.norm1\.": r"\1.ln0.",
    r"(layers\.\d+)\.0\.norm2\.": r"\1.ln1.",
    r"(layers\.\d+)\.0\.to_out\.": r"\1.attn.to_out.0.",
    r"(layers\.\d+)\.0\.to_": r"\1.attn.to_",
    r"(layers\.\d+)\.1\.0\.": r"\1.ff.0.",
    r"(layers\.\d+)\.1\.1\.": r"\1.ff.1.net.0.proj.",
    r"(layers\.\d+)\.1\.3\.": r"\1.ff.1.net.2.",
}


def read_image_prompt_adapter(
    path: Path, folder: Path, unet: UNet2DConditionModel, source: tuple[str, str]
) -> ImagePromptAdapter:
    """An IP-Adapter in the number format of the U-Net, on its device.

    Args:
        path: its weights, ``.safetensors`` or ``.bin`` (of which no code is run).
        folder: its image encoder, a CLIP vision model with projection: config.json and model.safetensors.
        unet: the network it is for.
        source: names of both, for its identity.

    Raises:
        WeightsError: files missing or broken, of another kind (FaceID, full face), or made for another U-Net or
            encoder.
    """
    parts = _parts(path)
    layers = _layers(path, parts["ip_adapter"], unet)
    dtype = next(unet.parameters()).dtype
    encoder: Any = open_part(CLIPVisionModelWithProjection, folder, dtype)
    given = parts["image_proj"]
    fine = "latents" in given
    made = _resampler(given) if fine else _linear(given)
    where = f"the image projection of {path}"
    network, weights = build_network(made[0], {}, len(given), where), made[1]
    projection = fill_network(network, weights, dtype, where)
    reads = given["proj_in.weight" if fine else "proj.weight"].shape[1]
    has = encoder.config.hidden_size if fine else encoder.config.projection_dim
    if reads != has:
        raise WeightsError(
            f"{path} reads image embeddings of {reads} channels, and {folder} makes {has}: take the image encoder that "
            "it is published with (models/image_encoder; of ip-adapter_sdxl without vit-h sdxl_models/image_encoder)"
        )
    gives = (projection.norm_out if fine else projection.norm).normalized_shape[0]
    if gives != unet.config.cross_attention_dim:
        raise WeightsError(_misfit(path, f"makes tokens of {gives} channels", unet.config.cross_attention_dim))
    files = [*weight_files(folder), folder / "config.json"]
    digest = hashlib.sha256(f"{file_digest(path)} {folder_digest(files, folder)}".encode()).hexdigest()
    moved = {name: (key.to(dtype), value.to(dtype)) for name, (key, value) in layers.items()}
    adapter = ImagePromptAdapter(source, digest, encoder, projection, moved, fine)
    return adapter.to(next(unet.parameters()).device).eval()


def _parts(path: Path) -> dict[str, dict[str, Tensor]]:
    """``image_proj`` and ``ip_adapter``: name → tensor."""
    content, _ = read_tensors(path)
    parts: dict[str, dict[str, Any]] = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        part, _, rest = str(name).partition(".")
        if isinstance(value, Mapping):
            parts.setdefault(str(name), {}).update(value)
        else:
            parts.setdefault(part, {})[rest] = value
    if parts.keys() != set(_PARTS):
        seen = ", ".join(list(parts)[:4]) or "nothing"
        raise WeightsError(f"{path} is no IP-Adapter: it holds {seen}; expected {' and '.join(_PARTS)}")
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor):
                raise WeightsError(f"{path}: {part}.{name} is a {type(tensor).__name__}, expected a tensor")
            check_stored(tensor, f"{part}.{name}", path)
            check_numbers(tensor, f"{part}.{name}", str(path))
    projection = parts["image_proj"]
    if "latents" not in projection and "proj.weight" not in projection:
        raise WeightsError(
            f"{path} is an IP-Adapter of another kind (its image_proj holds {', '.join(list(projection)[:3])}): FaceID "
            "and full-face ones are not read; take ip-adapter_sd15, ip-adapter_sd15_light, ip-adapter-plus_sd15 …"
        )
    return parts


def _layers(path: Path, given: Mapping[str, Tensor], unet: UNet2DConditionModel) -> dict[str, tuple[Tensor, Tensor]]:
    """Path of a cross-attention → weights of keys and values."""
    paths = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
    names = [tuple(f"{2 * index + 1}.to_{kind}_ip.weight" for kind in "kv") for index in range(len(paths))]
    wanted = {name for pair in names for name in pair}
    if given.keys() != wanted:
        raise WeightsError(_misfit(path, f"has {len(given)} weights of keys and values", len(wanted)))
    layers: dict[str, tuple[Tensor, Tensor]] = {}
    for place, (key, value) in zip(paths, names, strict=True):
        expected = tuple(unet.get_submodule(f"{place}.to_k").weight.shape)
        for name in (key, value):
            if tuple(given[name].shape) != expected:
                raise WeightsError(_misfit(path, f"has {name} of {tuple(given[name].shape)}", expected))
            if not given[name].isfinite().all():
                raise WeightsError(f"{path} is broken: {name} holds values that are not finite; take another copy")
        layers[place] = (given[key], given[value])
    return layers


def _misfit(path: Path, found: str, expected: object) -> str:
    return (
        f"{path} is an IP-Adapter for another U-Net: it {found}, expected {expected}. Take one for this model: …_sd15 "
        "for Stable Diffusion 1.x, …_sdxl for SDXL"
    )


def _linear(given: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """Constructor and weights of the projection of one embedding."""
    width = given["norm.weight"].shape[0] if "norm.weight" in given else 1
    rows, reads = given["proj.weight"].shape
    names = {"proj.weight": "image_embeds.weight", "proj.bias": "image_embeds.bias"}
    weights = {names.get(name, name): tensor for name, tensor in given.items()}
    return (lambda: ImageProjection(reads, width, rows // width)), weights


def _resampler(given: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """Constructor and weights of the projection of patch states ("plus")."""
    weights: dict[str, Tensor] = {}
    for name, tensor in given.items():
        for pattern, replacement in _BLOCK.items():
            name = re.sub(pattern, replacement, name)
        if name.endswith(".to_kv.weight"):
            stem = name.removesuffix("kv.weight")
            weights[f"{stem}k.weight"], weights[f"{stem}v.weight"] = tensor.chunk(2)
        else:
            weights[name] = tensor
    depth = len({name.split(".")[1] for name in given if name.startswith("layers.")})

    def make() -> nn.Module:
        _, queries, width = given["latents"].shape
        heads = weights["layers.0.attn.to_q.weight"].shape[0] // _HEAD
        reads, gives = given["proj_in.weight"].shape[1], given["proj_out.weight"].shape[0]
        return IPAdapterPlusImageProjection(reads, gives, width, depth, _HEAD, heads, queries)

    return make, weights
