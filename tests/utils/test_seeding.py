"""Random numbers are functions of their key."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gate_lightning.utils.seeding import data_generator, keyed_generator, keyed_integer, keyed_noise, torch_generator


def test_equal_keys_give_equal_numbers_whatever_was_drawn_before() -> None:
    first = keyed_noise((3, 4), "diffusion", 0, "a.png", [0, 0])
    np.random.default_rng().random(5)
    torch.rand(5)
    assert torch.equal(first, keyed_noise((3, 4), "diffusion", 0, "a.png", [0, 0]))
    assert torch.equal(
        torch.rand(4, generator=torch_generator("a", 1)), torch.rand(4, generator=torch_generator("a", 1))
    )


@pytest.mark.parametrize("other", [("a", "1"), ("a", 2), ("b", 1), ("a", 1, None)])
def test_every_part_of_the_key_counts(other: tuple[object, ...]) -> None:
    assert keyed_integer(*other) != keyed_integer("a", 1)
    assert keyed_generator(*other).random() != keyed_generator("a", 1).random()


def test_the_numbers_are_those_of_every_run_so_far() -> None:
    """Values written down once: features, initial weights, orders and splits must never move."""
    assert keyed_integer("diffusion", 0) == 204520428554944755119137578943802600091
    assert keyed_generator("diffusion", 0).integers(1000, size=3).tolist() == [602, 14, 990]
    assert data_generator("order", 0, 0).permutation(6).tolist() == [3, 5, 2, 1, 4, 0]
