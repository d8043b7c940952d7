"""The linear probe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from gate_lightning.errors import ConfigError
from gate_lightning.heads.linear import LinearHead


def test_it_is_one_matrix_product_per_position_of_the_resized_concatenated_levels():
    torch.manual_seed(0)
    head = LinearHead([3, 5], [8, 16], 4).double()
    torch.nn.init.normal_(head.classifiers[0].bias)
    levels = [torch.randn(2, 3, 6, 8, dtype=torch.float64), torch.randn(2, 5, 3, 4, dtype=torch.float64)]
    resized = interpolate(levels[1], size=(6, 8), mode="bilinear", align_corners=False)
    features = torch.cat([levels[0], resized], dim=1).numpy()
    matrix = torch.cat([part.weight[:, :, 0, 0] for part in head.classifiers], dim=1).detach().numpy()
    bias = head.classifiers[0].bias.detach().numpy()
    expected = np.zeros((2, 4, 6, 8))
    for b in range(2):
        for row in range(6):
            for column in range(8):
                expected[b, :, row, column] = matrix @ features[b, :, row, column] + bias
    np.testing.assert_allclose(head(levels).detach().numpy(), expected, rtol=0, atol=1e-12)


def test_batch_norm_makes_it_blind_to_the_scale_of_channels():
    torch.manual_seed(0)
    head = LinearHead([3, 5], [8, 16], 4, batch_norm=True)
    levels = [torch.randn(2, 3, 6, 8), torch.randn(2, 5, 3, 4)]
    scaled = [100.0 * level + 7.0 for level in levels]
    torch.testing.assert_close(head(levels), head(scaled), rtol=1e-3, atol=1e-4)
    plain = LinearHead([3, 5], [8, 16], 4)
    assert not torch.allclose(plain(levels), plain(scaled), atol=0.1)


def test_dropout_leaves_out_whole_channels_in_training_only():
    torch.manual_seed(0)
    head = LinearHead([200], [8], 2, dropout=0.25)
    levels = [torch.ones(1, 200, 3, 4)]
    torch.nn.init.ones_(head.classifiers[0].weight)
    logits = head(levels)
    assert (logits == logits[..., :1, :1]).all()
    kept = logits[0, 0, 0, 0].item() * 0.75
    assert kept == pytest.approx(round(kept), abs=1e-3)
    assert 120 < kept < 180
    assert head.eval()(levels)[0, 0, 0, 0].item() == 200


@pytest.mark.parametrize("dropout", [1.0, -0.1])
def test_a_dropout_out_of_range_is_refused(dropout):
    with pytest.raises(ConfigError, match="dropout is"):
        LinearHead([4], [8], 2, dropout=dropout)


def test_levels_of_other_channels_are_refused():
    with pytest.raises(ConfigError, match=r"levels of \[3, 4\] channels; it was built for \[3, 5\]"):
        LinearHead([3, 5], [8, 16], 4)([torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 2, 2)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([], [], 3), "one of each a level"),
        (([4, 4], [8], 3), "one of each a level"),
        (([4, 0], [8, 16], 3), "one of each a level"),
        (([4, 4], [16, 8], 3), "growing strides"),
        (([4, 4], [8, 8], 3), "growing strides"),
        (([4], [8], 1), "num_classes is 1"),
    ],
)
def test_numbers_that_are_no_pyramid_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        LinearHead(*arguments)
