"""The Stable Diffusion family: AutoencoderKL + CLIP text encoder + UNet2DConditionModel + ControlNets + LoRA.

Stable Diffusion 1.x, 2.x, their fine-tunes and the embedded tiny model, all as ordinary diffusers networks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from gate_lightning.backbones.adapters.bank import AdapterBank
from gate_lightning.backbones.adapters.image_prompt_files import read_image_prompt_adapter
from gate_lightning.backbones.adapters.image_prompts import ImagePromptAdapter
from gate_lightning.backbones.adapters.learned_embeddings import read_learned_prompt, read_learned_tokens
from gate_lightning.backbones.adapters.lora_files import read_adapter
from gate_lightning.backbones.adapters.sources import ADAPTER_FILES, adapter_file
from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.noise_schedule import NoiseSchedule
from gate_lightning.backbones.specs import AdapterKind, Adapters, LayerSpec, PromptEmbeds, Residuals
from gate_lightning.backbones.stable_diffusion.clip_text import LongPrompts, prompt_words, text_length, token_windows
from gate_lightning.backbones.stable_diffusion.compatibility import check_controlnet, check_parts
from gate_lightning.backbones.stable_diffusion.layer_names import averaged_attention, unet_aliases
from gate_lightning.backbones.stable_diffusion.layer_table import skip_paths, unet_layers
from gate_lightning.backbones.weights.locate import PART_PATTERNS, find_weights, folder_digest, variants, weight_files
from gate_lightning.backbones.weights.networks import open_part
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.structures import Identity

__all__ = ["UNetBackbone"]

log = logging.getLogger(__name__)

_READERS = {"lora": read_adapter, "tokens": read_learned_tokens, "prompt": read_learned_prompt}


class UNetBackbone(Backbone):
    """A latent text-to-image diffusion model with a U-Net, frozen.

    Args:
        unet, vae, text_encoder, tokenizer: the parts of a Stable Diffusion pipeline.
        schedule: the noise schedule that the U-Net was trained on.
        identity: name, revision and digest of the weights.

    Attributes:
        controlnet_sources: name → folder or hub id of ControlNets, each loaded when a branch first needs it.
        offline: never download ControlNets and adapters.
        long_prompts: see `clip_text`.

    Raises:
        WeightsError: parts that do not belong together.
    """

    family = "unet"

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        schedule: NoiseSchedule,
        identity: Identity,
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self._check(unet, vae, text_encoder, tokenizer)
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        self.tokenizer = tokenizer
        self.identity = identity
        self.controlnets = nn.ModuleDict()
        self.controlnet_sources: dict[str, str] = {}
        self.controlnet_digests: dict[str, str] = {}
        self.offline = False
        self.adapters = AdapterBank()
        self.image_prompt_adapters = nn.ModuleDict()
        self.long_prompts: LongPrompts = "windows"
        # ControlNets and IP-Adapters are trained on noisy latents
        noisy = () if schedule.reads_clean else ("controlnet", "ip_adapter")
        self.supports = frozenset({"prompt", "lora", *noisy})
        self.scaling_factor = float(vae.config.scaling_factor)
        self.shift_factor = float(vae.config.get("shift_factor") or 0.0)
        self.latent_channels = int(vae.config.latent_channels)
        self.latent_stride = 2 ** (len(vae.config.block_out_channels) - 1)
        self.layers = unet_layers(unet, self.latent_stride)
        self.aliases = unet_aliases(self.layers)
        # odd latents are exact (the U-Net goes back up to the size of each skip): only the autoencoder sets a multiple
        self.size_multiple = self.latent_stride
        self.minimum_size = self.latent_stride * 2 ** (len(unet.config.block_out_channels) - 1)
        sample_size = unet.config.sample_size
        sides = sample_size if isinstance(sample_size, Sequence) else [sample_size]
        self.native_size = max(sides) * self.latent_stride
        self.max_tokens = min(int(tokenizer.model_max_length), int(text_encoder.config.max_position_embeddings))
        self.derived = averaged_attention(self.layers, self.max_tokens, self.latent_stride)
        if not schedule.reads_clean:  # else there is no noise for a scheduler to step down from
            self.derived["vae-out"] = LayerSpec("", "image", int(vae.config.out_channels), 1)
        self.skips = skip_paths(unet)
        self.freeze()

    def _check(
        self, unet: UNet2DConditionModel, vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer
    ) -> None:
        """Raise WeightsError unless the parts belong together."""
        check_parts(unet.config, vae.config, [(text_encoder.config.to_dict(), len(tokenizer))])

    def with_unet(self, unet: UNet2DConditionModel, schedule: NoiseSchedule, identity: Identity) -> Self:
        """The same model with another U-Net and noise schedule: its other parts are shared, not copied.

        It has no ControlNets and adapters yet, and its U-Net is frozen, as that of every backbone.
        """
        made = type(self)(**{**self._parts(), "unet": unet}, schedule=schedule, identity=identity)
        made.offline, made.long_prompts = self.offline, self.long_prompts
        return made

    def _parts(self) -> dict[str, Any]:
        """Arguments of the constructor that are parts of the model."""
        return {name: getattr(self, name) for name in ("unet", "vae", "text_encoder", "tokenizer")}

    @property
    def denoiser(self) -> nn.Module:
        """The U-Net, where layer paths start."""
        return self.unet

    def check_timestep(self, timestep: int, key: str = "timestep") -> None:
        """See Backbone; one that has no effect, of a U-Net that reads clean latents, is warned about."""
        super().check_timestep(timestep, key)
        own = self.own_timestep
        if own is not None and timestep != round(own):
            log.warning(
                "%s reads clean latents at its own timestep, %g: timestep=%d has no effect on its features.",
                self.identity.name,
                own,
                timestep,
            )

    @property
    def own_timestep(self) -> float | None:
        """Constant time input of a U-Net that reads clean latents (CleanDIFT); None of others."""
        return float(self.schedule.time_input(0)) if self.schedule.reads_clean else None

    @property
    def adapted_parts(self) -> dict[str, nn.Module]:
        """The networks that LoRA files may have parts for, by the names of those parts."""
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents (B, c, H/stride, W/stride) of images (B, 3, H, W)."""
        posterior = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        mean, std = posterior.mean.to(self.dtype), posterior.std.to(self.dtype)
        return (mean - self.shift_factor) * self.scaling_factor, std * self.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W), about [-1, 1], of scaled latents."""
        latents = (latents / self.scaling_factor + self.shift_factor).to(self.vae.dtype)
        decoded: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return decoded.to(self.dtype)

    def encode_text(self, prompts: Sequence[str], adapters: Adapters = ()) -> PromptEmbeds:
        """Embeddings (B, T, C) of prompts of one ``text_length``, equal to the pipeline's.

        For prompts longer than the text encoder's input see ``long_prompts`` and `clip_text`. A learned prompt among
        the adapters replaces every prompt.
        """
        learned = self.adapters.learned_prompt(adapters)
        if learned is not None:
            embeds = learned.to(self.device, self.text_encoder.dtype).expand(len(prompts), -1, -1)
            return PromptEmbeds(embeds.contiguous())
        outputs = self._read_text("text_encoder", self.text_encoder, self.tokenizer, prompts, adapters)
        parts = [output[0] for _, output in outputs]
        return PromptEmbeds(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0])

    def text_length(self, prompt: str, adapters: Adapters = ()) -> int:
        """T of ``encode_text``; see Backbone."""
        learned = self.adapters.learned_prompt(adapters)
        if learned is not None:
            return len(learned)
        tokens = self.adapters.tokens("text_encoder", adapters)
        return text_length(self.tokenizer, prompt, self.max_tokens, self.long_prompts, tokens)

    def words_of(self, prompt: str, adapters: Adapters = ()) -> list[tuple[str, tuple[int, ...]]]:
        """Words of a prompt with their tokens; none of a learned prompt."""
        if self.adapters.learned_prompt(adapters) is not None:
            return []
        tokens = self.adapters.tokens("text_encoder", adapters)
        return prompt_words(self.tokenizer, prompt, self.max_tokens, self.long_prompts, tokens)

    def _read_text(
        self, part: str, encoder: Any, tokenizer: Any, prompts: Sequence[str], adapters: Adapters
    ) -> list[tuple[Tensor, Any]]:
        """Token ids (B, n) and output of the text encoder, window by window."""
        tokens = self.adapters.tokens(part, adapters)
        outputs: list[tuple[Tensor, Any]] = []
        with self.adapters.applied(encoder, part, [adapters] * len(prompts)):
            for window in token_windows(tokenizer, prompts, self.max_tokens, self.long_prompts, tokens):
                with window.placed(encoder) as ids:
                    outputs.append((window.ids, encoder(ids)))
        return outputs

    def text_adapters(self, adapters: Adapters) -> Adapters:
        """Subset of ``adapters`` that changes the text encoder."""
        return self.adapters.acting_on("text_encoder", adapters)

    def without_prompt(self, adapters: Adapters) -> Adapters:
        """Subset of ``adapters`` without learned prompts."""
        return tuple(adapter for adapter in adapters if self.adapters[adapter[0]].prompt is None)

    def forward(
        self,
        latents: Tensor,
        timestep: int,
        prompt_embeds: PromptEmbeds,
        residuals: Residuals | None,
        adapters: Sequence[Adapters] | None,
    ) -> Tensor:
        """One pass of the U-Net, see Backbone.denoise."""
        down = None if residuals is None else tuple(residuals[path] for path in self.skips)
        with self.adapters.applied(self.unet, "unet", adapters):
            prediction: Tensor = self.unet(
                latents,
                self.schedule.time_tensor(timestep, latents.device),
                encoder_hidden_states=prompt_embeds.hidden,
                added_cond_kwargs=self._added_conditions(latents, prompt_embeds),
                down_block_additional_residuals=down,
                mid_block_additional_residual=None if residuals is None else residuals["mid_block"],
                return_dict=False,
            )[0]
        return prediction

    def control_residuals(
        self, name: str, latents: Tensor, timestep: int, prompt_embeds: PromptEmbeds, control_images: Tensor
    ) -> Residuals:
        """Residuals of the ControlNet ``name``, one per skip connection and the middle block's, see Backbone."""
        down, middle = self.controlnets[name](
            latents,
            self.schedule.time_tensor(timestep, latents.device),
            encoder_hidden_states=prompt_embeds.hidden,
            controlnet_cond=control_images.to(latents),
            added_cond_kwargs=self._added_conditions(latents, prompt_embeds),
            return_dict=False,
        )
        return {**dict(zip(self.skips, down, strict=True)), "mid_block": middle}

    def _added_conditions(self, latents: Tensor, prompt_embeds: PromptEmbeds) -> dict[str, Tensor] | None:
        """Conditions of the U-Net and its ControlNets besides time and text; None without any."""
        del latents, prompt_embeds
        return None

    def require_controlnet(self, name: str) -> None:
        """Load the ControlNet ``name`` if it is not loaded yet.

        Raises:
            ConfigError: no source is known for it.
            WeightsError: its weights are missing, broken or made for another U-Net.
        """
        if name in self.controlnets:
            return
        advice = (
            f"Name its folder or hub id: load_backbone(…, controlnets={{{name!r}: <folder>}}) "
            f"(++backbone.controlnets.{name}=<folder>)"
        )
        if name not in self.controlnet_sources:
            known = sorted({*self.controlnets, *self.controlnet_sources}) or "none"
            raise ConfigError(f"{self.identity.name} has no ControlNet {name!r} (known: {known}). {advice}")
        path = find_weights(self.controlnet_sources[name], None, PART_PATTERNS, self.offline, advice)
        folder = path.parent if path.is_file() else path
        files = _controlnet_files(path)
        self.add_controlnet(name, open_part(ControlNetModel, folder, self.dtype, files))
        self.controlnet_digests[name] = folder_digest([*files, folder / "config.json"], folder)

    def add_controlnet(self, name: str, controlnet: ControlNetModel) -> None:
        """Keep a ControlNet under ``name``, frozen.

        Raises:
            WeightsError: it is made for another U-Net.
        """
        check_controlnet(name, controlnet, self.unet, self.latent_stride, self.identity.name)
        # nn.Module.to, as diffusers' own warns about layers it would keep in float32 even where there are none
        nn.Module.to(controlnet, self.device, self.dtype, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.controlnets[name] = controlnet.requires_grad_(False).eval()

    def require_adapter(self, name: str, source: str, kind: AdapterKind = "lora") -> None:
        """Load a LoRA, learned tokens or a learned prompt from ``source`` as ``name`` if it is not loaded yet.

        Raises:
            ConfigError: another file has that name already.
            WeightsError: the file is missing, broken or made for another architecture.
        """
        if name in self.adapters:
            if self.adapters[name].source != source:
                raise ConfigError(
                    f"adapter {name!r} is {self.adapters[name].source} already, and {source} is to get the same name; "
                    f"give the second one another {'role' if kind == 'lora' else 'file name'}"
                )
            return
        advice = (
            f"Train a LoRA with experiment=lora and name its file: LoRA({name!r}, weights=<file>) "
            f"(technique.lora.weights.{name}=<file>)"
        )
        path = find_weights(source, None, ADAPTER_FILES[kind], self.offline, advice if kind == "lora" else "")
        self.adapters.add(name, _READERS[kind](adapter_file(path, kind), self.adapted_parts, source))

    def require_image_prompts(self, name: str, weights: str, encoder: str) -> None:
        """Load an IP-Adapter and its image encoder as ``name`` if it is not loaded yet.

        Raises:
            ConfigError: another file or encoder has that name already.
            WeightsError: files missing, broken or made for another architecture.
        """
        if name in self.image_prompt_adapters:
            there = self.image_prompts(name).source
            if there != (weights, encoder):
                raise ConfigError(
                    f"the IP-Adapter {name!r} is {' with '.join(there)} already, and {weights} with {encoder} is to "
                    "get the same name; rename the file"
                )
            return
        path, folder = (find_weights(source, None, (), self.offline) for source in (weights, encoder))
        adapter = read_image_prompt_adapter(path, folder, self.unet, (weights, encoder))
        self.image_prompt_adapters[name] = adapter

    def image_prompts(self, name: str) -> ImagePromptAdapter:
        """The IP-Adapter ``name``, loaded by ``require_image_prompts``."""
        adapter = self.image_prompt_adapters[name]
        assert isinstance(adapter, ImagePromptAdapter)
        return adapter

    def fixed_tensors(self) -> Iterator[Tensor]:
        """Weights, and those that adapters made of theirs."""
        yield from super().fixed_tensors()
        yield from self.adapters.products()

    @property
    def description(self) -> dict[str, object]:
        """Weights, ControlNets, adapters and, of a U-Net that reads clean latents, its timestep, JSON-able."""
        adapters = {name: self.adapters[name].digest for name in self.adapters.adapters}
        own = {"controlnets": dict(self.controlnet_digests), "adapters": adapters, "long_prompts": self.long_prompts}
        images = {name: self.image_prompts(name).digest for name in self.image_prompt_adapters}
        clean = {} if self.own_timestep is None else {"own_timestep": self.own_timestep}
        return {**super().description, **own, **({"image_prompts": images} if images else {}), **clean}


def _controlnet_files(path: Path) -> list[Path]:
    """Weights of a ControlNet that is named by its folder, or by its file beside config.json."""
    if not path.is_file():
        marks = variants(path)
        return weight_files(path, None if "" in marks or len(marks) != 1 else marks[0])
    if path.suffix != ".safetensors" or not (path.parent / "config.json").is_file():
        raise WeightsError(
            f"{path} is a file, and a ControlNet is named by its folder in diffusers format: config.json and "
            f"*.safetensors. One in the original layout is converted with diffusers first: "
            f"ControlNetModel.from_single_file(…).save_pretrained(<folder>)"
        )
    return [path]
