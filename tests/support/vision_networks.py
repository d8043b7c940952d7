"""Small vision transformers of the library, with random weights, and folders of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

SMALL: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 4,
    "image_size": 32,
}
MLP: dict[str, Any] = {"intermediate_size": 40}
#: model_type → class, further settings, tokens before the patches, arguments of the library's pass
KINDS: dict[str, tuple[Any, dict[str, Any], int, dict[str, Any]]] = {
    "dinov2": (transformers.Dinov2Model, {"mlp_ratio": 2}, 1, {}),
    "dinov2_with_registers": (transformers.Dinov2WithRegistersModel, {"mlp_ratio": 2, "num_register_tokens": 3}, 4, {}),
    "dinov3_vit": (transformers.DINOv3ViTModel, {**MLP, "num_register_tokens": 2}, 3, {}),
    "vit": (transformers.ViTModel, MLP, 1, {"interpolate_pos_encoding": True}),
    "vit_mae": (transformers.ViTMAEModel, {**MLP, "mask_ratio": 0.0}, 1, {"interpolate_pos_encoding": True}),
    "clip_vision_model": (transformers.CLIPVisionModel, MLP, 1, {"interpolate_pos_encoding": True}),
    "siglip_vision_model": (transformers.SiglipVisionModel, MLP, 0, {"interpolate_pos_encoding": True}),
}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def network(kind: str, seed: int = 0) -> Any:
    """The library's network with random weights, position embeddings large enough to matter."""
    model, more, _, _ = KINDS[kind]
    torch.manual_seed(seed)
    made = model(model.config_class(**SMALL, **more)).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "position" in name or "token" in name:
                parameter.normal_()
    return made


def saved(kind: str, folder: Path, statistics: bool = True) -> Any:
    made = network(kind)
    made.save_pretrained(folder)
    if statistics:
        content = json.dumps({"image_mean": MEAN, "image_std": STD})
        (folder / "preprocessor_config.json").write_text(content)
    return made
