"""One caption per image, by a captioning model of transformers: what the prompt technique reads."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging as transformers_logging

from gate_lightning.backbones.weights.locate import (
    check_weight_file,
    find_weights,
    folder_digest,
    read_json,
    weight_files,
)
from gate_lightning.data.core.prediction import ImageSource
from gate_lightning.errors import ConfigError, DataError, WeightsError
from gate_lightning.tools.devices import device_of, place
from gate_lightning.utils.dtypes import DTYPES
from gate_lightning.utils.files import append, claim, write_atomically
from gate_lightning.utils.progress import Progress

__all__ = ["Captioner", "caption"]

log = logging.getLogger(__name__)

#: what is downloaded of a hub id: safetensors, configuration, tokenizer
_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


class Captioner:
    """A captioning model: images → sentences, greedily, so that the same image has the same caption.

    Args:
        model: folder or hub id of a transformers model for image and text to text, with its processor.
        prompt: what the model is told, in its own format; None for none.
        keep_prompt: captions begin with the prompt.
        max_new_tokens: longest caption.
        dtype: "float32", "bfloat16" or "float16" of weights and computation.
        device: a torch device.
        offline: never ask the network.

    Raises:
        WeightsError: no such model, or one that describes no images.
    """

    def __init__(
        self,
        model: str,
        prompt: str | None = None,
        keep_prompt: bool = False,
        max_new_tokens: int = 64,
        dtype: str = "float32",
        device: torch.device | str = "cpu",
        offline: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={max_new_tokens!r}: expected an integer of 1 or more")
        folder = find_weights(model, None, _PATTERNS, offline, "Name it: tool.model=<folder or hub id>")
        self.prompt, self.keep_prompt, self.max_new_tokens = prompt, keep_prompt, max_new_tokens
        self.processor, network = _load(folder, DTYPES[dtype])
        self.network = network.to(device).eval()
        digest = folder_digest([*weight_files(folder), *folder.glob("*.json"), *folder.glob("*.txt")], folder)
        self.description: dict[str, Any] = {
            "model": model,
            "digest": digest,
            "dtype": dtype,
            "prompt": prompt,
            "keep_prompt": keep_prompt,
            "max_new_tokens": max_new_tokens,
        }

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[str]:
        """Captions of images, uint8 (H, W, 3) RGB each, on one line each."""
        texts = {} if self.prompt is None else {"text": [self.prompt] * len(images), "padding": True}
        network = self.network
        inputs = {
            name: value.to(network.device, network.dtype if value.is_floating_point() else None)
            for name, value in self.processor(images=list(images), return_tensors="pt", **texts).items()
        }
        if network.config.model_type == "git" and "input_ids" in inputs:
            # its tokenizer ends the text, and it would go on behind the end; the others take that off themselves
            inputs = {**inputs, **{name: inputs[name][:, :-1] for name in ("input_ids", "attention_mask")}}
        try:
            tokens = network.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{network.config.model_type} does not describe images when told {self.prompt!r} ({error}); some "
                'models must be told something, in their own words: tool.prompt="<CAPTION>", "<grounding>An image of" …'
            ) from error
        told = inputs.get("input_ids")
        if told is not None and tokens.shape[1] >= told.shape[1] and torch.equal(tokens[:, : told.shape[1]], told):
            tokens = tokens[:, told.shape[1] :]  # models that only go on with a text repeat it
        sentences = [" ".join(text.split()) for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]
        return [self._told(sentence) for sentence in sentences]

    def _told(self, sentence: str) -> str:
        """The sentence with or without the prompt, which some models say in other capitals."""
        if self.prompt is None:
            return sentence
        start = " ".join(self.prompt.split())
        if sentence.lower().startswith(start.lower()):
            sentence = sentence[len(start) :].strip()
        return f"{start} {sentence}".strip() if self.keep_prompt else sentence


def caption(
    input: str | Path,
    output: str | Path,
    model: str,
    prompt: str | None = None,
    keep_prompt: bool = False,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    dtype: str = "float32",
    device: str = "auto",
    offline: bool = False,
) -> str:
    """Write a caption for every image that has none yet.

    Args:
        input: an image, a folder (searched with its subfolders) or a pattern.
        output: the file (``.jsonl``), one ``{"image": "a/b.jpg", "caption": "…"}`` a line, paths relative to the
            folder; or a folder for a ``captions.jsonl``. Beside it ``<name>.manifest.json`` says which model wrote it.
        model, prompt, keep_prompt, max_new_tokens, dtype, offline: see `Captioner`.
        batch_size: images described together.
        device: "auto" (a GPU where there is one) or a torch device.

    Returns:
        What was done, in words.

    Raises:
        CacheError: ``output`` holds captions of another model or prompt, or cannot be written.
        DataError: images that are missing or broken, or a line of ``output`` that is no caption.
        WeightsError: see `Captioner`.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size={batch_size!r}: expected an integer of 1 or more")
    if place()[1] > 1:
        raise ConfigError("tool=caption runs in one process; give each a folder and an output of its own")
    path = Path(output).expanduser()
    if path.suffix != ".jsonl":
        path = path / "captions.jsonl"
    source = ImageSource(input)
    # new captions are collected beside it: what has the name of the result is never half a file
    partial = path.with_name(f"{path.name}.partial")
    known = {**_known(path), **_known(partial, torn=True)}
    captioner = Captioner(model, prompt, keep_prompt, max_new_tokens, dtype, device_of(device), offline)
    manifest = path.with_name(f"{path.name}.manifest.json")
    claim(manifest, captioner.description, "captions", lambda: path.exists() or partial.exists())
    missing = [index for index in range(len(source)) if source.sample_id(index) not in known]
    progress = Progress(len(source), 0, 1, "captions")
    progress.step(0, len(source) - len(missing))
    for start in range(0, len(missing), batch_size):
        batch = missing[start : start + batch_size]
        told = _described(captioner, source, batch)
        known.update(told)
        lines = b"".join(_line(image, told) for image in told)
        append(partial, lines)
        progress.bytes += len(lines)
        progress.step(len(batch), 0)
    write_atomically(path, b"".join(_line(image, known) for image in sorted(known)))
    partial.unlink(missing_ok=True)
    return f"{progress.summary()}: {path}"


def _described(captioner: Captioner, source: ImageSource, batch: Sequence[int]) -> dict[str, str]:
    """Image → what the model says of it."""
    images = [source.sample_id(index) for index in batch]
    told = dict(zip(images, captioner([source.load(index).image for index in batch]), strict=True))
    for image in images:
        if not told[image]:
            log.warning("%s: the model said nothing", image)
    return told


def _load(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    read_json(folder / "config.json")
    for file in weight_files(folder):
        check_weight_file(file)
    transformers_logging.disable_progress_bar()
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        network = AutoModelForImageTextToText.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"{folder} is no model of transformers that describes images, or lacks its processor: {reason}"
        ) from error
    return processor, network


def _known(path: Path, torn: bool = False) -> dict[str, str]:
    """Captions that are there, by image; with ``torn`` the last line may have been cut off, and does not count."""
    known: dict[str, str] = {}
    if not path.exists():
        return known
    content = path.read_text(encoding="utf-8", errors="replace" if torn else "strict")
    if torn and not content.endswith("\n"):
        content = content[: content.rfind("\n") + 1]
        write_atomically(path, content.encode())
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            known[str(entry["image"])] = str(entry["caption"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: {line[:60]!r} is no caption; expected "
                '{"image": "a/b.jpg", "caption": "…"}. Mend or delete the line'
            ) from error
    return known


def _line(image: str, known: dict[str, str]) -> bytes:
    return json.dumps({"image": image, "caption": known[image]}, ensure_ascii=False).encode() + b"\n"
