"""Concentration of attention with known answers."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from gate_lightning.errors import ConfigError
from gate_lightning.metrics.content_shift.grounding import (
    attention_concentration,
    attention_peak,
    content_words,
    word_maps,
)


def test_concentration_is_0_everywhere_alike_and_1_in_one_place() -> None:
    even, one, half = torch.full((4, 8), 0.01), torch.zeros(4, 8), torch.zeros(4, 8)
    one[2, 3], half[:, :4] = 0.2, 0.3
    found = attention_concentration(torch.stack([even, one, half, 7 * half]))
    expected = [0.0, 1.0, 1 - math.log(16) / math.log(32), 1 - math.log(16) / math.log(32)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert attention_concentration(torch.zeros(0, 4, 8)).tolist() == []


def test_a_peak_is_the_largest_share_of_what_the_begin_mark_leaves() -> None:
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(5, 6, 7, generator=generator).softmax(dim=0)
    found = attention_peak(attention[2:4], attention[0])
    for index in range(2):
        shares = (attention[2 + index] / attention[1:].sum(dim=0)).double().numpy()
        blurred = cv2.GaussianBlur(shares, (3, 3), 0.5, borderType=cv2.BORDER_REPLICATE)
        assert float(found[index]) == pytest.approx(blurred.max(), rel=1e-6)


def test_words_are_means_over_their_tokens_and_sizes() -> None:
    attention = torch.arange(2 * 4 * 6).float().reshape(8, 2, 3)  # two sizes of four tokens
    found = word_maps(attention, [(1,), (2, 3)], 4).numpy()
    plain = attention.numpy()
    np.testing.assert_allclose(found[0], (plain[1] + plain[5]) / 2)
    np.testing.assert_allclose(found[1], (plain[2] + plain[3] + plain[6] + plain[7]) / 4)
    assert word_maps(attention, [], 4).shape == (0, 2, 3)
    with pytest.raises(ConfigError, match="8 channels for a prompt of 3 tokens"):
        word_maps(attention, [(0,)], 3)


def test_articles_and_punctuation_name_nothing() -> None:
    words = [("a", (1,)), ("Photo", (2,)), ("of", (3,)), ("red", (4,)), ("horses", (5, 6)), (",", (7,)), ("2", (8,))]
    assert content_words(words) == [(4,), (5, 6), (8,)]
