"""The embedded tiny latent diffusion model: architectures and folder assembly.

Everything here is an ordinary diffusers/transformers class with small numbers in its config, so the finished folder
loads with ``StableDiffusionPipeline.from_pretrained`` like any other.  Images are 64 x 64, latents 4 x 16 x 16.

``layers_per_block=2`` is not the fastest choice, but it gives the U-Net the block structure of Stable Diffusion 1.x and
with it the same layer ids, which is what makes the model a stand-in for the real one.
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from gate_lightning.backbones.tiny.tokenizer import MAX_TOKENS
from gate_lightning.utils.files import publish, write_atomically, writing

log = logging.getLogger(__name__)

IMAGE_SIZE = 64
"""Side of the images in pixels."""
LATENT_SIZE = 16
"""Side of the latents in pixels."""
TEXT_WIDTH = 128
"""Width of the prompt embeddings and of the U-Net's cross-attention."""
SCALING_FACTOR = 0.18215
"""Stable Diffusion's latent scale.  The trained autoencoder is folded (see `fold_latent_statistics`) to deserve it."""

_PIPELINE = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
"""``model_index.json``: which class loads which sub-folder."""


def build_autoencoder() -> AutoencoderKL:
    """Untrained autoencoder (0.65 M parameters): (B, 3, 64, 64) in [-1, 1] to (B, 4, 16, 16).

    The posterior starts nearly deterministic (log-variance about -6): with unit noise at the start the first hundreds
    of steps are spent fighting it.
    """
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
        scaling_factor=SCALING_FACTOR,
    )
    with torch.no_grad():
        vae.quant_conv.weight[4:] *= 0.1
        vae.quant_conv.bias[4:] = -6.0
    return vae


def build_unet(
    block_out_channels: Sequence[int] = (32, 64, 96, 96), heads: Sequence[int] = (1, 2, 2, 2)
) -> UNet2DConditionModel:
    """Untrained U-Net (5.7 M parameters) with Stable Diffusion 1.x's block structure.

    Args:
        block_out_channels: width of the four levels (16, 8, 4 and 2 px wide).
        heads: attention heads per level.  Few and wide heads: on a CPU many small ones dominate the step.
    """
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=4,
        out_channels=4,
        block_out_channels=tuple(block_out_channels),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=TEXT_WIDTH,
        # Under this historical name diffusers expects the number of heads, as every SD 1.x config does.
        attention_head_dim=tuple(heads),
        norm_num_groups=16,
    )


def build_controlnet(unet: UNet2DConditionModel, latent_stride: int = 4) -> ControlNetModel:
    """ControlNet that starts as a copy of the U-Net's encoder (2.4 M parameters for the embedded one).

    The image-to-latent embedding halves the size once per entry after the first: three entries take the 64 px
    control image to the 16 px latents, four those of Stable Diffusion to an eighth. Its last convolution does not start
    at zero, as it does in diffusers: in front of zero convolutions, a second zero gets hardly any gradient, and the
    control is ignored for long.

    Args:
        unet: of any model of the Stable Diffusion family.
        latent_stride: pixels of the image per position of the latents.
    """
    channels = (8, 16, 32) if latent_stride == 4 else (16, 32, 96, 256)[: latent_stride.bit_length()]
    controlnet = ControlNetModel.from_unet(unet, conditioning_channels=3, conditioning_embedding_out_channels=channels)
    controlnet.controlnet_cond_embedding.conv_out.reset_parameters()
    return controlnet


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Untrained two-layer CLIP text model for the tokenizer: ids (B, 40) to embeddings (B, 40, 128)."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            # Scaled-dot-product attention is the slow path in CPU training; eager is a plain matrix product.
            attn_implementation="eager",
        )
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule; the config also suits PNDM, DPM++ and the other diffusers samplers."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class MatmulAttention:
    """Attention as two matrix products, for training on a CPU.

    On a CPU in bfloat16 the fused attention's backward pass takes half of the step at this size; plain products
    double the training speed.  Attention processors are not saved: a written folder stays ordinary.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Attend from (B, N, C) to itself or to (B, M, D); no masks, norms or 4-d inputs (SD 1.x has none here)."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
        weights = (query * attn.scale @ key.transpose(-1, -2)).softmax(dim=-1)
        out = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))


@torch.no_grad()
def fold_latent_statistics(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Rescale the latent channels inside the autoencoder so that ``scaling_factor`` times them has mean 0 and std 1.

    The change of variables goes into the two 1 x 1 convolutions around the latents; reconstructions do not change.

    Args:
        vae: changed in place.
        mean: (4,) channel means of the unscaled posterior means.
        std: (4,) their standard deviations.
    """
    gain = 1.0 / (vae.config.scaling_factor * std)
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] *= gain[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) * gain
    quant.bias[channels:] += 2.0 * gain.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight /= gain[None, :, None, None]


def write_folder(folder: Path, dtype: torch.dtype = torch.float16, **parts: Any) -> None:
    """Write parts of a Stable Diffusion folder; parts that are not given are left as they are on disk.

    Args:
        folder: created where missing.
        dtype: floating-point type of the weights on disk; the modules themselves are not changed.
        parts: any of ``vae unet text_encoder tokenizer scheduler controlnet``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    transformers_logging.disable_progress_bar()  # a bar per file is noise
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            # nn.Module's own `to`: diffusers' warns about an empty list of modules
            part = nn.Module.to(copy.deepcopy(part), "cpu", dtype)
        with writing(folder / name), tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as beside:
            part.save_pretrained(beside)
            if isinstance(part, nn.Module):
                _mend(Path(beside) / "config.json", single_precision=isinstance(part, CLIPTextModel))
            (folder / name).mkdir(exist_ok=True)
            for file in sorted(Path(beside).iterdir()):  # under their names only when they are whole
                publish(file, folder / name / file.name)
    if (folder / "unet").is_dir():
        write_atomically(folder / "model_index.json", f"{json.dumps(_PIPELINE, indent=2)}\n".encode())
    log.info("Wrote %s to %s as %s.", ", ".join(parts), folder, dtype)


def _mend(config: Path, single_precision: bool) -> None:
    """Remove the local source folder from a part's config, and set the dtype to load it in.

    Without ``single_precision``, transformers would load half-precision weights as such, unlike diffusers its parts;
    a plain ``StableDiffusionPipeline.from_pretrained`` fails on the mixture.
    """
    values = json.loads(config.read_text(encoding="utf-8"))
    values.pop("_name_or_path", None)
    if single_precision:
        values["dtype"] = "float32"
    config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
