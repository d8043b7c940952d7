"""Tokenised prompts for CLIP's text encoders: windows of tokens, and learned tokens among the ordinary ones.

A text encoder reads at most 77 tokens, begin and end mark included. ``backbone.long_prompts`` decides about longer
prompts:

* ``windows``, the default: the tokens are cut into pieces that fit, each piece is encoded like a prompt of its own
  (begin, end, padding), and the embeddings are concatenated: T is a multiple of 77. Nothing is lost, and the encoder
  sees what it was trained on.
* ``released``: as in GATE's released code. Prompts of more than 70 words (separated by single spaces) are tokenised as
  a whole and encoded in consecutive stretches of 77 tokens without padding; only the first has the begin mark, only the
  last the end mark. Prompts of fewer words are truncated.
* ``cut``: tokens that do not fit are dropped, with a warning.

The three agree on shorter prompts, except that ``released`` counts words, not tokens.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gate_lightning.errors import ConfigError

__all__ = ["LongPrompts", "TokenWindow", "prompt_words", "text_length", "token_windows"]

log = logging.getLogger(__name__)

LongPrompts = Literal["windows", "released", "cut"]

_RELEASED_WORDS = 70
#: end of a word's last token
_WORD_END = "</w>"
#: id in the place of a learned vector; not that of the end mark, by which some encoders find the end of the prompt
_PLACEHOLDER = 0


@dataclass(frozen=True)
class TokenWindow:
    """One pass of a text encoder.

    Attributes:
        ids: (B, n) int64, n ≤ 77.
        learned: (row, column, vector (C,)) of learned tokens, which replace the embeddings at these positions.
    """

    ids: Tensor
    learned: tuple[tuple[int, int, Tensor], ...] = ()

    @contextmanager
    def placed(self, encoder: Any) -> Iterator[Tensor]:
        """Context in which the encoder embeds the learned vectors; gives the ids, on the encoder's device."""

        def place(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            changed = output.clone()
            for row, column, vector in self.learned:
                changed[row, column] = vector.to(changed)
            return changed

        embedding = encoder.get_input_embeddings()
        handle = embedding.register_forward_hook(place) if self.learned else None
        try:
            yield self.ids.to(embedding.weight.device, non_blocking=True)
        finally:
            if handle is not None:
                handle.remove()


def token_windows(
    tokenizer: Any,
    prompts: Sequence[str],
    max_tokens: int,
    long_prompts: LongPrompts = "windows",
    learned: Mapping[str, Tensor] | None = None,
) -> list[TokenWindow]:
    """Windows of B prompts, one for each pass of the text encoder.

    Args:
        tokenizer: CLIP's.
        prompts: of equal length in tokens, see `text_length`.
        max_tokens: most tokens of a pass, begin and end included.
        long_prompts: see the top of this module.
        learned: token as it appears in prompts → vectors (n, C).

    Raises:
        ConfigError: the prompts are of different lengths.
    """
    laid = [_lay_out(tokenizer, prompt, max_tokens, long_prompts, learned or {}) for prompt in prompts]
    lengths = {tuple(len(piece) for piece in pieces) for pieces in laid}
    if len(lengths) != 1:
        raise ConfigError(
            f"prompts of {sorted(map(sum, lengths))} tokens in one batch; encode prompts of equal length together"
        )
    windows = []
    for column in zip(*laid, strict=True):
        ids = [[_PLACEHOLDER if isinstance(token, Tensor) else token for token in piece] for piece in column]
        vectors = tuple(
            (row, at, token)
            for row, piece in enumerate(column)
            for at, token in enumerate(piece)
            if isinstance(token, Tensor)
        )
        windows.append(TokenWindow(torch.tensor(ids), vectors))
    return windows


def text_length(
    tokenizer: Any,
    prompt: str,
    max_tokens: int,
    long_prompts: LongPrompts = "windows",
    learned: Mapping[str, Tensor] | None = None,
) -> int:
    """Tokens T of the embeddings of a prompt, padding included; arguments of `token_windows`."""
    return sum(map(len, _lay_out(tokenizer, prompt, max_tokens, long_prompts, learned or {}, warn=False)))


def prompt_words(
    tokenizer: Any,
    prompt: str,
    max_tokens: int,
    long_prompts: LongPrompts = "windows",
    learned: Mapping[str, Tensor] | None = None,
) -> list[tuple[str, tuple[int, ...]]]:
    """Words of a prompt, as the tokenizer spells them, with their positions among the T tokens of the embeddings.

    Arguments of `token_windows`. A vector of a learned token is a word of its own, called "learned".
    """
    marks = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    words: list[tuple[str, tuple[int, ...]]] = []
    spelled = ""
    positions: list[int] = []
    pieces = _lay_out(tokenizer, prompt, max_tokens, long_prompts, learned or {}, warn=False)
    for position, token in enumerate(token for piece in pieces for token in piece):
        if isinstance(token, Tensor):
            words.append(("learned", (position,)))
            continue
        if token in marks:
            continue
        piece = tokenizer.convert_ids_to_tokens(token)
        spelled, positions = spelled + piece.removesuffix(_WORD_END), [*positions, position]
        if piece.endswith(_WORD_END):
            words.append((spelled, tuple(positions)))
            spelled, positions = "", []
    return words


def _lay_out(
    tokenizer: Any,
    prompt: str,
    max_tokens: int,
    long_prompts: LongPrompts,
    learned: Mapping[str, Tensor],
    warn: bool = True,
) -> list[list[int | Tensor]]:
    """Windows of one prompt: ids, and vectors (C,) of learned tokens."""
    tokens = _tokens(tokenizer, prompt, learned)
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    if long_prompts == "released" and len(prompt.split(" ")) > _RELEASED_WORDS:
        whole = [begin, *tokens, end]
        return [whole[start : start + max_tokens] for start in range(0, len(whole), max_tokens)]
    room = max_tokens - 2
    if len(tokens) > room and long_prompts != "windows":
        if warn:
            log.warning(
                "A prompt of %d tokens is cut to the %d that the text encoder reads (backbone.long_prompts=%s): %.60s…",
                len(tokens) + 2,
                max_tokens,
                long_prompts,
                prompt,
            )
        tokens = tokens[:room]
    pieces = [tokens[start : start + room] for start in range(0, max(len(tokens), 1), room)]
    return [[begin, *piece, end, *[pad] * (room - len(piece))] for piece in pieces]


def _tokens(tokenizer: Any, prompt: str, learned: Mapping[str, Tensor]) -> list[int | Tensor]:
    """Tokens of the prompt without begin and end mark."""
    if not learned:
        return _ids(tokenizer, prompt)
    # accents as one character, as the tokenizer itself reads them
    learned = {unicodedata.normalize("NFC", token): vectors for token, vectors in learned.items()}
    prompt = unicodedata.normalize("NFC", prompt)
    longest_first = sorted(learned, key=len, reverse=True)
    # a token that is a word must not be found inside other words
    pattern = "|".join(rf"(?<!\w){re.escape(token)}(?!\w)" for token in longest_first)
    tokens: list[int | Tensor] = []
    for piece in re.split(f"({pattern})", prompt):
        tokens += learned[piece].unbind() if piece in learned else _ids(tokenizer, piece)
    return tokens


def _ids(tokenizer: Any, text: str) -> list[int | Tensor]:
    return list(tokenizer(text, verbose=False).input_ids[1:-1])
