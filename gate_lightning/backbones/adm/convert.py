"""Conversion of guided-diffusion (ADM) checkpoints to diffusers' ``UNet2DModel``.

The architecture follows from the shapes of the tensors, except for the size of the training images and the channels of
an attention head (see the flags in guided-diffusion's README). Differences besides names:

* Attention keeps one matrix for queries, keys and values, grouped by head (head 0's q, k, v, head 1's …: the "legacy"
  order, which all published checkpoints have); diffusers has three matrices over all heads.
* diffusers' middle block has no norm before its attention under scale-shift, unless ``attn_norm_num_groups`` is set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from gate_lightning.backbones.weights.networks import build_network, fill_network
from gate_lightning.backbones.weights.original_names import original_names
from gate_lightning.errors import ConfigError, WeightsError

__all__ = ["ADMArchitecture", "adm_unet", "convert_adm", "read_architecture"]

State = Mapping[str, Tensor]

_GROUPS = 32
_OUTPUT = re.compile(r"output_blocks\.([0-9]{1,4})\.")


@dataclass(frozen=True)
class ADMArchitecture:
    """Architecture of a guided-diffusion U-Net.

    Attributes:
        channels: channels of each level, finest first.
        attention: for each level, True if it has attention.
        res_blocks: residual blocks per level of the encoder; the decoder has one more.
        head_channels: channels of an attention head.
        in_channels, out_channels: channels of images and prediction (6: with a learned variance).
        scale_shift: True if the time embedding scales and shifts, False if it is added.
        residual_resampling: True if residual blocks resample, False if plain convolutions do.
        image_size: side in pixels of the training images.
    """

    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    res_blocks: int = 2
    head_channels: int = 64
    in_channels: int = 3
    out_channels: int = 6
    scale_shift: bool = True
    residual_resampling: bool = True
    image_size: int = 256

    def __post_init__(self) -> None:
        # the middle block always has attention
        attended = {
            *(width for width, has in zip(self.channels, self.attention, strict=True) if has),
            self.channels[-1],
        }
        odd = sorted(width for width in attended if self.head_channels < 1 or width % self.head_channels)
        if odd:
            raise ConfigError(
                f"head_channels={self.head_channels} does not divide the {', '.join(map(str, odd))} channels of the "
                f"attention layers; set backbone.head_channels to what the model was trained with (num_head_channels)"
            )

    @property
    def config(self) -> dict[str, Any]:
        """Config of the diffusers ``UNet2DModel``."""
        plain = "Resnet{}sampleBlock2D" if self.residual_resampling else "{}Block2D"
        down, up = (plain.format(way if self.residual_resampling else way.capitalize()) for way in ("Down", "Up"))
        return {
            "sample_size": self.image_size,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "layers_per_block": self.res_blocks,
            "block_out_channels": self.channels,
            "down_block_types": tuple("AttnDownBlock2D" if has else down for has in self.attention),
            "up_block_types": tuple("AttnUpBlock2D" if has else up for has in reversed(self.attention)),
            "downsample_type": "resnet" if self.residual_resampling else "conv",
            "upsample_type": "resnet" if self.residual_resampling else "conv",
            "attention_head_dim": self.head_channels,
            "norm_num_groups": _GROUPS,
            "attn_norm_num_groups": _GROUPS,
            "norm_eps": 1e-5,
            "resnet_time_scale_shift": "scale_shift" if self.scale_shift else "default",
            "flip_sin_to_cos": True,
            "freq_shift": 0,
        }


def adm_unet(
    state: State, head_channels: int = 64, image_size: int = 256, dtype: torch.dtype = torch.float32
) -> UNet2DModel:
    """Diffusers network with the weights of a guided-diffusion state dict, whose tensors it shares where possible.

    Args:
        state: guided-diffusion's state dict.
        head_channels: channels of an attention head (``num_head_channels``).
        image_size: side in pixels of the training images.
        dtype: floating-point type to convert to.

    Raises:
        WeightsError: another kind of state dict.
        ConfigError: head channels that do not divide the attention's channels.
    """
    config = read_architecture(state, head_channels, image_size).config
    unet = build_network(lambda: UNet2DModel(**config), config, len(state), "its U-Net")
    converted = convert_adm(state, unet, head_channels)
    return fill_network(unet, converted, dtype, "its U-Net", "Expected a checkpoint trained by guided-diffusion")


def read_architecture(state: State, head_channels: int = 64, image_size: int = 256) -> ADMArchitecture:
    """Architecture of a guided-diffusion state dict; arguments and errors as for ``adm_unet``."""
    _refuse_others(state)
    count = 1 + max(int(match[1]) for key in state if (match := _OUTPUT.match(key)))
    # behind residual block and attention: what goes up
    up = re.compile(r"output_blocks\.([0-9]{1,4})\.[12]\.(in_layers\.0|conv)\.weight")
    ends = sorted({int(match[1]) for key in state if (match := up.fullmatch(key))})
    levels = len(ends) + 1
    repeats = count // levels
    if count % levels or ends != [repeats * (level + 1) - 1 for level in range(levels - 1)] or repeats < 2:
        raise WeightsError(
            f"{count} output blocks, of which {ends} change the size: no guided-diffusion U-Net, whose levels have "
            f"equally many blocks"
        )
    first = [repeats * (levels - 1 - level) for level in range(levels)]  # of each level's output blocks, finest first
    channels = tuple(_get(state, f"output_blocks.{block}.0.out_layers.3.weight") for block in first)
    embedding = _get(state, "time_embed.0.weight", 1)
    if embedding != channels[0]:
        raise WeightsError(
            f"the time embedding has {embedding} channels, the finest level {channels[0]}; only models where both are "
            f"equal can be converted (all published ones but those for 512 pixels)"
        )
    time = _get(state, "output_blocks.0.0.emb_layers.1.weight")
    return ADMArchitecture(
        channels=channels,
        attention=tuple(f"output_blocks.{block}.1.qkv.weight" in state for block in first),
        res_blocks=repeats - 1,
        head_channels=head_channels,
        in_channels=_get(state, "input_blocks.0.0.weight", 1),
        out_channels=_get(state, "out.2.weight"),
        scale_shift=time == 2 * channels[-1],
        residual_resampling=not any(re.fullmatch(r"output_blocks\.\d+\.[12]\.conv\.weight", key) for key in state),
        image_size=image_size,
    )


def convert_adm(state: State, unet: UNet2DModel, head_channels: int) -> dict[str, Tensor]:
    """State dict of the diffusers network ``unet`` from a guided-diffusion one; keys without a place keep their names.

    Args:
        state: guided-diffusion's state dict.
        unet: network of the same architecture; its parameters may be on the meta device.
        head_channels: channels of an attention head.
    """
    names = dict(original_names(unet))
    converted: dict[str, Tensor] = {}
    left = dict(state)
    for path, part in (parameter.rpartition(".")[::2] for parameter in unet.state_dict()):
        source = f"{names[path]}.{part}"
        if source not in state:
            continue
        tensor = state[source]
        left.pop(source, None)
        if ".qkv." in source:
            tensor = _split_heads(tensor, head_channels)["qkv".index(path[-1])]
        # attention projects with convolutions over positions, (C', C, 1)
        converted[f"{path}.{part}"] = tensor.flatten(1) if tensor.ndim == 3 else tensor
    return converted | left


def _split_heads(fused: Tensor, head_channels: int) -> list[Tensor]:
    """Queries, keys and values (heads · head_channels, …) of a fused tensor (heads · 3 · head_channels, …)."""
    if not fused.ndim or len(fused) % (3 * head_channels):  # the shapes are compared, and named, later
        return [fused] * 3
    grouped = fused.unflatten(0, (-1, 3, head_channels))
    return [grouped[:, part].flatten(0, 1).contiguous() for part in range(3)]


def _get(state: State, key: str, axis: int = 0) -> int:
    """Size of a tensor along an axis."""
    if key not in state:
        raise WeightsError(f"no {key} in the checkpoint, which looks like guided-diffusion's otherwise; is it whole?")
    if state[key].ndim <= axis:
        raise WeightsError(f"{key} is {tuple(state[key].shape)}, of fewer axes than guided-diffusion's")
    return state[key].shape[axis]


def _refuse_others(state: State) -> None:
    """Raise WeightsError unless these are the keys of an unconditional guided-diffusion U-Net over RGB images."""
    if not any(_OUTPUT.match(key) for key in state):
        prefix = next((key[: key.index("output_blocks.")] for key in state if "output_blocks." in key), "")
        hint = f" They fit behind {prefix!r}: save them without" if prefix else ""
        raise WeightsError(
            f"no guided-diffusion U-Net: none of its {len(state)} keys starts with output_blocks. "
            f"First keys: {', '.join(list(state)[:6])}.{hint}"
        )
    if "label_emb.weight" in state:
        raise WeightsError(
            f"a class-conditional model ({_get(state, 'label_emb.weight')} classes); expected an unconditional one, "
            f"for ImageNet 256x256_diffusion_uncond.pt"
        )
    channels = _get(state, "input_blocks.0.0.weight", 1)
    if channels != 3:
        raise WeightsError(f"the model reads {channels} channels (6: an upsampler); expected 3, an RGB image")
