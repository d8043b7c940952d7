"""Keys of randomness, views, and batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gate_lightning.data.card import IGNORE_INDEX
from gate_lightning.data.samples import (
    BatchDataset,
    Sample,
    SampleRequest,
    SegmentationSample,
    Subset,
    collate_images,
    collate_masks,
    to_tensor,
)
from gate_lightning.data.transforms.basic import RandomFlip
from gate_lightning.structures import ImageBatch
from gate_lightning.utils.seeding import data_generator
from tests.support.toy_data import ToySource


def test_keyed_numbers_are_the_same_in_every_process() -> None:
    """A recorded number: Python's own hash() would differ from process to process."""
    assert data_generator("a", 1).integers(2**62) == 4569526078405219293


def test_every_part_of_the_key_counts() -> None:
    keys = [("a", 1), ("a", 2), ("b", 1), ("a", "1", ""), ("a1",), ("a", 1, 0)]
    assert len({int(data_generator(*key).integers(2**62)) for key in keys}) == len(keys)


def test_pixels_are_scaled_to_minus_one_to_one() -> None:
    image = np.array([[[0, 127, 255]]], dtype=np.uint8)
    tensor = to_tensor(image)
    assert tensor.shape == (3, 1, 1)
    assert tensor.dtype == torch.float32
    assert tensor.flatten().tolist() == pytest.approx([-1.0, -1 / 255, 1.0], abs=1e-6)


def test_view_depends_on_sample_and_epoch_only() -> None:
    source = ToySource("train", 12)
    views = BatchDataset(source, RandomFlip(0.5), collate_masks, seed=4, random=True)
    together = views[[SampleRequest(index, 3) for index in range(12)]]
    alone = [views[[SampleRequest(index, 3)]] for index in reversed(range(12))][::-1]
    assert torch.equal(together.images, torch.cat([batch.images for batch in alone]))
    assert torch.equal(together.masks, torch.cat([batch.masks for batch in alone]))
    assert set(together.conditions.views) == {"draw3"}
    # all masks are alike: some are mirrored, some are not
    assert set(together.masks[:, 0, 0].tolist()) == {0, 1}
    other = views[[SampleRequest(index, 4) for index in range(12)]]
    assert not torch.equal(together.images, other.images)
    assert set(other.conditions.views) == {"draw4"}


def test_plain_views_have_no_name_and_no_randomness() -> None:
    views = BatchDataset(ToySource("train", 2), lambda sample, rng: sample)
    first, second = views[[SampleRequest(0, 0)]], views[[SampleRequest(0, 9)]]
    assert first.conditions.views == second.conditions.views == ("",)
    assert torch.equal(first.images, second.images)


def test_padding_keeps_the_image_and_ignores_the_mask() -> None:
    views = BatchDataset(ToySource("val", 2), lambda sample, rng: sample, collate_masks)
    real, padding = views[[SampleRequest(1)]], views[[SampleRequest(1, padding=True)]]
    assert torch.equal(real.images, padding.images)
    assert (padding.masks == IGNORE_INDEX).all()
    assert (real.masks != IGNORE_INDEX).all()


def test_batches_carry_captions_controls_and_windows() -> None:
    image = np.full((2, 2, 3), 255, dtype=np.uint8)
    mask = np.array([[0, 255], [1, 1]], dtype=np.uint8)
    samples = [SegmentationSample(name, image, f"a {name}", {"edges": image // 5}, (1, 2), mask=mask) for name in "ab"]
    batch = collate_masks(samples, ("x", "y"))
    assert batch.masks.dtype == torch.int64
    assert batch.masks[1].tolist() == [[0, 255], [1, 1]]
    assert batch.conditions.captions == ("a a", "a b")
    assert batch.conditions.windows == ((1, 2), (1, 2))
    assert batch.conditions.views == ("x", "y")
    assert batch.conditions.control_images["edges"].shape == (2, 3, 2, 2)
    assert batch.conditions.control_images["edges"].unique().tolist() == pytest.approx([0.2])


def test_images_alone_make_a_batch_without_masks_and_captions() -> None:
    batch = collate_images([Sample("a", np.zeros((2, 2, 3), dtype=np.uint8))])
    assert type(batch) is ImageBatch
    assert batch.conditions.captions is None


def test_a_subset_reads_through_to_its_sources() -> None:
    train, val = ToySource("train", 4), ToySource("val", 3)
    subset = Subset([(val, 2), (train, 0)])
    assert [subset.sample_id(index) for index in range(len(subset))] == ["val/2", "train/0"]
    assert subset.load(1) is train.load(0)
    assert subset.sizes(0) == val.sizes(2)
