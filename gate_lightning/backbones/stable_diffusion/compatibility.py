"""Checks that networks belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import ControlNetModel, UNet2DConditionModel

from gate_lightning.errors import WeightsError

__all__ = ["check_controlnet", "check_parts"]


def check_parts(
    unet: Mapping[str, Any], vae: Mapping[str, Any], text_encoders: Sequence[tuple[Mapping[str, Any], int]]
) -> None:
    """Raise WeightsError unless these are the parts of one Stable Diffusion model: 1.x, 2.x or XL.

    Args:
        unet, vae: their configs.
        text_encoders: config of each (one, or two for SDXL) with the number of tokens its tokenizer knows.
    """
    extra = unet.get("addition_embed_type") or unet.get("class_embed_type")
    if extra and (len(text_encoders), extra) != (2, "text_time"):
        xl = ", as Stable Diffusion XL does" if extra == "text_time" else ""
        raise WeightsError(
            f"the U-Net needs additional conditions ({extra!r}{xl}); "
            f"expected a Stable Diffusion 1.x or 2.x model, or an XL one with both of its text encoders"
        )
    for config, tokens in text_encoders:
        # transformers gives a two-token tokenizer, without an error, for a folder that holds none
        vocabulary = config.get("vocab_size")
        if tokens != vocabulary:
            raise WeightsError(
                f"the tokenizer has {tokens} tokens, the text encoder {vocabulary}: the tokenizer's files are missing "
                f"or belong to another model. Expected tokenizer/ with vocab.json and merges.txt, or tokenizer.json"
            )
    _check_values(unet, vae)
    widths = [config.get("hidden_size", 0) for config, _ in text_encoders]
    width = sum(one for one in widths if isinstance(one, int))
    expected = unet.get("cross_attention_dim")
    if width != expected:
        raise WeightsError(
            f"the text encoder{'s give' if len(text_encoders) > 1 else ' gives'} {width} channels, the U-Net reads "
            f"{expected}: parts of two models"
        )
    reads, gives = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if reads != gives:
        raise WeightsError(
            f"the U-Net reads {reads} channels, the autoencoder gives {gives}; "
            f"expected a text-to-image model (not inpainting, depth or upscaling)"
        )
    if vae.get("latents_mean") is not None or vae.get("latents_std") is not None:
        raise WeightsError(
            "the autoencoder normalises its latents by mean and deviation (latents_mean, as Playground v2.5 does); "
            "expected one with a scaling factor alone"
        )


def _check_values(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Raise WeightsError unless numbers that no tensor's shape tells are numbers."""
    sides = unet.get("sample_size", 64)
    sides = list(sides) if isinstance(sides, list | tuple) else [sides]
    values = {
        "the U-Net's sample_size": bool(sides) and all(_number(side) and side >= 1 for side in sides),
        "the autoencoder's scaling_factor": _number(vae.get("scaling_factor", 1)) and vae.get("scaling_factor", 1) > 0,
        "the autoencoder's shift_factor": vae.get("shift_factor") is None or _number(vae["shift_factor"]),
        "the autoencoder's latent_channels": isinstance(vae.get("latent_channels", 4), int),
        "the autoencoder's out_channels": isinstance(vae.get("out_channels", 3), int),
        "the autoencoder's force_upcast": isinstance(vae.get("force_upcast", True), bool | int | None),
    }
    wrong = [name for name, fits in values.items() if not fits]
    if wrong:
        raise WeightsError(
            f"{', '.join(wrong)} in its config.json cannot be; take the config that the weights came with"
        )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def check_controlnet(
    name: str, controlnet: ControlNetModel, unet: UNet2DConditionModel, latent_stride: int, backbone: str
) -> None:
    """Raise WeightsError unless the ControlNet's residuals fit the U-Net."""
    own, other = unet.config, controlnet.config
    keys = ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim")
    wrong = [f"{key} {other[key]} (U-Net: {own[key]})" for key in keys if _plain(own[key]) != _plain(other[key])]
    stages = other["conditioning_embedding_out_channels"]
    stride = 2 ** (len(stages) - 1)
    if stride != latent_stride:
        wrong.append(f"control images reduced by {stride} (latents: {latent_stride})")
    if wrong:
        raise WeightsError(
            f"ControlNet {name!r} is made for another architecture than {backbone}: {', '.join(wrong)}. "
            f"Give one trained on this backbone"
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
