"""Writes small networks in the layout of the original Stable Diffusion code: the test's own map of names.

Written from how the blocks are numbered there (input_blocks, middle_block, output_blocks; down, mid, up; resblocks),
without diffusers' conversion.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def original_unet(unet: Any) -> dict[str, Tensor]:
    """Keys of ``model.diffusion_model.``, without that prefix."""
    out: dict[str, Tensor] = {}
    _copy(out, "time_embed.0", unet.time_embedding.linear_1)
    _copy(out, "time_embed.2", unet.time_embedding.linear_2)
    _copy(out, "input_blocks.0.0", unet.conv_in)
    _copy(out, "out.0", unet.conv_norm_out)
    _copy(out, "out.2", unet.conv_out)
    if getattr(unet, "add_embedding", None) is not None:
        _copy(out, "label_emb.0.0", unet.add_embedding.linear_1)
        _copy(out, "label_emb.0.2", unet.add_embedding.linear_2)
    number = 0
    for block in unet.down_blocks:
        for index, resnet in enumerate(block.resnets):
            number += 1
            _resnet(out, f"input_blocks.{number}.0", resnet)
            if getattr(block, "attentions", None):
                _copy(out, f"input_blocks.{number}.1", block.attentions[index])
        if block.downsamplers:
            number += 1
            _copy(out, f"input_blocks.{number}.0.op", block.downsamplers[0].conv)
    _resnet(out, "middle_block.0", unet.mid_block.resnets[0])
    _copy(out, "middle_block.1", unet.mid_block.attentions[0])
    _resnet(out, "middle_block.2", unet.mid_block.resnets[1])
    number = -1
    for block in unet.up_blocks:
        place = 1
        for index, resnet in enumerate(block.resnets):
            number += 1
            _resnet(out, f"output_blocks.{number}.0", resnet)
            if getattr(block, "attentions", None):
                _copy(out, f"output_blocks.{number}.1", block.attentions[index])
                place = 2
        if block.upsamplers:
            _copy(out, f"output_blocks.{number}.{place}.conv", block.upsamplers[0].conv)
    return out


def original_vae(vae: Any) -> dict[str, Tensor]:
    """Keys of ``first_stage_model.``, without that prefix."""
    out: dict[str, Tensor] = {}
    _copy(out, "quant_conv", vae.quant_conv)
    _copy(out, "post_quant_conv", vae.post_quant_conv)
    for side, network in (("encoder", vae.encoder), ("decoder", vae.decoder)):
        _copy(out, f"{side}.conv_in", network.conv_in)
        _copy(out, f"{side}.norm_out", network.conv_norm_out)
        _copy(out, f"{side}.conv_out", network.conv_out)
        for index, resnet in enumerate(network.mid_block.resnets):
            _shortcut(out, f"{side}.mid.block_{index + 1}", resnet)
        attention = network.mid_block.attentions[0]
        _copy(out, f"{side}.mid.attn_1.norm", attention.group_norm)
        linears = {"q": attention.to_q, "k": attention.to_k, "v": attention.to_v, "proj_out": attention.to_out[0]}
        for name, linear in linears.items():
            out[f"{side}.mid.attn_1.{name}.weight"] = linear.weight[:, :, None, None]  # a 1 x 1 convolution there
            out[f"{side}.mid.attn_1.{name}.bias"] = linear.bias
    for level, block in enumerate(vae.encoder.down_blocks):
        for index, resnet in enumerate(block.resnets):
            _shortcut(out, f"encoder.down.{level}.block.{index}", resnet)
        if block.downsamplers:
            _copy(out, f"encoder.down.{level}.downsample.conv", block.downsamplers[0].conv)
    for level, block in enumerate(reversed(vae.decoder.up_blocks)):  # counted from the finest
        for index, resnet in enumerate(block.resnets):
            _shortcut(out, f"decoder.up.{level}.block.{index}", resnet)
        if block.upsamplers:
            _copy(out, f"decoder.up.{level}.upsample.conv", block.upsamplers[0].conv)
    return out


def original_clip(encoder: nn.Module) -> dict[str, Tensor]:
    """Keys of ``….transformer.``, without that prefix; with the counter that older versions saved."""
    out = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in encoder.state_dict().items()}
    out["text_model.embeddings.position_ids"] = torch.arange(40)[None]
    return out


def original_open_clip(encoder: Any) -> dict[str, Tensor]:
    """Keys of ``….model.``, without that prefix; with what the model does not use."""
    text = getattr(encoder, "text_model", encoder)
    out: dict[str, Tensor] = {
        "positional_embedding": text.embeddings.position_embedding.weight,
        "token_embedding.weight": text.embeddings.token_embedding.weight,
        "logit_scale": torch.tensor(4.6),
        "attn_mask": torch.zeros(40, 40),
    }
    _copy(out, "ln_final", text.final_layer_norm)
    for index, layer in enumerate(text.encoder.layers):
        own = layer.self_attn
        place = f"transformer.resblocks.{index}"
        projections = (own.q_proj, own.k_proj, own.v_proj)
        out[f"{place}.attn.in_proj_weight"] = torch.cat([one.weight for one in projections])
        out[f"{place}.attn.in_proj_bias"] = torch.cat([one.bias for one in projections])
        _copy(out, f"{place}.attn.out_proj", own.out_proj)
        for name, original in _OPEN_CLIP.items():
            _copy(out, f"{place}.{original}", layer.get_submodule(name))
    width = text.embeddings.position_embedding.weight.shape[1]
    projection = getattr(encoder, "text_projection", None)
    out["text_projection"] = torch.randn(width, width) if projection is None else projection.weight.T
    if projection is None:  # SD 2.x reads the last but one of its layers
        last = f"transformer.resblocks.{len(text.encoder.layers)}"
        out[f"{last}.ln_1.weight"] = torch.randn(width)
        out[f"{last}.attn.in_proj_weight"] = torch.randn(3 * width, width)
    return out


def under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The keys with their prefix, each tensor on its own."""
    return {prefix + name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}


def averaged(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """U-Net keys as the original code names its averages: without dots."""
    return {f"model_ema.diffusion_model{name.replace('.', '')}": tensor.detach() for name, tensor in weights.items()}


def _copy(out: dict[str, Tensor], name: str, module: nn.Module) -> None:
    out.update({f"{name}.{key}": tensor for key, tensor in module.state_dict().items()})


def _resnet(out: dict[str, Tensor], name: str, resnet: nn.Module) -> None:
    for child, module in resnet.named_children():
        if child in _RESNET:
            _copy(out, f"{name}.{_RESNET[child]}", module)


def _shortcut(out: dict[str, Tensor], name: str, resnet: nn.Module) -> None:
    for child, module in resnet.named_children():
        if next(module.parameters(), None) is not None:
            _copy(out, f"{name}.{'nin_shortcut' if child == 'conv_shortcut' else child}", module)
