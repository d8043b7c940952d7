"""Batches of labelled pixels: what is in them, in which order, and where they go on."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from gate_lightning.data.core.samplers import BatchLoader
from gate_lightning.data.label_scarce.pixel_batches import LabelledPixels, PixelSampler
from gate_lightning.errors import ConfigError
from gate_lightning.structures import PixelBatch


def masks(count: int = 3, height: int = 6, width: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    made = rng.integers(0, 4, (count, height, width)).astype(np.uint8)
    return list(np.where(rng.random(made.shape) < 0.2, 255, made).astype(np.uint8))


def triples(batch: PixelBatch, member: int) -> list[tuple[int, int, int]]:
    parts = (batch.images, batch.positions, batch.labels)
    return list(zip(*(part[member].tolist() for part in parts), strict=True))


def test_a_pass_shows_every_labelled_pixel_once_to_every_member() -> None:
    given = masks()
    expected = [
        (number, row * 5 + column, int(mask[row, column]))
        for number, mask in enumerate(given)
        for row in range(6)
        for column in range(5)
        if mask[row, column] != 255
    ]
    pixels = LabelledPixels(given, members=3, batch_size=7, seed=1)
    assert len(pixels) == len(expected) // 7  # the last, incomplete batch is dropped
    for member in range(3):
        seen = [pixel for number in range(len(pixels)) for pixel in triples(pixels[0, number], member)]
        assert len(seen) == len(set(seen)) == 7 * len(pixels)
        assert set(seen) <= set(expected)
    batch = pixels[0, 0]
    assert batch.labels.shape == batch.images.shape == batch.positions.shape == (3, 7)
    assert batch.labels.dtype == batch.images.dtype == batch.positions.dtype == torch.int64
    assert len(batch) == 3


def test_orders_differ_by_member_epoch_and_seed_and_by_nothing_else() -> None:
    pixels = LabelledPixels(masks(), members=2, batch_size=5, seed=0)
    first = triples(pixels[0, 0], 0)
    assert first != triples(pixels[0, 0], 1)
    assert first != triples(pixels[1, 0], 0)
    assert first != triples(LabelledPixels(masks(), 2, 5, seed=1)[0, 0], 0)
    # neither what was asked before nor how many members there are
    assert first == triples(pixels[0, 0], 0)
    assert triples(pixels[2, 3], 1) == triples(LabelledPixels(masks(), 4, 5, seed=0)[2, 3], 1)


def test_orders_of_two_epochs_are_never_there_at_once() -> None:
    pixels = LabelledPixels([np.zeros((128, 128), np.uint8)] * 4, members=10)
    pixels[0, 0]
    tracemalloc.start()
    pixels[1, 0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.3 * LabelledPixels.bytes_for(4 * 128 * 128, 10)


def test_the_loader_yields_whole_batches_and_goes_on_where_it_is_told() -> None:
    pixels = LabelledPixels(masks(), members=2, batch_size=5, seed=0)
    loader = BatchLoader(pixels, sampler=PixelSampler(len(pixels)))
    passes = [[triples(batch, 1) for batch in loader] for _ in range(2)]
    assert passes == [[triples(pixels[epoch, n], 1) for n in range(len(pixels))] for epoch in range(2)]
    sampler = PixelSampler(len(pixels))
    sampler.position = lambda: (1, 4)
    resumed = BatchLoader(pixels, sampler=sampler)
    assert [triples(batch, 1) for batch in resumed] == passes[1][4:]
    assert len(resumed) == len(pixels)


def test_a_batch_moves_as_a_whole() -> None:
    batch = LabelledPixels(masks(), members=2, batch_size=5)[0, 0].to("meta")
    assert {part.device.type for part in (batch.images, batch.positions, batch.labels)} == {"meta"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": 0}, "members=0"),
        ({"batch_size": True}, "pixels_per_batch=True"),
        ({"batch_size": 1000}, "hold"),
    ],
)
def test_settings_out_of_range(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LabelledPixels(masks(), **settings)


def test_masks_without_labels_are_refused() -> None:
    ignored = np.full((4, 4), 255, dtype=np.uint8)
    with pytest.raises(ConfigError, match="the 2 training masks hold 0; label more"):
        LabelledPixels([ignored, ignored], batch_size=1)
