"""The k-NN probe of images."""

from __future__ import annotations

import math

import pytest
import torch

from gate_lightning.errors import ConfigError
from gate_lightning.heads.nearest_images import NearestImages


def levels_of(rows: torch.Tensor) -> list[torch.Tensor]:
    """Two levels (B, 2, 1, 1) of rows (B, 4)."""
    return [part[..., None, None] for part in rows.split(2, dim=1)]


def probe(**settings: object) -> NearestImages:
    return NearestImages([2, 2], 3, **{"neighbours": 2, **settings})  # type: ignore[arg-type]


def test_votes_are_those_of_a_loop_over_all_images() -> None:
    rng = torch.Generator().manual_seed(0)
    bank, labels = torch.randn(30, 4, generator=rng), torch.randint(3, (30,), generator=rng)
    rows = torch.randn(5, 4, generator=rng)
    head = probe(neighbours=7, temperature=0.2)
    head.remember(bank, labels)
    found = head(levels_of(rows))
    assert found.shape == (5, 3, 1, 1)
    for row, shares in zip(rows, found.flatten(1), strict=True):
        cosines = [float(row @ one / row.norm() / one.norm()) for one in bank]
        votes = [0.0, 0.0, 0.0]
        for place in sorted(range(30), key=lambda index: -cosines[index])[:7]:
            votes[int(labels[place])] += math.exp(cosines[place] / 0.2)
        torch.testing.assert_close(shares, torch.tensor(votes) / sum(votes))


def test_an_image_that_is_in_the_bank_is_its_own_class() -> None:
    rows = torch.eye(4)
    head = probe(neighbours=1)
    head.remember(rows, torch.tensor([0, 1, 2, 1]))
    assert head(levels_of(3 * rows)).argmax(dim=1).flatten().tolist() == [0, 1, 2, 1]


def test_maps_are_averaged_over_the_image() -> None:
    maps = [torch.randn(2, 2, 3, 5), torch.randn(2, 2, 2, 2)]
    torch.testing.assert_close(probe().described(maps)[:, 2:], maps[1].flatten(2).sum(dim=2) / 4)


def test_many_images_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, labels, rows = torch.randn(9, 4), torch.arange(9) % 3, torch.randn(7, 4)
    head = probe()
    head.remember(bank, labels)
    whole = head(levels_of(rows))
    monkeypatch.setattr("gate_lightning.heads.nearest_images._CELLS", 18)
    torch.testing.assert_close(head(levels_of(rows)), whole)


def test_the_bank_is_no_part_of_a_checkpoint() -> None:
    head = probe()
    head.remember(torch.randn(3, 4), torch.arange(3))
    assert not head.state_dict()


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="knows no training images yet"):
        probe()(levels_of(torch.randn(1, 4)))
    with pytest.raises(ConfigError, match=r"neighbours=4: there are 3 training images; use fewer"):
        probe(neighbours=4).remember(torch.randn(3, 4), torch.arange(3))
    with pytest.raises(ConfigError, match=r"head.decode.temperature=0: expected a number of 1e-06 or more"):
        probe(temperature=0)
    with pytest.raises(ConfigError, match="two classes or more"):
        NearestImages([2], 1)
