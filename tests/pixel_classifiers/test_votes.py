"""Votes and disagreement."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gate_lightning.errors import ConfigError
from gate_lightning.pixel_classifiers.votes import image_uncertainty, js_divergence, majority_vote, mean_probability


def test_the_majority_wins_and_the_smallest_label_of_a_tie():
    labels = torch.tensor([[2, 1, 4], [2, 3, 0], [1, 1, 4], [0, 3, 0]])
    assert majority_vote(labels, 5).tolist() == [2, 1, 0]


def test_votes_of_many_members_are_the_mode():
    labels = torch.randint(7, (10, 20, 15), generator=torch.Generator().manual_seed(0))
    counts = np.stack([(labels.numpy() == value).sum(0) for value in range(7)])
    assert np.array_equal(majority_vote(labels, 7).numpy(), counts.argmax(0))


def test_divergence_is_that_of_the_definition():
    logits = 3 * torch.randn(4, 6, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = np.exp(logits.numpy())
    p /= p.sum(1, keepdims=True)
    mean = p.mean(0)
    expected = -(mean * np.log(mean)).sum(0) + (p * np.log(p)).sum(1).mean(0)
    np.testing.assert_allclose(js_divergence(logits).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(mean_probability(logits).numpy(), mean, atol=1e-12)
    # by the other definition: mean divergence from the mean
    np.testing.assert_allclose(expected, (p * np.log(p / mean)).sum(1).mean(0), atol=1e-12)


def test_divergence_of_members_that_agree_or_contradict_each_other():
    sure = torch.full((2, 3, 1), -1e4)
    sure[0, 0], sure[1, 2] = 1e4, 1e4
    assert js_divergence(sure).item() == pytest.approx(math.log(2))
    assert js_divergence(torch.randn(1, 3, 1).expand(4, -1, -1)).abs().item() < 1e-6
    assert js_divergence(torch.full((2, 3, 1), -torch.inf).index_fill(1, torch.tensor([1]), 0.0)).item() == 0.0


def test_the_uncertainty_of_a_image_is_that_of_its_worst_tenth():
    divergence = torch.arange(55.0).view(5, 11)
    assert image_uncertainty(divergence).item() == 52  # 5 of 55: 50 … 54
    assert image_uncertainty(torch.tensor([1.0, 5.0])).item() == 5
    assert image_uncertainty(divergence, 1.0).item() == 27
    with pytest.raises(ConfigError, match="share is 0"):
        image_uncertainty(divergence, 0.0)
