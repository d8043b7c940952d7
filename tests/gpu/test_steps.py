"""Every task trains and is evaluated on a pretended GPU, with at most so many waits and copies a step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from gate_lightning.data.card import ClassLabels
from gate_lightning.data.core import samplers
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.jobs.training import train
from gate_lightning.engine.parts.components import Components
from gate_lightning.errors import DataError
from gate_lightning.features.reading.recorded import Recordings
from gate_lightning.losses.cross_entropy import CrossEntropyLoss
from gate_lightning.losses.lovasz import LovaszSoftmaxLoss
from gate_lightning.structures import Conditions, SegmentationBatch
from gate_lightning.tasks.base import BaseTask
from gate_lightning.tasks.evaluation import DenseTask
from tests.support.composition import composed
from tests.support.gpu_jobs import IMAGES, LIMITS, ONE_LAYER, SCARCE, SETTINGS, TASKS
from tests.support.pretended_gpu import Record, pretended_gpu
from tests.support.small_networks import build

#: where the guard of each job runs; those that are not named: in the slow tests
MARKS = {"segmentation": [pytest.mark.thorough], "segmentation, features known": []}


class Count(Callback):
    """Records of the last training step and of the last batch of evaluation, from the end of the one before."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.training = self.evaluation = Record()

    def on_train_batch_end(self, *_: Any) -> None:
        self.training = deepcopy(self.record)
        self.record.clear()

    def on_validation_batch_end(self, *_: Any) -> None:
        self.evaluation = deepcopy(self.record)
        self.record.clear()

    on_test_batch_end = on_validation_batch_end


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Iterator[Record]:
    monkeypatch.setattr(Recordings, "run", lambda self, network, key, given, function: function())  # no graph is real
    with pretended_gpu() as found:
        yield found


def check(job: str, count: Count) -> None:
    step, batch = count.training, count.evaluation
    found = (step.waits.total(), step.copies.total(), batch.waits.total(), batch.copies.total())
    told = f"{job}: {found} of at most {LIMITS[job]}\nstep: {step}\nbatch of evaluation: {batch}\n"
    if "GATE_COUNTS" in os.environ:  # a file that the numbers are added to
        with Path(os.environ["GATE_COUNTS"]).open("a") as file:
            file.write(told)
    assert all(one <= limit for one, limit in zip(found, LIMITS[job], strict=True)), told


@pytest.mark.parametrize("job", [pytest.param(job, marks=MARKS.get(job, [pytest.mark.slow])) for job in SETTINGS])
def test_a_configured_job(job: str, record: Record, tmp_path: Path) -> None:
    parts = Components(runs.resolve(composed(*SETTINGS[job])), str(tmp_path), training=True)
    data, trainer, count = parts.connected_datamodule, parts.trainer, Count(record)
    trainer.callbacks.append(count)  # type: ignore[attr-defined]
    trainer.fit(parts.task, data)
    check(job, count)


@pytest.mark.slow
def test_label_scarce_to_its_end(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, made = Count(record), Components.trainer.func  # type: ignore[attr-defined]

    def with_count(parts: Components) -> Trainer:
        trainer: Trainer = made(parts)
        trainer.callbacks.append(count)  # type: ignore[attr-defined]
        return trainer

    monkeypatch.setattr(Components.trainer, "func", with_count)
    monkeypatch.setattr(samplers, "WORKERS", 0)  # another thread would pin batches, on a GPU that is not there
    metrics = train(composed(*SCARCE), SCARCE, tmp_path)
    assert "test/mIoU" in metrics
    check("label-scarce", count)


@pytest.mark.slow
@pytest.mark.parametrize("job", TASKS)
def test_training_of_the_parts_of_a_diffusion_model(job: str, record: Record, tmp_path: Path) -> None:
    make, batch = TASKS[job]
    count = Count(record)
    settings: dict[str, Any] = {"accelerator": "gpu", "max_steps": 3, "logger": False, "val_check_interval": 3}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(**settings, num_sanity_val_steps=0, default_root_dir=tmp_path, callbacks=[count])
    loaders = [DataLoader([batch() for _ in range(number)], batch_size=None) for number in (3, 2)]
    trainer.fit(make(build("tiny")), *loaders)
    check(job, count)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("task=geometric", "dataset=scene_homographies", "dataset.scenes=1", "dataset.views=1", "dataset.pixels=64"),
        ("task=video", "dataset=scene_videos", "dataset.test=1", "dataset.frames=3", "dataset.size=64"),
        ("task=content_shift", "dataset.val=4", "dataset.train=4"),
        ("task=correspondence", "dataset=scene_pairs", "dataset.test=2", "amalgamation=concat", "head=descriptors"),
    ],
)
def test_what_is_only_measured(settings: tuple[str, ...], record: Record, tmp_path: Path) -> None:
    given = [*settings, "backbone.weights=random", ONE_LAYER, "techniques=none", "trainer.accelerator=gpu"]
    metrics = evaluate(composed(*given, name="eval"), given, tmp_path / "run")
    assert metrics


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(record: Record, tmp_path: Path) -> None:
    class Stop(Exception):  # noqa: N818 - no error
        pass

    given = [*IMAGES, "head=linear", ONE_LAYER, "techniques=none", "callbacks.checkpoint.every_n_steps=1"]
    whole = train(composed(*given), given, tmp_path / "whole")
    after = BaseTask.on_after_backward

    def stopping(task: BaseTask) -> None:
        if task.global_step == 2:
            raise Stop
        after(task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseTask, "on_after_backward", stopping)
        with pytest.raises(Stop):
            train(composed(*given), given, tmp_path / "killed")
    resumed = [f"resume={tmp_path / 'killed'}"]
    assert train(composed(*resumed), resumed, tmp_path / "killed") == whole


def test_labels_that_are_no_class_are_told_of(record: Record) -> None:
    """On an accelerator the loss does not look at them: it is not finite, and the step says why."""
    labels = ClassLabels(("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))
    masks = torch.tensor([[[0, 1], [3, 255]]]).to("cuda:0")
    logits = torch.randn(1, 3, 2, 2).to("cuda:0").requires_grad_()
    record.clear()
    loss = CrossEntropyLoss()(logits, masks)
    assert record.waits.total() == 0
    assert loss.isnan().item()
    task = SimpleNamespace(labels=labels)
    with pytest.raises(DataError, match="label values 3"):
        DenseTask.check_labels(task, SegmentationBatch(logits, Conditions(("x",)), masks))  # type: ignore[arg-type]
    good = masks.masked_fill(masks == 3, 255)
    expected = CrossEntropyLoss()(logits.detach().cpu(), good.cpu())
    assert torch.equal(CrossEntropyLoss()(logits, good).detach().cpu(), expected)


@pytest.mark.parametrize("ignored", [False, True])
def test_lovasz_is_the_same_and_waits_once(ignored: bool, record: Record) -> None:
    """There pixels that do not count are sorted to the end, on the CPU they are left out."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 6, 7, generator=generator)
    masks = torch.randint(0, 4, (2, 6, 7), generator=generator)
    if ignored:
        masks[:, 2:4] = 255
    found = []
    for device in ("cpu", "cuda:0"):
        given, there = logits.clone().to(device).requires_grad_(), masks.to(device)
        record.clear()
        loss = LovaszSoftmaxLoss()(given, there)
        loss.backward()
        assert record.waits.total() == (device != "cpu"), record
        assert given.grad is not None
        found.append((loss.detach().cpu(), given.grad.cpu()))
    for there, here in zip(*found, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-6, atol=1e-7)
