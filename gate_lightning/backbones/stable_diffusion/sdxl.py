"""Stable Diffusion XL and models of its architecture (Playground v2): two text encoders, image sizes as conditions.

Differences to Stable Diffusion 1.x and 2.x (Podell et al. 2023): the prompt embeddings are the outputs of the last but
one layer of both text encoders, concatenated over channels; the second encoder's pooled, projected vector and six
numbers about the image (§2.2: original size, crop, target size) are added to the time embedding; the autoencoder
overflows in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from gate_lightning.backbones.noise_schedule import NoiseSchedule
from gate_lightning.backbones.specs import Adapters, PromptEmbeds
from gate_lightning.backbones.stable_diffusion.compatibility import check_parts
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.ops.rows import on_device
from gate_lightning.structures import Identity
from gate_lightning.utils.checks import number, whole_number

__all__ = ["SDXLBackbone", "SizeConditions"]


@dataclass(frozen=True)
class SizeConditions:
    """Size conditions of the image (Podell et al. 2023, §2.2), in pixels; defaults as in the released GATE code.

    Args:
        original_size: (height, width) of the image before resizing; None for its size as it is.
        crop: (top, left) corner of the crop in the resized image.
        target_size: (height, width) of the image to generate; None for its size as it is. Without effect on models with
            an aesthetic score.
        aesthetic_score: about 1 to 10, in place of the target size for models trained with it.

    Raises:
        ConfigError: other values than pairs of whole numbers, or a score that is no number.
    """

    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    aesthetic_score: float = 6.0

    def __post_init__(self) -> None:
        for key, least in (("original_size", 1), ("crop", 0), ("target_size", 1)):
            value = getattr(self, key)
            if value is None and key != "crop":
                continue
            name = f"backbone.size_conditions.{key}"
            if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
                raise ConfigError(f"{name}={value!r}: expected two whole numbers of {least} or more")
            object.__setattr__(self, key, tuple(whole_number(pixels, name, least) for pixels in value))
        number(self.aesthetic_score, "backbone.size_conditions.aesthetic_score")

    def numbers(self, height: int, width: int, with_score: bool) -> tuple[float, ...]:
        """Conditioning numbers of an image of that size, in the model's order."""
        last = (self.aesthetic_score,) if with_score else self.target_size or (height, width)
        return (*(self.original_size or (height, width)), *self.crop, *last)


class SDXLBackbone(UNetBackbone):
    """A latent diffusion model of SDXL's architecture, frozen.

    Args:
        unet, vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2: the parts of its pipeline. The autoencoder
            keeps its floating-point type, whatever the rest is converted to, if its config says ``force_upcast``.
        schedule, identity: see UNetBackbone.
        size_conditions: size conditions of the images.

    Raises:
        WeightsError: parts that do not belong together.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        schedule: NoiseSchedule,
        identity: Identity,
        size_conditions: SizeConditions | None = None,
    ) -> None:
        encoders = [
            (text_encoder.config.to_dict(), len(tokenizer)),
            (text_encoder_2.config.to_dict(), len(tokenizer_2)),
        ]
        check_parts(unet.config, vae.config, encoders)
        super().__init__(unet, vae, text_encoder, tokenizer, schedule, identity)
        self.text_encoder_2, self.tokenizer_2 = text_encoder_2, tokenizer_2
        self.size_conditions = size_conditions or SizeConditions()
        self.reads_score = _reads_score(unet, text_encoder_2)
        reads = min(int(tokenizer_2.model_max_length), int(text_encoder_2.config.max_position_embeddings))
        if reads != self.max_tokens:
            raise WeightsError(f"the text encoders read {self.max_tokens} and {reads} tokens: parts of two models")
        self.freeze()

    def _check(self, *parts: Any) -> None:
        pass  # with both text encoders, before

    def _parts(self) -> dict[str, Any]:
        own = ("text_encoder_2", "tokenizer_2", "size_conditions")
        return super()._parts() | {name: getattr(self, name) for name in own}

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # every conversion of a module comes through here
        def moved(tensor: Tensor) -> Tensor:
            converted: Tensor = fn(tensor)
            return converted if converted.dtype == tensor.dtype else tensor.to(converted.device)

        if not recurse or not self.vae.config.force_upcast:
            return super()._apply(fn, recurse)
        for name, child in self.named_children():
            child._apply(moved if name == "vae" else fn)
        return self

    @property
    def adapted_parts(self) -> dict[str, nn.Module]:
        """The networks that LoRA files may have parts for, by the names of those parts."""
        return {**super().adapted_parts, "text_encoder_2": self.text_encoder_2}

    def encode_text(self, prompts: Sequence[str], adapters: Adapters = ()) -> PromptEmbeds:
        """Embeddings (B, T, C) of both encoders and the pooled vector (B, P) of the second one, as the pipeline's.

        Of a prompt read in several windows, the pooled vector is that of the first one with an end mark in it.
        """
        with _last_but_one(self.text_encoder) as first:
            self._read_text("text_encoder", self.text_encoder, self.tokenizer, prompts, adapters)
        with _last_but_one(self.text_encoder_2) as second:
            outputs = self._read_text("text_encoder_2", self.text_encoder_2, self.tokenizer_2, prompts, adapters)
        lengths = [[hidden.shape[1] for hidden in windows] for windows in (first, second)]
        if lengths[0] != lengths[1]:
            raise ConfigError(
                f"the text encoders of {self.identity.name} read prompts of {sum(lengths[0])} and {sum(lengths[1])} "
                f"tokens (a learned token has more vectors for one, or the prompt several !); shorten the prompt"
            )
        windows = [torch.cat(both, dim=-1) for both in zip(first, second, strict=True)]
        end = self.tokenizer_2.eos_token_id
        pooled = next(output.text_embeds for ids, output in outputs if bool((ids == end).any(dim=1).all()))
        return PromptEmbeds(torch.cat(windows, dim=1) if len(windows) > 1 else windows[0], pooled)

    def text_adapters(self, adapters: Adapters) -> Adapters:
        """Subset of ``adapters`` that changes a text encoder."""
        acting = {*super().text_adapters(adapters), *self.adapters.acting_on("text_encoder_2", adapters)}
        return tuple(adapter for adapter in adapters if adapter in acting)

    @property
    def description(self) -> dict[str, object]:
        """Weights, ControlNets, adapters and size conditions, JSON-able."""
        return {**super().description, "size_conditions": asdict(self.size_conditions)}

    def _added_conditions(self, latents: Tensor, prompt_embeds: PromptEmbeds) -> dict[str, Tensor]:
        if prompt_embeds.pooled is None:
            raise ConfigError(
                f"{self.identity.name} needs the pooled vector of each prompt; encode them with encode_text"
            )
        height, width = (side * self.latent_stride for side in latents.shape[-2:])
        numbers = self.size_conditions.numbers(height, width, self.reads_score)
        # float32 whatever the weights are: bfloat16 counts pixels in steps of up to 8
        time_ids = on_device(numbers, latents.device, torch.float32).expand(len(latents), -1)
        return {"text_embeds": prompt_embeds.pooled, "time_ids": time_ids}


@contextmanager
def _last_but_one(encoder: Any) -> Iterator[list[Tensor]]:
    """Context that collects the outputs (B, n, C) of the last but one layer of a CLIP text encoder, one per pass.

    By a hook that is removed: the ones by which transformers returns hidden states stay in the network for good.
    """
    states: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        states.append(inputs[0] if inputs else named["hidden_states"])

    layers = getattr(encoder, "text_model", encoder).encoder.layers
    handle = layers[-1].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield states
    finally:
        handle.remove()


def _reads_score(unet: UNet2DConditionModel, text_encoder_2: CLIPTextModelWithProjection) -> bool:
    """True if the U-Net reads an aesthetic score (five numbers) instead of a target size (six)."""
    width, per_number = unet.config.projection_class_embeddings_input_dim, unet.config.addition_time_embed_dim
    count = (width - text_encoder_2.config.projection_dim) / per_number if width and per_number else 0
    if count not in (5, 6):
        raise WeightsError(
            f"the U-Net reads {width} numbers besides the text, of which the second text encoder gives "
            f"{text_encoder_2.config.projection_dim} and each size {per_number}: parts of two models"
        )
    return count == 5
