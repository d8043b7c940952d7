"""A data set in memory and a small module, to watch what Lightning feeds to a training step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import OnExceptionCheckpoint

from gate_lightning.data.card import ClassLabels, DatasetCard
from gate_lightning.data.samples import SegmentationSample
from gate_lightning.data.segmentation.base import SegmentationDataModule
from gate_lightning.data.transforms.basic import Compose, RandomFlip
from gate_lightning.structures import SegmentationBatch

SIZE = 4


class ToySource:
    """Noise images whose left half is class 1."""

    def __init__(self, prefix: str, length: int) -> None:
        rng = np.random.default_rng(len(prefix))
        mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
        mask[:, : SIZE // 2] = 1
        images = rng.integers(0, 256, (length, SIZE, SIZE, 3), dtype=np.uint8)
        self.samples = [
            SegmentationSample(f"{prefix}/{number}", image, mask=mask) for number, image in enumerate(images)
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def sample_id(self, index: int) -> str:
        return self.samples[index].sample_id

    def load(self, index: int) -> SegmentationSample:
        return self.samples[index]

    def sizes(self, index: int) -> tuple[tuple[int, int], ...]:
        return (SIZE, SIZE), (SIZE, SIZE)


class ToyData(SegmentationDataModule):
    """``length`` training images, randomly flipped, and five for validation."""

    random_views = True
    train_transform = Compose([RandomFlip(0.5)])

    def __init__(self, length: int = 20, **loading: Any) -> None:
        super().__init__(**{"batch_size": 2, **loading})
        self.length = length
        self.card = DatasetCard("toy")
        self.labels = ClassLabels(("a", "b"), ((0, 0, 0), (255, 0, 0)))

    def make_source(self, split: str) -> ToySource:
        return ToySource(split, self.length if split == "train" else 5)


class ToyModule(LightningModule):
    """Linear on all pixels; remembers every batch and every validation."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3 * SIZE * SIZE, generator=generator))
        self.seen: list[tuple[tuple[str, ...], tuple[str, ...], int, int]] = []
        self.validated: list[tuple[int, tuple[str, ...]]] = []
        self._validating: list[str] = []

    def training_step(self, batch: SegmentationBatch, batch_idx: int) -> torch.Tensor:
        logged_at = self.trainer.fit_loop.epoch_loop._batches_that_stepped  # the step that loggers write
        self.seen.append((batch.conditions.sample_ids, batch.conditions.views, batch_idx, logged_at))
        return (batch.images.flatten(1) @ self.weight - 1).square().mean()

    def validation_step(self, batch: SegmentationBatch, batch_idx: int) -> None:
        self._validating += batch.conditions.sample_ids

    def on_validation_start(self) -> None:
        self._validating = []

    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.validated.append((self.trainer.global_step, tuple(self._validating)))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW([self.weight], lr=0.05)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.7)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Stop(Callback):
    """Interrupts the n-th call of a hook (from 1), by an exception."""

    def __init__(self, hook: str, call: int, error: type[BaseException] = RuntimeError) -> None:
        def interrupt(*_: Any, **__: Any) -> None:
            self.calls += 1
            if self.calls == call:
                raise error("stopped on purpose")

        self.calls = 0
        setattr(self, hook, interrupt)


def trainer_of(folder: Path, callbacks: Sequence[Callback] = (), **settings: Any) -> Trainer:
    """A silent trainer on the CPU that saves ``on_exception.ckpt`` when it is interrupted."""
    saver = OnExceptionCheckpoint(folder)
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": True,
    }
    return Trainer(callbacks=[saver, *callbacks], **{**defaults, **settings})


class ManualModule(ToyModule):
    """The same with two optimisers that it steps itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.bias = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: SegmentationBatch, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx) + self.bias.square().sum()
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.AdamW([parameter], lr=0.05) for parameter in (self.weight, self.bias)]
