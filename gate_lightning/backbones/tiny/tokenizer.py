"""The embedded model's tokenizer: an ordinary CLIP tokenizer with a small vocabulary of its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from gate_lightning.errors import ConfigError

MAX_TOKENS = 40
"""Prompt length in tokens, begin and end included; tokenizer and text encoder must agree on it."""

# fmt: off
EXTRA_WORDS = (
    "the", "with", "is", "are", "in", "picture", "drawing", "painting", "style", "dark", "pale", "gray", "striped",
    "outline", "object", "objects", "ground", "sky", "one", "two", "three", "four",
)
# fmt: on
"""Words beyond the scenes' captions that get a token, for adapters trained on captions in other styles."""

_START, _END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """CLIP tokenizer in which each given word is one token and any other text falls back to its bytes.

    Args:
        words: lower-case words without spaces.

    Raises:
        ConfigError: a word is not one token afterwards (it contains a character CLIP splits at).
    """
    words = sorted(set(words))
    merges = _merges_for(words)
    printable = bytes_to_unicode()  # stand-ins of the bytes that byte-level BPE works on
    alphabet = [printable[byte] for byte in range(256)]
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in merges), _START, _END]
    tokenizer = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        model_max_length=MAX_TOKENS,
        unk_token=_END,
        bos_token=_START,
        eos_token=_END,
        pad_token=_END,
    )
    split = [w for w in words if len(tokenizer(w).input_ids) != 3]
    if split:
        raise ConfigError(
            f"These words do not become one token each: {split}. Expected words of letters only (CLIP splits at "
            f"digits, hyphens and apostrophes); leave them out of the word list or respell them."
        )
    return tokenizer


def _merges_for(words: Sequence[str]) -> list[tuple[str, str]]:
    """BPE merges that make each word one token.

    A merge appended later has the lowest priority, so it never changes a word that earlier merges already close;
    words are therefore closed one after the other.
    """
    merges: list[tuple[str, str]] = []
    rank: dict[tuple[str, str], int] = {}
    for word in words:
        pieces = _apply_merges(word, rank)
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            rank[pair] = len(merges)
            merges.append(pair)
            pieces = _apply_merges(word, rank)
    return merges


def _apply_merges(word: str, rank: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word: join the pair of lowest rank everywhere until none is left."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
        best = min(itertools.pairwise(pieces), key=lambda pair: rank.get(pair, math.inf))
        if best not in rank:
            break
        joined: list[str] = []
        i = 0
        while i < len(pieces):
            if tuple(pieces[i : i + 2]) == best:
                joined.append(pieces[i] + pieces[i + 1])
                i += 2
            else:
                joined.append(pieces[i])
                i += 1
        pieces = joined
    return pieces
