"""Layer ids of a diffusers U-Net, derived from its modules.

The ids are those of the field's code (generic-diffusion-feature): ``level`` counts down or up blocks in the order of
execution, ``repeat`` the residual blocks of a level, ``block`` the transformer blocks. Stable Diffusion 1.x has 197.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from gate_lightning.backbones.specs import LayerSpec

__all__ = ["skip_paths", "unet_layers"]

Entry = tuple[str, LayerSpec]
# blocks are Any below: diffusers has a dozen block classes without a common type


def unet_layers(unet: UNet2DConditionModel, latent_stride: int) -> dict[str, LayerSpec]:
    """Layer id → LayerSpec of a conditional U-Net, in the order of computation.

    Args:
        unet: any ``UNet2DConditionModel``, with any number of blocks.
        latent_stride: pixels of the image per position of the latents.
    """
    return dict(_in_order(unet, latent_stride))


def skip_paths(unet: UNet2DConditionModel) -> tuple[str, ...]:
    """Paths of the modules at which skip connections start, in the order of computation."""
    paths = ["conv_in"]
    for level, block in enumerate(unet.down_blocks):
        last = "attentions" if getattr(block, "attentions", ()) else "resnets"
        paths += [f"down_blocks.{level}.{last}.{repeat}" for repeat in range(len(block.resnets))]
        paths += [f"down_blocks.{level}.downsamplers.{index}" for index in range(len(block.downsamplers or ()))]
    return tuple(paths)


def _in_order(unet: UNet2DConditionModel, stride: int) -> Iterator[Entry]:
    yield "unet-in", LayerSpec("conv_in", "input", unet.conv_in.in_channels, stride)
    yield "unet-after-conv-in", LayerSpec("conv_in", "output", unet.conv_in.out_channels, stride)
    for level, block in enumerate(unet.down_blocks):
        yield from _repeats(block, f"down-level{level}", f"down_blocks.{level}", stride)
        if getattr(block, "downsamplers", None):
            stride *= 2
            channels = block.downsamplers[0].out_channels
            yield (
                f"down-level{level}-downsampler-out",
                LayerSpec(f"down_blocks.{level}.downsamplers.0", "output", channels, stride),
            )
    if unet.mid_block is not None:
        yield from _middle(unet.mid_block, stride)
    for level, block in enumerate(unet.up_blocks):
        yield from _repeats(block, f"up-level{level}", f"up_blocks.{level}", stride)
        if getattr(block, "upsamplers", None):
            stride //= 2
            channels = block.upsamplers[0].out_channels
            yield (
                f"up-level{level}-upsampler-out",
                LayerSpec(f"up_blocks.{level}.upsamplers.0", "output", channels, stride),
            )
    yield "unet-out", LayerSpec("conv_out", "output", unet.conv_out.out_channels, stride)


def _repeats(block: Any, name: str, path: str, stride: int) -> Iterator[Entry]:
    attentions = getattr(block, "attentions", ())
    for repeat, resnet in enumerate(block.resnets):
        yield from _resnet(resnet, f"{name}-repeat{repeat}", f"{path}.resnets.{repeat}", stride)
        if repeat < len(attentions):
            yield from _transformer(
                attentions[repeat], f"{name}-repeat{repeat}-vit", f"{path}.attentions.{repeat}", stride
            )


def _middle(block: Any, stride: int) -> Iterator[Entry]:
    # one residual block, then alternately attention and residual block
    attentions = getattr(block, "attentions", ())
    yield from _resnet(block.resnets[0], "mid-repeat0", "mid_block.resnets.0", stride)
    for index, resnet in enumerate(block.resnets[1:]):
        if index < len(attentions):
            name = "mid-vit" if index == 0 else f"mid-repeat{index}-vit"
            yield from _transformer(attentions[index], name, f"mid_block.attentions.{index}", stride)
        yield from _resnet(resnet, f"mid-repeat{index + 1}", f"mid_block.resnets.{index + 1}", stride)


def _resnet(resnet: Any, name: str, path: str, stride: int) -> Iterator[Entry]:
    channels = resnet.out_channels
    yield f"{name}-res-increment", LayerSpec(f"{path}.conv2", "output", channels, stride)
    yield f"{name}-res-out", LayerSpec(path, "output", channels, stride)


def _transformer(vit: Any, name: str, path: str, stride: int) -> Iterator[Entry]:
    if not isinstance(vit, Transformer2DModel):
        return
    for index, block in enumerate(vit.transformer_blocks):
        yield from _transformer_block(block, f"{name}-block{index}", f"{path}.transformer_blocks.{index}", stride)
    yield f"{name}-out", LayerSpec(path, "output", vit.in_channels, stride)


def _transformer_block(block: Any, name: str, path: str, stride: int) -> Iterator[Entry]:
    def tokens(module: str, channels: int) -> LayerSpec:
        return LayerSpec(f"{path}.{module}", "tokens", channels, stride)

    own, cross = block.attn1, block.attn2
    for part in "qkv":
        channels = getattr(own, f"to_{part}").out_features
        yield f"{name}-self-{part}", tokens(f"attn1.to_{part}", channels)
    yield f"{name}-self-map", LayerSpec(f"{path}.attn1", "attention", own.heads, 0)
    if cross is not None:
        yield f"{name}-cross-q", tokens("attn2.to_q", cross.to_q.out_features)
        yield f"{name}-cross-map", LayerSpec(f"{path}.attn2", "attention", cross.heads, 0)
    inner = block.ff.net[2].in_features
    yield f"{name}-ffn-inner", tokens("ff.net.0", inner)
    yield f"{name}-out", LayerSpec(path, "tokens", own.to_q.in_features, stride)
