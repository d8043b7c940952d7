"""Stable Diffusion checkpoints in one file, in the layout of the original implementations.

The file holds weights alone. The architecture is recognised by their shapes, the networks' configs are those of
`architectures`, and the tokenizer comes from a folder or the hub; nothing else is downloaded.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor, nn
from transformers import CLIPTokenizer

from gate_lightning.backbones.stable_diffusion.architectures import (
    CLIP_TOKENS,
    SD_SCHEDULE,
    STABLE_DIFFUSIONS,
    Architecture,
    assemble,
    build_networks,
)
from gate_lightning.backbones.stable_diffusion.sdxl import SizeConditions
from gate_lightning.backbones.stable_diffusion.tokenizers import (
    VOCABULARY,
    has_vocabulary,
    read_tokenizer,
    tokenizer_files,
)
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.backbones.weights.checkpoints import read_checkpoint
from gate_lightning.backbones.weights.locate import file_digest, find_weights
from gate_lightning.backbones.weights.networks import fill_network
from gate_lightning.errors import ConfigError, WeightsError, first_line
from gate_lightning.structures import Identity
from gate_lightning.utils.checks import check_choice

__all__ = ["load_single_file"]

log = logging.getLogger(__name__)

_UNET = "model.diffusion_model."
_EMA = "model_ema."
_MANY = 100  # of a whole U-Net; fewer are counters
_SHOWN = 4  # keys of an unknown file that the message lists
#: where the text encoders lie, by their number in the model: as CLIP of transformers, or as OpenCLIP
_CLIP = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
_OPEN_CLIP = ("cond_stage_model.model.", "conditioner.embedders.1.model.")
_TOKENS = ("text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight")


def load_single_file(
    path: Path,
    name: str,
    dtype: torch.dtype,
    tokenizer: str | None = None,
    prediction_type: str | None = None,
    size_conditions: SizeConditions | None = None,
    offline: bool = False,
) -> UNetBackbone:
    """The backbone of a single-file checkpoint: Stable Diffusion 1.x, 2.x or XL.

    Where the file holds averaged weights (EMA) too, these are taken, as in the released diffusers folders.

    Args:
        path: ``.safetensors``, or what ``torch.save`` wrote; no code pickled in it is run.
        name: name of the weights, for their identity.
        dtype: of the networks; SDXL's autoencoder stays in float32.
        tokenizer: folder or hub id that has it; None: the hub id of the released model.
        prediction_type: "epsilon", "v_prediction" or "sample"; None: as released. Required for Stable Diffusion
            2.x, which was released with two.
        size_conditions: see SDXLBackbone.
        offline: never ask the network for the tokenizer.

    Raises:
        ConfigError: a prediction type that is unknown or missing.
        WeightsError: the file or the tokenizer is missing, broken, or of another kind of model.
    """
    state = read_checkpoint(path)
    kind = _recognise(path, state)
    architecture = STABLE_DIFFUSIONS[kind]
    prediction = _prediction(path, state, architecture, prediction_type)
    if kind == "sd21" and prediction == "epsilon":  # the base model: 512 px
        architecture = replace(architecture, unet={**architecture.unet, "sample_size": 64})
    tokenizers, vocabularies = _tokenizers(architecture, tokenizer, offline)
    with torch.device("meta"):
        networks = build_networks(architecture, tokenizers)
    for part, network in networks.items():
        converted = _converted(path, state, part, network)
        upcast = part == "vae" and kind == "sdxl"
        _fill(path, part, network, converted, torch.float32 if upcast else dtype)
    schedule = {**SD_SCHEDULE, "prediction_type": prediction, "set_alpha_to_one": False}
    if "ztsnr" in state:  # as fine-tunes of SDXL mark it: no signal is left at the last timestep
        schedule["rescale_betas_zero_snr"] = True
    if kind == "sdxl":  # whose scheduler leaves latents at signal 1
        schedule["_class_name"] = "EulerDiscreteScheduler"
    digest = hashlib.sha256(" ".join(map(file_digest, (path, *vocabularies))).encode())
    digest.update(prediction.encode())
    return assemble(networks, tokenizers, schedule, Identity(name, "", digest.hexdigest()), size_conditions)


def _recognise(path: Path, state: Mapping[str, Tensor]) -> str:
    """Key of the architecture in STABLE_DIFFUSIONS, from the shapes of the U-Net's weights."""
    unet = [key for key in state if key.startswith(_UNET)]
    widths = {state[key].shape[-1] for key in unet if key.endswith("attn2.to_k.weight") and state[key].ndim == 2}
    if not widths:
        hidden = next((key.partition(_UNET)[0] for key in state if not key.startswith(_UNET) and _UNET in key), "")
        if hidden:
            raise WeightsError(f"{path}: the names of its tensors begin with {hidden!r}; save them again without")
        shown = ", ".join(sorted(state)[:_SHOWN])
        raise WeightsError(
            f"{path} is no Stable Diffusion 1.x, 2.x or XL checkpoint in the original layout: expected keys such as "
            f"{_UNET}input_blocks.0.0.weight, found {shown}, … ({len(state)} keys). A LoRA goes to "
            f"technique.lora.weights; of a diffusers model the whole folder is named, not a file in it"
        )
    if "edm_mean" in state:
        raise WeightsError(f"{path} is Playground v2.5, whose noise levels (EDM) are not those of DDPM: not supported")
    found = [kind for kind, one in STABLE_DIFFUSIONS.items() if {one.unet["cross_attention_dim"]} == widths]
    channels = (*state.get(f"{_UNET}input_blocks.0.0.weight", torch.empty(0)).shape, 0, 0)[1]
    if not found or channels != 4:
        known = {kind: one.unet["cross_attention_dim"] for kind, one in STABLE_DIFFUSIONS.items()}
        raise WeightsError(
            f"{path} is a model of another kind: its U-Net reads {channels} channels and text of width "
            f"{', '.join(map(str, sorted(widths)))}; expected 4 (9 is inpainting, 5 depth, 7 upscaling, 8 editing) and "
            f"{', '.join(f'{width} ({kind})' for kind, width in known.items())}; 1280 is the SDXL refiner"
        )
    return found[0]


def _prediction(path: Path, state: Mapping[str, Tensor], architecture: Architecture, asked: str | None) -> str:
    if asked is not None:
        check_choice(asked, "backbone.prediction_type", ("epsilon", "v_prediction", "sample"))
    # fine-tunes of SDXL mark it with an empty tensor
    prediction = asked or ("v_prediction" if "v_pred" in state else architecture.prediction_type)
    if prediction is None:
        raise ConfigError(
            f"{path} is a Stable Diffusion 2.x checkpoint, which does not hold its prediction type: set "
            f"backbone.prediction_type=v_prediction (768 px models) or =epsilon (base models, 512 px)"
        )
    return prediction


def _tokenizers(
    architecture: Architecture, source: str | None, offline: bool
) -> tuple[list[CLIPTokenizer], list[Path]]:
    """Tokenizer of each text encoder, and their files."""
    advice = "A single-file checkpoint holds no tokenizer; name one of its kind: backbone.tokenizer=<folder or hub id>"
    patterns = ("tokenizer/*", "tokenizer_2/*", "*.json", "merges.txt")
    folder = find_weights(source or architecture.source, None, patterns, offline, advice)
    read: list[CLIPTokenizer] = []
    files: list[Path] = []
    for number, pad in enumerate(architecture.pads):
        places = [folder / "tokenizer_2"] * (number == 1) + [folder / "tokenizer", folder]
        place = next(filter(has_vocabulary, places), None)
        if place is None:
            raise WeightsError(f"{folder} holds no tokenizer ({' or '.join(VOCABULARY)}). {advice}")
        # all have the same vocabulary, but a mark that prompts are filled up with is read otherwise in their midst too
        read.append(read_tokenizer(place, pad_token=pad))
        read[-1].model_max_length = min(read[-1].model_max_length, CLIP_TOKENS)  # where its config is missing: 1e30
        files += tokenizer_files(place)
    return read, files


def _converted(path: Path, state: dict[str, Tensor], part: str, network: Any) -> dict[str, Tensor]:
    """State dict of one part under the names of diffusers and transformers."""
    try:
        if part == "unet":
            made = _unet_weights(path, state, network)
        elif part == "vae":
            made = convert_ldm_vae_checkpoint(_under(state, "first_stage_model."), network.config)
        else:
            made = _text_weights(state, part, network)
    except Exception as error:  # of the conversion, on keys that are not there and tensors of other shapes
        problem = f"no {error}" if isinstance(error, KeyError) else first_line(error)
        raise WeightsError(f"{path}: its {part} is incomplete or of another layout ({problem})") from error
    return {name: tensor for name, tensor in made.items() if tensor is not None}


def _unet_weights(path: Path, state: Mapping[str, Tensor], network: Any) -> Any:
    averaged = len(_under(state, _EMA)) > _MANY
    if averaged:
        log.info("%s holds averaged weights (EMA) too: these are taken.", path)
    return convert_ldm_unet_checkpoint(_under(state, _UNET, _EMA), network.config, extract_ema=averaged)


def _text_weights(state: Mapping[str, Tensor], part: str, network: Any) -> dict[str, Tensor]:
    prefixes = _OPEN_CLIP[1:] if part == "text_encoder_2" else (*_CLIP, _OPEN_CLIP[0])
    prefix = next((one for one in prefixes if _under(state, one)), prefixes[0])
    if prefix in _OPEN_CLIP:
        made = convert_open_clip_checkpoint(network, _under(state, prefix), prefix=prefix)
    else:
        made = convert_ldm_clip_checkpoint(_under(state, prefix))
    wrapped = hasattr(network, "text_model")
    named = {key if wrapped else key.removeprefix("text_model."): value for key, value in made.items()}
    # encoders are stored in one piece: buffers, and layers after the one that the U-Net reads, are left out
    known = network.state_dict().keys()
    return {key: value for key, value in named.items() if key in known}


def _under(state: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key.startswith(prefixes)}


def _fill(path: Path, part: str, network: nn.Module, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Load weights into a network on the meta device."""
    shapes = [(weights[name].shape, network.state_dict()[name].shape) for name in _TOKENS if name in weights]
    known = all(given == wanted for given, wanted in shapes)
    hint = (
        "Take a complete copy" if known else "The tokenizer is of another model: name its own with backbone.tokenizer"
    )
    fill_network(network, weights, dtype, f"{path}: its {part}", hint)
