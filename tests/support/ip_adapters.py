"""Small random IP-Adapters in the published layouts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from gate_lightning.techniques.ip_adapter import IPAdapter

SIDE, WIDTH, EMBEDDED = 32, 32, 24


@dataclass(frozen=True)
class SavedAdapter:
    """Files of an adapter, and what is in them."""

    weights: str
    image_encoder: str
    parts: dict[str, dict[str, Tensor]]
    encoder: CLIPVisionModelWithProjection

    def technique(self, scale: float = 1.0) -> IPAdapter:
        return IPAdapter(self.weights, self.image_encoder, scale)


def save_ip_adapter(
    folder: Path, unet: UNet2DConditionModel, plus: bool = False, seed: int = 0, suffix: str = ".safetensors"
) -> SavedAdapter:
    """An adapter for the U-Net with an image encoder for 32 × 32 pixels, whose attention is as strong as the text's."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    crossed = unet.config.cross_attention_dim
    keys: dict[str, Tensor] = {}
    names = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
    for index, name in enumerate(names):
        inner = unet.get_submodule(f"{name}.to_k").weight.shape[0]
        keys |= {f"{2 * index + 1}.to_{kind}_ip.weight": 3 * numbers(inner, crossed) for kind in "kv"}
    if plus:
        inner, width = 128, 64  # two heads of 64
        projection = {
            "latents": numbers(1, 5, width),
            "proj_in.weight": numbers(width, WIDTH),
            "proj_in.bias": numbers(width),
            "proj_out.weight": numbers(crossed, width),
            "proj_out.bias": numbers(crossed),
            "norm_out.weight": 1 + numbers(crossed),
            "norm_out.bias": numbers(crossed),
        }
        for layer in range(4):  # as many as diffusers reads
            for part in ("0.norm1", "0.norm2", "1.0"):
                projection |= {f"layers.{layer}.{part}.weight": 1 + numbers(width),
                               f"layers.{layer}.{part}.bias": numbers(width)}  # fmt: skip
            projection |= {
                f"layers.{layer}.0.to_q.weight": numbers(inner, width),
                f"layers.{layer}.0.to_kv.weight": numbers(2 * inner, width),
                f"layers.{layer}.0.to_out.weight": numbers(width, inner),
                f"layers.{layer}.1.1.weight": numbers(4 * width, width),
                f"layers.{layer}.1.3.weight": numbers(width, 4 * width),
            }
    else:
        projection = {
            "proj.weight": numbers(4 * crossed, EMBEDDED),
            "proj.bias": numbers(4 * crossed),
            "norm.weight": 1 + numbers(crossed),
            "norm.bias": numbers(crossed),
        }
    parts = {"image_proj": projection, "ip_adapter": keys}
    path = folder / f"ip-adapter{'-plus' if plus else ''}_tiny{suffix}"
    if suffix == ".bin":
        torch.save(parts, path)
    else:
        save_file({f"{part}.{name}": value for part, held in parts.items() for name, value in held.items()}, path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=WIDTH, intermediate_size=64, projection_dim=EMBEDDED, num_hidden_layers=3,
                num_attention_heads=2, image_size=SIDE, patch_size=8,
            )
        ).eval()  # fmt: skip
    encoder.save_pretrained(folder / "image_encoder")
    return SavedAdapter(str(path), str(folder / "image_encoder"), parts, encoder)
