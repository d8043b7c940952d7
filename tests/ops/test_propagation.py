"""Propagated labels are those of the definition, written out over all cells of all frames."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.ops import propagation
from gate_lightning.ops.propagation import Propagation, Propagator, labels_of, one_hot


def slow(rule: Propagation, query: Tensor, context: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The definition, cell by cell, in float64.

    Context: the first frame and then the last ones, (C, h, w) and (K, h, w).
    """
    height, width = query.shape[-2:]

    def unit(features: Tensor) -> Tensor:
        return features.double() / features.double().norm(dim=0).clamp(min=1e-12)

    query, context = unit(query), [(unit(features), labels.double()) for features, labels in context]
    found = torch.zeros(context[0][1].shape, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            seen = []
            for number, (features, labels) in enumerate(context):
                cosines = torch.einsum("c,chw->hw", query[:, y, x], features).tolist()
                for row in range(height):
                    for column in range(width):
                        down, across = abs(row - y), abs(column - x)
                        inside = max(down, across) <= rule.radius
                        if rule.window == "disc":
                            inside = math.hypot(down, across) < rule.radius
                        if rule.radius and not inside and (number or rule.window_in_first):
                            continue
                        seen.append((cosines[row][column], labels[:, row, column]))
            seen.sort(key=lambda one: -one[0])
            least = seen[: rule.top_k][-1][0]
            kept = [one for one in seen if one[0] >= least - 1e-9] if rule.ties else seen[: rule.top_k]
            weights = [math.exp(cosine / rule.temperature) for cosine, _ in kept]
            found[:, y, x] = sum(w * label for w, (_, label) in zip(weights, kept, strict=True)) / sum(weights)
    return found


def follow(rule: Propagation, frames: list[Tensor], labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Soft labels of the frames after the first one: ours, and the definition's."""
    ours = Propagator(rule, frames[0], labels)
    last: list[tuple[Tensor, Tensor]] = []
    pairs = []
    for frame in frames[1:]:
        copies = [(frames[0], labels)] * (rule.last - len(last)) if rule.repeat_first else []
        wanted = slow(rule, frame, [(frames[0], labels), *copies, *last])
        pairs.append((ours(frame), wanted))
        last = [*last, (frame, wanted)][-rule.last :] if rule.last else []
    return pairs


RULES = [
    Propagation(2, 2, 5, 0.1),
    Propagation(3, 0, 4, 0.2),  # everywhere
    Propagation(0, 3, 3, 0.1),  # the first frame alone
    Propagation(2, 1, 12, 0.1),  # more than a corner's window holds
    Propagation(2, 2, 10, 0.1, "disc", False, False, True),  # as on JHMDB
]


@pytest.mark.parametrize("rule", RULES)
def test_labels_are_those_of_the_definition(rule: Propagation) -> None:
    generator = torch.Generator().manual_seed(1)
    frames = list(torch.randn(4, 8, 5, 11, generator=generator))
    labels = one_hot(torch.randint(0, 3, (5, 11), generator=generator), 3)
    for found, wanted in follow(rule, frames, labels):
        assert (found.double() - wanted).abs().max() < 1e-6
        assert labels_of(found, (40, 88)).equal(labels_of(wanted.float(), (40, 88)))


def test_many_cells_of_many_frames_are_more_than_a_block() -> None:
    generator = torch.Generator().manual_seed(2)
    frames = list(torch.randn(12, 4, 3, 18, generator=generator))
    labels = one_hot(torch.randint(0, 2, (3, 18), generator=generator), 2)
    assert propagation._FRAMES < 10 and propagation._COLUMNS < 18
    for found, wanted in follow(Propagation(10, 3, 6, 0.1), frames, labels):
        assert (found.double() - wanted).abs().max() < 1e-6


@pytest.mark.parametrize(("radius", "top_k"), [(2, 3), (0, 2), (1, 9)])
def test_all_cells_count_that_are_as_similar_as_the_last_one(radius: int, top_k: int) -> None:
    # vectors of few whole numbers: many cells are exactly alike
    generator = torch.Generator().manual_seed(3)
    frames = [frame.float() for frame in torch.randint(0, 2, (4, 2, 4, 10), generator=generator)]
    labels = one_hot(torch.randint(0, 3, (4, 10), generator=generator), 3)
    rule = Propagation(2, radius, top_k, 0.1)
    tied = 0
    for found, wanted in follow(rule, frames, labels):
        assert (found.double() - wanted).abs().max() < 1e-6
        tied += 1
    cut = Propagator(Propagation(2, radius, top_k, 0.1, ties=False), frames[0], labels)(frames[1])
    kept = Propagator(rule, frames[0], labels)(frames[1])
    assert tied == 3
    assert radius == 1 or not torch.allclose(cut, kept)


def test_a_cell_without_a_feature_is_as_far_from_all() -> None:
    frames = [torch.zeros(3, 3, 3), torch.zeros(3, 3, 3)]
    labels = one_hot(torch.tensor([[0, 1, 1], [0, 0, 0], [0, 0, 0]]), 2)
    found = Propagator(Propagation(1, 0, 1), *((frames[0]), labels))(frames[1])
    assert torch.allclose(found[1], torch.full((3, 3), 2 / 9))


def test_labels_move_with_what_they_belong_to() -> None:
    generator = torch.Generator().manual_seed(4)
    world = torch.randn(16, 12, 40, generator=generator)
    mask = torch.zeros(12, 40)
    mask[3:8, 10:16] = 1
    frames = [world[:, :, 3 * step : 3 * step + 20] for step in range(5)]
    ours = Propagator(Propagation(2, 4, 1), frames[0], one_hot(mask[:, :20], 2))
    for step, frame in enumerate(frames[1:], start=1):
        soft = ours(frame)
        inside = slice(0, 20 - 3 * step)  # what came in at the border has no source
        assert soft.argmax(0)[:, inside].equal(mask[:, 3 * step : 3 * step + 20].long()[:, inside])


def test_memory_does_not_grow_with_the_video() -> None:
    ours = Propagator(Propagation(3, 2, 2), torch.randn(2, 4, 4), torch.rand(2, 4, 4))
    kept = []
    for _ in range(9):
        ours(torch.randn(2, 4, 4))
        kept.append(ours.kept)
    assert kept == [2, 3, *[4] * 7]


def test_an_empty_mask_stays_empty() -> None:
    generator = torch.Generator().manual_seed(5)
    frames = torch.randn(3, 4, 6, 6, generator=generator)
    for channels in (1, 3):
        ours = Propagator(Propagation(2, 2, 3), frames[0], one_hot(torch.zeros(6, 6), channels))
        for frame in frames[1:]:
            assert labels_of(ours(frame), (24, 24)).max() == 0


def test_maps_are_stretched_before_they_are_compared() -> None:
    soft = torch.tensor([[[0.9, 0.8]], [[0.1, 0.2]]])
    assert labels_of(soft, (1, 2)).tolist() == [[0, 1]]
    whole = torch.stack([torch.zeros(2, 2), torch.ones(2, 2)])  # an object that fills the frame
    assert labels_of(whole, (4, 4)).eq(1).all()
    resized = labels_of(one_hot(torch.tensor([[0, 1, 1]]), 2), (2, 12)).numpy()
    assert np.array_equal(resized[0], [0] * 4 + [1] * 8)  # 0.5 is at the fifth pixel's left edge


@pytest.mark.parametrize(
    "settings", [{"last": -1}, {"radius": 1.5}, {"top_k": 0}, {"temperature": 0.0}, {"window": "round"}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Propagation(**settings)  # type: ignore[arg-type]


def test_other_cells_are_refused() -> None:
    with pytest.raises(ConfigError, match="other cells"):
        Propagator(Propagation(), torch.randn(2, 4, 4), torch.rand(2, 4, 5))
    with pytest.raises(ConfigError, match=r"the first one have \(2, 4, 4\)"):
        Propagator(Propagation(), torch.randn(2, 4, 4), torch.rand(2, 4, 4))(torch.randn(2, 4, 6))
