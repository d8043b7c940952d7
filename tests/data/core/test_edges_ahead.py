"""Edges that loader workers find ahead: those that are found when they are needed, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from gate_lightning import load_backbone
from gate_lightning.data.core.required_inputs import RequiredInputs
from gate_lightning.data.core.samplers import loading
from gate_lightning.data.scenes.dataset import ScenesDataModule
from gate_lightning.features.branch import Branch
from gate_lightning.features.caches.keys import ImageKeys, image_key
from gate_lightning.features.config.required_inputs import required_inputs_of
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.wrappers.edge_channels import EdgeChannels
from gate_lightning.ops.padding import pad_batch
from gate_lightning.structures import SegmentationBatch
from gate_lightning.techniques import controlnet
from gate_lightning.techniques.controlnet import CannyEdges, ControlNet

LAYER = "up-level2-upsampler-out"
SETTINGS = (60, 110, 1.3)


def batches(workers: int, required: RequiredInputs, size: int = 64, split: str = "train") -> list[SegmentationBatch]:
    data = ScenesDataModule(size=size, train=4, val=2, batch_size=2, augment=True, num_workers=workers)
    data.attach_inputs(required)
    data.setup()
    return list(data.train_dataloader() if split == "train" else data.val_dataloader())


@pytest.fixture(scope="module")
def read() -> dict[int, list[SegmentationBatch]]:
    branch = Branch("steered", 50, (LAYER,), (ControlNet("canny", 1.0, *SETTINGS),))
    required = required_inputs_of([branch, replace(branch, name="again")])
    assert required.edges == (CannyEdges(*SETTINGS),)
    return {workers: batches(workers, required) for workers in (0, 2)}


def test_workers_change_nothing_but_that_the_edges_are_there(read: dict[int, list[SegmentationBatch]]) -> None:
    for here, there in zip(read[0], read[2], strict=True):
        assert torch.equal(here.images, there.images) and torch.equal(here.masks, there.masks)
        assert not here.conditions.edges
        ((key, edges),) = there.conditions.edges.items()
        assert (key, edges.dtype, edges.shape) == (CannyEdges(*SETTINGS).key, torch.uint8, (2, 64, 64))
        assert replace(there.conditions, edges={}, control_images={}) == replace(here.conditions, control_images={})


def test_features_are_the_same_and_nothing_is_computed_again(
    read: dict[int, list[SegmentationBatch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    branch = Branch("steered", 50, (LAYER,), (ControlNet("canny", 1.0, *SETTINGS),))
    extractor = EdgeChannels(FeatureExtractor(load_backbone("tiny"), [branch]), *SETTINGS)
    here, there = read[0][0], read[2][0]
    expected = extractor(here.images, here.conditions)
    monkeypatch.setattr(controlnet, "canny_edges", None)
    found: Any = extractor(there.images, there.conditions)
    for name, layers in expected.items():
        for layer, value in layers.items():
            assert torch.equal(found[name][layer], value), name


def test_edges_of_other_images_and_settings_are_not_taken(read: dict[int, list[SegmentationBatch]]) -> None:
    batch, source = read[2][0], CannyEdges(*SETTINGS)
    mirrored = batch.conditions.map_controls(lambda image: image.flip(-1))
    assert torch.equal(source(batch.images.flip(-1), mirrored), source(batch.images.flip(-1), read[0][0].conditions))
    padded, conditions = pad_batch(batch.images[..., :60, :60], batch.conditions, 8)
    assert padded.shape[-2:] == (64, 64) and not conditions.edges
    other = CannyEdges(10, 20)
    assert torch.equal(other(batch.images, batch.conditions), other(batch.images, read[0][0].conditions))


def test_caches_know_images_with_and_without_them(read: dict[int, list[SegmentationBatch]]) -> None:
    here, there = read[0][0], read[2][0]
    assert image_key(here.images[0], here.conditions, 0) == image_key(there.images[0], there.conditions, 0)
    keys = ImageKeys()
    same = replace(there.conditions, source=here.conditions.source)
    assert keys(here.images, here.conditions) == keys(there.images, same)


def test_loaders_follow_the_device() -> None:
    class Strategy:
        root_device = torch.device("cpu")

    class Fake:
        strategy = Strategy()

    trainer: Any = Fake()
    assert loading(None, None) == loading(trainer, None) == loading(trainer, 0)
    assert loading(trainer, None) == {"num_workers": 0, "persistent_workers": False, "pin_memory": False}
    Strategy.root_device = torch.device("cuda", 0)
    assert loading(trainer, 0) == {"num_workers": 0, "persistent_workers": False, "pin_memory": True}
    automatic = loading(trainer, None)
    assert automatic["num_workers"] >= 1 and automatic["persistent_workers"]
