"""Reader of CLIP tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from gate_lightning.errors import WeightsError, first_line
from gate_lightning.utils.text import read_json, read_text

__all__ = ["VOCABULARY", "has_vocabulary", "read_tokenizer", "tokenizer_files"]

#: a tokenizer's folder has one of them
VOCABULARY = ("vocab.json", "tokenizer.json")
#: what else decides about tokens: merges, length, padding and marks
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_MERGES = "merges.txt"


def has_vocabulary(folder: Path) -> bool:
    """True if a folder holds a tokenizer's vocabulary."""
    return any((folder / name).is_file() for name in VOCABULARY)


def tokenizer_files(folder: Path) -> list[Path]:
    """Files of a tokenizer's folder that determine its output."""
    return [folder / name for name in sorted((*VOCABULARY, *_SETTINGS, _MERGES)) if (folder / name).is_file()]


def read_tokenizer(folder: Path, **settings: Any) -> CLIPTokenizer:
    """The tokenizer of a folder.

    Args:
        settings: of the tokenizer, instead of those in the folder: ``pad_token``.

    Raises:
        WeightsError: files that are missing, broken, or of a tokenizer without begin and end mark.
    """
    if not has_vocabulary(folder):
        raise WeightsError(f"{folder} holds none of {', '.join(VOCABULARY)}; copy the model's tokenizer there")
    for path in tokenizer_files(folder):
        content: Any = read_text(path, WeightsError) if path.name == _MERGES else read_json(path, WeightsError)
        if path.name == "vocab.json" and not all(isinstance(number, int) for number in content.values()):
            raise WeightsError(f"{path} is no vocabulary; expected tokens and their numbers")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True, **settings)
        empty = tokenizer("").input_ids
    except Exception as error:  # the parsers of two libraries
        raise WeightsError(
            f"{folder} holds no CLIP tokenizer that can be read ({type(error).__name__}: {first_line(error)}); copy "
            f"the model's own there"
        ) from error
    marks = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    length = tokenizer.model_max_length
    if empty != marks or not isinstance(tokenizer.pad_token_id, int) or len(tokenizer) <= max(empty, default=0):
        raise WeightsError(
            f"{folder} gives an empty prompt the tokens {empty}, expected its begin and end mark, {marks}; copy the "
            f"model's own tokenizer there"
        )
    if isinstance(length, bool) or not isinstance(length, int | float) or not length > len(marks):
        raise WeightsError(f"{folder}/tokenizer_config.json: model_max_length={length!r}, expected a number above 2")
    return tokenizer
