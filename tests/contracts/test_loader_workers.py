"""What loader workers are given pickles: since Python 3.14 they are not forked on Linux."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor

from gate_lightning.data.core.prediction import PredictionDataModule
from gate_lightning.data.core.samplers import BatchLoader
from gate_lightning.data.scenes.dataset import ScenesDataModule
from gate_lightning.data.segmentation.folder import FolderDataModule
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.parts.components import Components
from gate_lightning.features.branch import Branch
from gate_lightning.features.config.required_inputs import required_inputs_of
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.prompt import Prompt
from tests.support.composition import composed
from tests.support.folders import make_folder

#: command line → splits that have loaders
JOBS = {
    ("task=segmentation", "dataset.train=8", "techniques=[prompt,controlnet]"): ("train", "val", "test"),
    ("dataset=scene_pairs", "dataset.train=4", "dataset.flip=0.5"): ("train", "val", "test"),
    ("task=geometric", "dataset=scene_homographies"): ("test",),
    ("task=video", "dataset=scene_videos"): ("val", "test"),
    ("task=label_scarce",): ("train", "test"),
    ("task=content_shift", "task.data.images=4"): ("val", "test"),
    ("task=classification", "dataset=scene_kinds", "dataset.train=16"): ("train", "val", "test"),
    ("experiment=tiny/autoencoder",): ("train", "val"),
    ("experiment=tiny/controlnet",): ("train", "val"),  # its cache of latents is not there: not read here
}


def tensors(thing: Any) -> Iterator[Tensor]:
    """All tensors of a batch."""
    if isinstance(thing, Tensor):
        yield thing
    elif is_dataclass(thing):
        for field in fields(thing):
            yield from tensors(getattr(thing, field.name))
    elif isinstance(thing, Mapping | list | tuple):
        for one in thing.values() if isinstance(thing, Mapping) else thing:
            yield from tensors(one)


def worker_s_copy(loader: BatchLoader) -> Any:
    """The data set as a worker that is not forked has it."""
    given = (loader.dataset, loader.collate_fn, loader.worker_init_fn)
    return pickle.loads(pickle.dumps(given))[0]


def assert_equal(one: Any, other: Any) -> None:
    pairs = list(zip(tensors(one), tensors(other), strict=True))
    assert pairs
    for here, there in pairs:
        torch.testing.assert_close(here, there, rtol=0, atol=0, equal_nan=True)


def inside_a_trainer(module: Any) -> None:
    """Give a data module a trainer, which does not pickle."""
    trainer: Any = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.held = threading.Lock()
    module.trainer = trainer


#: jobs of the default run: masks, pairs and classes
QUICK = ("task=segmentation", "task=classification", "experiment=tiny/controlnet")


@pytest.mark.parametrize(
    "job",
    [job if job[0] in QUICK else pytest.param(job, marks=pytest.mark.thorough) for job in JOBS],
    ids=lambda job: job[0],
)
def test_a_copy_of_a_data_set_makes_the_same_batches(job: tuple[str, ...]) -> None:
    module = Components(runs.resolve(composed(*job, name="eval")), "").connected_datamodule
    inside_a_trainer(module)
    for split in JOBS[job]:
        module.setup("test" if split == "test" else "fit" if "train" in JOBS[job] else "validate")
        loader = getattr(module, f"{split}_dataloader")()
        copied, requests = worker_s_copy(loader), next(iter(loader.sampler))
        if job[0] != "experiment=tiny/controlnet":
            assert_equal(loader.dataset[requests], copied[requests])


def own_folder(root: Path) -> FolderDataModule:
    """Images with masks, captions, edges and control images of a folder."""
    make_folder(root, captions="files")
    module = FolderDataModule(str(root), crop_size=16, batch_size=2)
    required = required_inputs_of([Branch("a", 50, ("x",), (Prompt(), ControlNet("canny")))])
    module.attach_inputs(replace(required, control_folders={"depth": str(root)}))
    return module


def test_a_copy_of_a_folder_s_data_set_makes_the_same_batches(tmp_path: Path) -> None:
    module = own_folder(tmp_path)
    module.setup("fit")
    inside_a_trainer(module)
    prediction = PredictionDataModule(tmp_path / "images" / "train")
    for loader in (module.train_dataloader(), module.val_dataloader(), prediction.predict_dataloader()):
        requests = next(iter(loader.sampler))
        assert_equal(loader.dataset[requests], worker_s_copy(loader)[requests])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_are_not_forked_make_the_same_batches(method: str, tmp_path: Path) -> None:
    scenes = ScenesDataModule(size=16, train=4, val=2, batch_size=2, augment=True)
    for module in (scenes, own_folder(tmp_path)):
        module.setup("fit")
        loader = module.train_dataloader()
        sampler = list(loader.sampler)
        apart = BatchLoader(loader.dataset, sampler=sampler, num_workers=1, multiprocessing_context=method)
        for requests, there in zip(sampler, apart, strict=True):
            here = loader.dataset[requests]
            assert torch.equal(here.images, there.images) and torch.equal(here.masks, there.masks)
            assert here.conditions.sample_ids == there.conditions.sample_ids
