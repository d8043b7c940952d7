"""Grounding of prompts: how much the cross-attention of a word gathers in one place of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gate_lightning.errors import ConfigError

__all__ = ["attention_concentration", "attention_peak", "content_words", "word_maps"]

#: words that name nothing in an image
_FUNCTION_WORDS = (
    "a an the this that these those there it its is are was were be being of in on at to by from for with without and "
    "or as into onto over under near next photo picture image"
)
_SIGMA = 0.5  # of Attend-and-Excite's blur, in positions


def content_words(words: Sequence[tuple[str, tuple[int, ...]]]) -> list[tuple[int, ...]]:
    """Tokens of the words that can name something in an image: no articles, prepositions, "photo" or punctuation.

    Args:
        words: words of a prompt with their tokens, as from ``Backbone.words_of``.
    """
    return [
        tokens
        for word, tokens in words
        if any(letter.isalnum() for letter in word) and word.lower() not in _FUNCTION_WORDS.split()
    ]


def word_maps(attention: Tensor, words: Sequence[tuple[int, ...]], tokens: int) -> Tensor:
    """(W, h, w) attention on each of W words: mean over its tokens and over the sizes of the maps.

    Args:
        attention: (S · T, h, w), share of each position's attention on each of T tokens, for S sizes one after the
            other, as averaged cross-attention is read.
        words: their tokens, from 0 to T - 1.
        tokens: T.

    Raises:
        ConfigError: channels that are no multiple of T.
    """
    if not tokens or len(attention) % tokens:
        raise ConfigError(f"cross-attention of {len(attention)} channels for a prompt of {tokens} tokens")
    each = attention.unflatten(0, (-1, tokens)).mean(dim=0)
    return torch.stack([each[list(own)].mean(dim=0) for own in words]) if words else each[:0]


def attention_concentration(maps: Tensor) -> Tensor:
    """(W,) 1 - H / log N of maps (W, h, w) over N = h · w positions, each divided by its sum; ours.

    H is the entropy: 0 for attention that is the same everywhere, 1 for all of it in one position. What a map adds up
    to, that is, how much a word is attended to at all, has no effect.
    """
    shares = maps.double().flatten(1)
    shares = shares / shares.sum(dim=1, keepdim=True)
    return 1.0 - torch.special.entr(shares).sum(dim=1) / math.log(shares.shape[1])


def attention_peak(maps: Tensor, begin: Tensor) -> Tensor:
    """(W,) largest value of maps (W, h, w), blurred, as a share of the attention besides that on the begin mark.

    After Attend-and-Excite (Chefer et al. 2023, §3), which asks it of every object: 1 is a word that has a place to
    itself. There the shares are sharpened by a softmax at 100 times the attention; here they are as the network has
    them.

    Args:
        maps: attention on words.
        begin: attention (h, w) on the begin mark.
    """
    shares = maps.double() / (1.0 - begin.double()).clamp(min=torch.finfo(torch.float32).eps)
    steps = torch.arange(-1, 2, dtype=torch.float64, device=maps.device)
    weights = torch.exp(-(steps**2) / (2 * _SIGMA**2))
    kernel = torch.outer(weights, weights) / weights.sum() ** 2
    blurred = F.conv2d(F.pad(shares[:, None], (1, 1, 1, 1), mode="replicate"), kernel[None, None])
    return blurred.flatten(1).amax(dim=1)
