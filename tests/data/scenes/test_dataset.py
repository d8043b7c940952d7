"""Generated scenes as a data set: disjoint splits, exact masks, captions and their controls."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest

from gate_lightning.data.card import IGNORE_INDEX
from gate_lightning.data.pretraining.latents import TRAIN_SEED, VAL_SEED
from gate_lightning.data.samples import SampleRequest
from gate_lightning.data.scenes.captions import caption, check_words
from gate_lightning.data.scenes.dataset import FIRST_SEED, MAX_LENGTH, ScenesDataModule, ScenesSource, split_seeds
from gate_lightning.data.scenes.layout import sample_scene
from gate_lightning.data.scenes.render import render
from gate_lightning.data.scenes.world import LEAK_FREE_KINDS, MERGED, PART_TO_MERGED, PARTS
from gate_lightning.errors import ConfigError

SMALL = {"train": 6, "val": 4, "test": 5, "size": 32, "batch_size": 2}


def scenes(**arguments: Any) -> ScenesDataModule:
    return ScenesDataModule(**{**SMALL, **arguments})


def captions(module: ScenesDataModule, split: str = "train") -> list[str]:
    source = module.source(split)
    return [source.load(index).caption for index in range(len(source))]


def test_samples_are_the_rendered_scenes() -> None:
    module = scenes()
    sample = module.source("train").load(2)
    spec = sample_scene(FIRST_SEED["train"] + 2, "target")
    drawn = render(spec, 32)
    assert sample.sample_id == f"scenes/target/{FIRST_SEED['train'] + 2}"
    assert (sample.image == drawn.image).all()
    assert (sample.mask == drawn.parts).all()
    assert sample.caption == caption(spec, "fine")


def test_augmented_images_are_new_in_every_epoch_and_never_padded() -> None:
    plain, augmented = scenes().training_views(), scenes(augment=True, batch_size=2).training_views()
    draws = [[SampleRequest(index, epoch) for index in range(6)] for epoch in range(3)]
    assert (plain[draws[0]].images == plain[draws[1]].images).all()
    seen = [augmented[one] for one in draws]
    assert (seen[0].images != seen[1].images).any()
    assert (augmented[draws[2]].images == seen[2].images).all()
    assert {tuple(batch.images.shape) for batch in seen} == {(6, 3, 32, 32)}
    assert all((batch.masks != IGNORE_INDEX).all() for batch in seen)
    assert (scenes(augment=True).source("val").load(0).image == scenes().source("val").load(0).image).all()


def test_merged_labels_and_other_domain_show_the_same_scenes() -> None:
    parts, merged = scenes().source("val"), scenes(labels="merged", domain="source").source("val")
    for index in range(len(parts)):
        assert (PART_TO_MERGED[parts.load(index).mask] == merged.load(index).mask).all()
        assert (parts.load(index).image != merged.load(index).image).any()
    assert scenes().labels.classes == PARTS
    assert scenes(labels="merged").labels.classes == MERGED
    assert len(scenes(labels="merged").labels.palette) == len(MERGED)


def test_no_two_splits_share_a_scene() -> None:
    ranges = [split_seeds("train", MAX_LENGTH, seed) for seed in (0, 1, 2, 99)]
    ranges += [split_seeds("val", MAX_LENGTH), split_seeds("test", MAX_LENGTH)]
    ranges.sort(key=lambda seeds: seeds.start)
    assert all(one.stop <= other.start for one, other in itertools.pairwise(ranges))
    assert ranges[-1].stop <= min(TRAIN_SEED, VAL_SEED)


def test_split_seed_changes_training_images_only() -> None:
    first, second = scenes(), scenes(split_seed=1)
    assert not set(first.seeds["train"]) & set(second.seeds["train"])
    assert first.seeds["val"] == second.seeds["val"]
    assert first.seeds["test"] == second.seeds["test"]


def test_training_images_are_not_augmented() -> None:
    loader = scenes().train_dataloader()
    epochs = [
        {name: image for b in loader for name, image in zip(b.conditions.sample_ids, b.images, strict=True)}
        for _ in range(2)
    ]
    assert all((epochs[0][name] == epochs[1][name]).all() for name in epochs[0])
    assert next(iter(loader)).conditions.views == ("", "")


@pytest.mark.parametrize("level", ["fine", "kinds", "coarse", "noisy", "empty"])
def test_caption_levels(level: str) -> None:
    module = scenes(captions=level)
    assert captions(module) == [caption(sample_scene(seed, "target"), level) for seed in module.seeds["train"]]


def test_shuffled_captions_are_those_of_other_images() -> None:
    fine, shuffled = captions(scenes()), captions(scenes(captions="shuffled"))
    assert sorted(shuffled) == sorted(fine)
    assert all(one != other for one, other in zip(fine, shuffled, strict=True))
    assert shuffled == captions(scenes(captions="shuffled"))
    images = [scenes(captions=name).source("train").load(0).image for name in ("fine", "shuffled")]
    assert (images[0] == images[1]).all()


def test_prompts_use_the_words_of_the_tokenizer() -> None:
    check_words(scenes().card.prompt_simple)
    check_words(scenes().card.prompt_fine)


@pytest.mark.parametrize("kinds", ["leak_free", list(LEAK_FREE_KINDS)])
def test_leak_free_scenes_all_hold_the_same_kinds(kinds: Any) -> None:
    source = scenes(kinds=kinds, labels="merged", size=64).source("test")
    wanted = {MERGED.index(kind) for kind in LEAK_FREE_KINDS}
    for index in range(len(source)):
        assert {int(value) for value in np.unique(source.load(index).mask)} - {0, 1} == wanted


def test_batches() -> None:
    module = scenes(eval_batch_size=3)
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch.images.shape == (2, 3, 32, 32)
    assert batch.masks.max() < len(PARTS)
    assert [len(batch) for batch in module.test_dataloader()] == [3, 2]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"domain": "moon"}, "domain='moon': .*expected one of source, target"),
        ({"labels": "all"}, "labels='all'"),
        ({"captions": "fnie"}, "captions='fnie': did you mean fine"),
        ({"kinds": ["tree", "boat"]}, "kind='boat'"),
        ({"kinds": "trees"}, "kinds"),
        ({"train": 0}, "dataset.train=0"),
        ({"test": MAX_LENGTH + 1}, "dataset.test=10001"),
        ({"split_seed": 100}, "split_seed=100"),
        ({"size": 4}, "size=4: expected a whole number from 8 to 4096"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        scenes(**arguments)


def test_several_hundred_images_take_a_second() -> None:
    """Loose: the machine may be busy."""
    start = time.process_time()
    ScenesSource(range(100))
    assert time.process_time() - start < 2
