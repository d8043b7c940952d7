"""Order of images: complete, shuffled, the same for any number of processes, resumable."""

from __future__ import annotations

import itertools

import pytest

from gate_lightning.data.core.samplers import EvaluationBatches, TrainingBatches, epoch_order, group_by_size
from gate_lightning.errors import ConfigError


def indices(sampler: TrainingBatches) -> list[list[int]]:
    return [[draw.index for draw in batch] for batch in sampler]


def test_epochs_are_different_permutations() -> None:
    orders = [epoch_order(50, seed, epoch).tolist() for seed in (0, 1) for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders)
    assert epoch_order(50, 0, 1).tolist() == orders[1]


def test_an_epoch_has_every_image_at_most_once() -> None:
    sampler = TrainingBatches(23, batch_size=4)
    batches = indices(sampler)
    assert len(batches) == len(sampler) == 5
    assert {len(batch) for batch in batches} == {4}
    assert len({index for batch in batches for index in batch}) == 20


def test_without_a_position_every_iteration_is_the_next_epoch() -> None:
    sampler = TrainingBatches(8, batch_size=2)
    epochs = [[draw.epoch for batch in sampler for draw in batch] for _ in range(3)]
    assert [set(epoch) for epoch in epochs] == [{0}, {1}, {2}]


@pytest.mark.parametrize("first", [0, 3, 5])
def test_position_gives_the_rest_of_its_epoch(first: int) -> None:
    whole = indices(TrainingBatches(23, 4, seed=7, position=lambda: (2, 0)))
    assert indices(TrainingBatches(23, 4, seed=7, position=lambda: (2, first))) == whole[first:]


def test_position_is_asked_when_iteration_starts() -> None:
    here = [(0, 0)]
    sampler = TrainingBatches(8, 2, position=lambda: here[0])
    iterator = iter(sampler)
    here[0] = (1, 2)
    assert len(list(iterator)) == 4
    assert len(list(sampler)) == 2


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 4), (4, 2), (8, 1)])
def test_global_order_does_not_depend_on_the_number_of_processes(world_size: int, batch_size: int) -> None:
    single = indices(TrainingBatches(43, 8, seed=1))
    ranks = [indices(TrainingBatches(43, batch_size, 1, None, rank, world_size)) for rank in range(world_size)]
    assert [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)] == single


def test_too_few_images_are_refused_with_a_batch_size_that_works() -> None:
    with pytest.raises(ConfigError, match=r"needs 16 training images, there are 9; use dataset.batch_size=4"):
        TrainingBatches(9, 8, world_size=2)
    assert len(TrainingBatches(9, 4, world_size=2)) == 1


def test_batches_never_mix_sizes() -> None:
    sizes = ["a", "b", "a", "a", "b", "a"]
    batches = group_by_size(sizes, 3, together=8)
    assert all(len({sizes[index] for index in batch}) == 1 for batch in batches)
    assert sorted(itertools.chain(*batches)) == list(range(6))
    assert max(map(len, batches)) == 3


def test_default_batch_is_one_unless_all_sizes_are_equal() -> None:
    assert group_by_size(["a", "b", "a"], None, together=8) == [[0], [1], [2]]
    assert group_by_size(["a"] * 5, None, together=2) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_evaluation_sees_everything_once_and_processes_stay_in_step(world_size: int) -> None:
    batches = [[0, 1], [2, 3], [4]]
    ranks = [list(EvaluationBatches(batches, rank, world_size)) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    real = [draw.index for rank in ranks for batch in rank for draw in batch if not draw.padding]
    assert sorted(real) == [0, 1, 2, 3, 4]
    bare = [list(EvaluationBatches(batches, rank, world_size, pad=False)) for rank in range(world_size)]
    assert sorted(draw.index for rank in bare for batch in rank for draw in batch) == [0, 1, 2, 3, 4]
