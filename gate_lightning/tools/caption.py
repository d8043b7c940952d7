"""Captions for the prompt technique, one per image, from a captioning model of transformers."""

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

from gate_lightning.backbones.weights.locate import check_weight_file, find_weights, folder_digest, weight_files
from gate_lightning.data.core.prediction import ImageSource
from gate_lightning.data.files.names import inner_path
from gate_lightning.errors import ConfigError, DataError, WeightsError, first_line
from gate_lightning.tools.devices import device_of, place
from gate_lightning.utils.checks import check_choice, whole_number
from gate_lightning.utils.dtypes import DTYPES
from gate_lightning.utils.files import append, claim, write_atomically
from gate_lightning.utils.progress import Progress
from gate_lightning.utils.text import parse_json, read_json, read_text

__all__ = ["Captioner", "caption"]

log = logging.getLogger(__name__)

#: files downloaded of a hub id: weights, configuration, tokenizer, chat template
_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


class Captioner:
    """A captioning model with greedy decoding: the same image always gets the same caption.

    Args:
        model: folder or hub id of an image-text-to-text model of transformers, with its processor.
        prompt: text that the model is given with the image, in its own format; None for none.
        keep_prompt: captions begin with the prompt.
        max_new_tokens: most tokens of a caption.
        dtype: "float32", "bfloat16" or "float16" of weights and computation.
        device: a torch device.
        offline: use local files only.

    Raises:
        WeightsError: the model is missing, or is no captioning model.
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
        check_choice(dtype, "dtype", DTYPES)
        whole_number(max_new_tokens, "max_new_tokens", 1)
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
        """Captions of images, uint8 (H, W, 3) RGB each; a caption is a single line."""
        texts = {} if self.prompt is None else {"text": [self.prompt] * len(images), "padding": True}
        network = self.network
        inputs = {
            name: value.to(network.device, network.dtype if value.is_floating_point() else None)
            for name, value in self.processor(images=list(images), return_tensors="pt", **texts).items()
        }
        if network.config.model_type == "git" and "input_ids" in inputs:
            # its tokenizer appends the end token, after which GIT would go on; other models strip it themselves
            inputs = {**inputs, **{name: inputs[name][:, :-1] for name in ("input_ids", "attention_mask")}}
        try:
            tokens = network.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{network.config.model_type} gives no caption for the prompt {self.prompt!r} ({error}); some models "
                'need one in a format of their own: tool.prompt="<CAPTION>", "<grounding>An image of" …'
            ) from error
        given = inputs.get("input_ids")
        if given is not None and torch.equal(tokens[:, : given.shape[1]], given):
            tokens = tokens[:, given.shape[1] :]  # models that continue a text repeat it
        sentences = [" ".join(text.split()) for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]
        return [self._with_prompt(sentence) for sentence in sentences]

    def _with_prompt(self, sentence: str) -> str:
        """The sentence with or without the prompt, which some models repeat in other capitals."""
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
            folder; or a folder for a ``captions.jsonl``. ``<name>.manifest.json`` beside it records the model.
        model, prompt, keep_prompt, max_new_tokens, dtype, offline: see `Captioner`.
        batch_size: images captioned together.
        device: "auto" (a GPU where there is one) or a torch device.

    Returns:
        Summary: images written, images that had a caption, file.

    Raises:
        CacheError: ``output`` holds captions of another model or prompt, or cannot be written.
        DataError: images that are missing or broken, or a malformed line of ``output``.
        WeightsError: see `Captioner`.
    """
    whole_number(batch_size, "batch_size", 1)
    if place()[1] > 1:
        raise ConfigError("tool=caption runs in one process; give each a folder and an output of its own")
    path = Path(output).expanduser()
    if path.suffix != ".jsonl":
        path = path / "captions.jsonl"
    source = ImageSource(input)
    # new captions are collected in a file of their own: the result is complete or absent
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
        images = [source.sample_id(index) for index in batch]
        sentences = captioner([source.load(index).image for index in batch])
        for image, sentence in zip(images, sentences, strict=True):
            known[image] = sentence
            if not sentence:
                log.warning("%s: the caption is empty", image)
        lines = b"".join(_line(image, known[image]) for image in images)
        append(partial, lines)
        progress.bytes += len(lines)
        progress.step(len(batch), 0)
    write_atomically(path, b"".join(_line(image, known[image]) for image in sorted(known)))
    partial.unlink(missing_ok=True)
    return f"{progress.summary()}: {path}"


def _load(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    read_json(folder / "config.json", WeightsError)
    for file in weight_files(folder):
        check_weight_file(file)
    transformers_logging.disable_progress_bar()
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        network, loaded = AutoModelForImageTextToText.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise WeightsError(
            f"{folder} is no captioning model of transformers, or lacks its processor: {first_line(error)}"
        ) from error
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise WeightsError(
            f"{folder} lacks {len(missing)} tensors of its {type(network).__name__}, such as {', '.join(missing[:3])}, "
            f"which would be random numbers; take a complete copy"
        )
    return processor, network


def _known(path: Path, torn: bool = False) -> dict[str, str]:
    """Image → caption of a file, empty where it is missing; with ``torn``, an incomplete last line is cut off."""
    known: dict[str, str] = {}
    if not path.exists():
        return known
    if torn:
        try:
            whole = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
        if not whole.endswith(b"\n"):
            write_atomically(path, whole[: whole.rfind(b"\n") + 1])
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            entry = parse_json(line, where)
            image, sentence = entry.get("image"), entry.get("caption")
            if not isinstance(image, str) or not isinstance(sentence, str):
                raise DataError(
                    f"{where}: {line[:60]!r} is no caption; expected "
                    '{"image": "a/b.jpg", "caption": "…"}. Mend or delete the line'
                )
            inner_path(image, where)
            known[image] = sentence
    return known


def _line(image: str, sentence: str) -> bytes:
    return json.dumps({"image": image, "caption": sentence}, ensure_ascii=False).encode() + b"\n"
