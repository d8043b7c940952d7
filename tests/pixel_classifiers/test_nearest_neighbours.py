"""The k-NN probe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from gate_lightning.errors import ConfigError
from gate_lightning.pixel_classifiers.amalgamation import ConcatPixels
from gate_lightning.pixel_classifiers.nearest_neighbours import NearestPixels


def _fitted(neighbours: int = 5) -> NearestPixels:
    generator = torch.Generator().manual_seed(0)
    probe = NearestPixels(6, 4, neighbours)
    features = torch.randn(1, 60, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (1, 60), generator=generator)
    probe.double()
    for part in (slice(0, 25), slice(25, 60)):
        probe.add(9 * features[:, part] * torch.rand(1, 1, 1, generator=generator), labels[:, part])
    return probe


def test_shares_are_those_of_a_search_by_hand():
    probe = _fitted()
    rows = torch.randn(30, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = probe(rows.unsqueeze(0))[0]
    bank, query = probe.features[0, :60].numpy(), rows.numpy()
    for pixel in range(30):
        cosines = [vector @ query[pixel] / np.linalg.norm(vector) / np.linalg.norm(query[pixel]) for vector in bank]
        nearest = np.argsort(cosines)[-5:]
        expected = np.bincount(probe.labels[0].numpy()[nearest], minlength=4) / 5
        np.testing.assert_allclose(found[pixel].numpy(), expected)


def test_a_labelled_pixel_is_its_own_nearest():
    probe = _fitted(neighbours=1)
    assert torch.equal(probe(3.0 * probe.first_weight)[0].argmax(1), probe.labels[0, :60])


def test_a_image_at_once_is_its_pixels():
    probe = _fitted()
    maps = [torch.randn(4, 3, 3, dtype=torch.float64), torch.randn(2, 6, 6, dtype=torch.float64)]
    full = torch.cat([interpolate(map_[None], (12, 12), mode="bilinear")[0] for map_ in maps])
    found = probe.dense(ConcatPixels({"sd": (1, 6)}, 1).dense({"sd": [maps]}, probe.first_weight, (12, 12), rows=5))
    expected = probe(full.flatten(1).T.unsqueeze(0)).transpose(1, 2).unflatten(2, (12, 12))
    assert torch.equal(found, expected)


def test_the_bank_takes_what_there_is_room_for_and_is_saved():
    probe = NearestPixels(6, 4, neighbours=2, bank=10)
    for start, empty in ((0, 0.3), (7, 0.0)):
        loss = probe.losses(torch.randn(1, 7, 6), torch.arange(start, start + 7).unsqueeze(0))
        assert loss.tolist() == pytest.approx([empty])
        assert not loss.requires_grad
    assert probe.labels.tolist() == [list(range(10))]
    again = NearestPixels(6, 4, neighbours=2, bank=10)
    again.load_state_dict(probe.state_dict())
    rows = torch.randn(1, 5, 6)
    probe.labels %= 4
    again.labels %= 4
    assert torch.equal(probe(rows), again(rows))


@pytest.mark.parametrize(("bank", "steps"), [(10_000, 20), (512, 1), (513, 2)])
def test_it_knows_when_the_bank_is_full(bank, steps):
    assert NearestPixels(6, 4, bank=bank).most_steps(512) == steps


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="neighbours 20, bank 10"):
        NearestPixels(6, 4, neighbours=20, bank=10)
    with pytest.raises(ConfigError, match=r"got features \(1, 8, 5\) and labels \(1, 8\); expected \(1, P, 6\)"):
        NearestPixels(6, 4).add(torch.zeros(1, 8, 5), torch.zeros(1, 8, dtype=torch.int64))
    few = NearestPixels(6, 4)
    few.add(torch.zeros(1, 8, 6), torch.zeros(1, 8, dtype=torch.int64))
    with pytest.raises(ConfigError, match="8 labelled pixels are kept and 20 neighbours vote"):
        few(torch.zeros(1, 3, 6))
