"""Reader of learned embeddings: tokens for use in prompts (textual inversion), and whole prompts.

Tokens: diffusers (``{token: vectors}``), A1111 (``string_to_param`` with a ``name``; ``emb_params`` named by its
file), SDXL (``clip_l``, ``clip_g``, named by the file), and those beside a numbered LoRA (`lora_positions`). A prompt
as a whole is one tensor (T, C) or (1, T, C) that takes the place of the text encoder's output (SD4Match learns such).

Files are ``.safetensors``, or ``.pt`` / ``.bin`` read without executing what is pickled in them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gate_lightning.backbones.adapters.bank import Adapter
from gate_lightning.backbones.adapters.lora_files import check_token_width
from gate_lightning.backbones.adapters.lora_positions import is_numbered, numbered_tokens
from gate_lightning.backbones.weights.checkpoints import check_stored, read_tensors
from gate_lightning.backbones.weights.locate import file_digest
from gate_lightning.backbones.weights.networks import check_numbers
from gate_lightning.errors import WeightsError

__all__ = ["read_learned_prompt", "read_learned_tokens"]

#: keys of A1111's SDXL files → part
_BY_ENCODER = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_SHOWN = 4  # keys of an unknown file that the message lists


def read_learned_tokens(path: Path, networks: Mapping[str, nn.Module], source: str = "") -> Adapter:
    """Adapter of a file with learned tokens.

    Args:
        path: the file.
        networks: text encoders by part: ``text_encoder``, for SDXL ``text_encoder_2`` too.
        source: source of the adapter, for its identity; the path if empty.

    Raises:
        WeightsError: the file is broken, of an unknown form, or made for another text encoder.
    """
    content, header = read_tensors(path)
    tokens = _tokens(path, content, header)
    encoders = {part for part in networks if part.startswith("text_encoder")}
    if tokens.keys() != encoders:
        raise WeightsError(
            f"{path} holds learned tokens for {', '.join(sorted(tokens))}; this backbone has "
            f"{', '.join(sorted(encoders))}, and each needs its own"
        )
    check_token_width(path, tokens, networks)
    # some files do not name their token: the file's own name, by which prompts call it, is part of what it does
    called = sorted(f"{part} {token}" for part, learned in tokens.items() for token in learned)
    digest = hashlib.sha256("\n".join((file_digest(path), *called)).encode()).hexdigest()
    return Adapter(source or str(path), digest, {}, tokens)


def read_learned_prompt(path: Path, networks: Mapping[str, nn.Module], source: str = "") -> Adapter:
    """Adapter of a file with a learned prompt; arguments as for `read_learned_tokens`.

    Raises:
        WeightsError: the file is broken, holds something else, or is made for another denoiser.
    """
    content, _ = read_tensors(path)
    held = list(content.values()) if isinstance(content, Mapping) else [content]
    if len(held) != 1 or not isinstance(held[0], Tensor):
        raise WeightsError(f"{path} holds {_seen(content)}; expected one tensor (T, C), the embeddings of a prompt")
    prompt = held[0].detach()
    check_stored(prompt, "its prompt", path)
    if prompt.ndim == 3 and prompt.shape[0] == 1:
        prompt = prompt[0]
    prompt = prompt.float() if prompt.element_size() == 1 and prompt.is_floating_point() else prompt
    if prompt.ndim != 2 or not prompt.shape[0] or not prompt.is_floating_point() or not prompt.isfinite().all():
        raise WeightsError(
            f"{path} holds a tensor {tuple(held[0].shape)} of {held[0].dtype}; expected (T, C) or (1, T, C), finite "
            f"floating-point embeddings of one prompt"
        )
    if "text_encoder_2" in networks:
        raise WeightsError(f"{path} holds a learned prompt, but SDXL reads a pooled text embedding beside it")
    width = _width(networks["text_encoder"])
    if prompt.shape[1] != width:
        raise WeightsError(
            f"{path} holds a prompt of {prompt.shape[1]} channels; the denoiser of this backbone reads {width}"
        )
    return Adapter(source or str(path), file_digest(path), {}, prompt=prompt)


def _tokens(path: Path, content: Any, header: Mapping[str, str]) -> dict[str, dict[str, Tensor]]:
    """Part → token → vectors (n, C)."""
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds {_seen(content)}; expected learned tokens")
    found: dict[str, dict[str, Any]]
    if is_numbered(content):
        found = {"text_encoder": dict(numbered_tokens(path, content, header))}
    elif "string_to_param" in content:
        name = str(content.get("name") or path.stem)
        given = content["string_to_param"]
        held = list(given.values()) if isinstance(given, Mapping | nn.ParameterDict) else []
        found = {"text_encoder": {name: held[0] if len(held) == 1 else None}}
    elif "emb_params" in content:
        found = {"text_encoder": {path.stem: content["emb_params"]}}
    elif content.keys() <= _BY_ENCODER.keys():
        found = {_BY_ENCODER[key]: {path.stem: vectors} for key, vectors in content.items()}
    else:
        found = {"text_encoder": dict(content)}
    for learned in found.values():
        for token, vectors in learned.items():
            fits = isinstance(vectors, Tensor) and vectors.ndim in (1, 2) and vectors.is_floating_point()
            if not fits or not vectors.numel() or not isinstance(token, str) or not token.strip():
                raise WeightsError(
                    f"{path} is no file of learned tokens: it holds {_seen(content)}; expected vectors (C,) or (n, C) "
                    f"by token, string_to_param, emb_params, or clip_l and clip_g"
                )
            learned[token] = _numbers(path, token, vectors)
    if not any(found.values()):
        raise WeightsError(f"{path} holds no learned tokens, only {_seen(content)}")
    return found


def _numbers(path: Path, token: str, vectors: Tensor) -> Tensor:
    """Vectors (n, C) of a token; numbers of 8 bits as 32: torch computes nothing in them."""
    check_stored(vectors, token, path)
    check_numbers(vectors, token, str(path))
    vectors = vectors.detach().reshape(-1, vectors.shape[-1])
    return vectors.float() if vectors.element_size() == 1 else vectors


def _width(encoder: Any) -> int:
    return int(encoder.get_input_embeddings().weight.shape[1])


def _seen(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    keys = sorted(map(str, content))
    return f"{', '.join(keys[:_SHOWN]) or 'nothing'}{' …' if keys[_SHOWN:] else ''}"
