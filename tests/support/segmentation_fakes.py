"""A small frozen extractor, a data set in memory and a task over them, for tests of training and evaluation."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer
from torch import Tensor, nn

from gate_lightning.amalgamation.weighted import WeightedAmalgamation
from gate_lightning.data.card import ClassLabels, DatasetCard
from gate_lightning.data.samples import SegmentationSample
from gate_lightning.data.segmentation.base import SegmentationDataModule
from gate_lightning.data.transforms.basic import Compose, RandomFlip
from gate_lightning.features.reading.noise import batch_noise
from gate_lightning.heads.linear import LinearHead
from gate_lightning.losses.cross_entropy import CrossEntropyLoss
from gate_lightning.ops.padding import pad_batch
from gate_lightning.structures import Conditions, FeatureInfo, Features
from gate_lightning.tasks.schedules import poly
from gate_lightning.tasks.segmentation import SegmentationTask

SIZE = 16
#: layer → stride
LAYERS = {"fine": 4, "coarse": 8}
LABELS = ClassLabels(("sky", "sea", "sand"), ((0, 0, 255), (0, 255, 0), (255, 255, 0)))


class FakeExtractor(nn.Module):
    """Two branches of frozen convolutions at strides 4 and 8, with a trace of keyed noise."""

    def __init__(self, channels: int = 6, big: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.branches = ("plain", "steered")
        self.weights = nn.ParameterDict()
        for branch in self.branches:
            for layer, stride in LAYERS.items():
                weight = torch.randn(channels, 3, stride, stride, generator=generator) / stride
                self.weights[f"{branch}_{layer}"] = nn.Parameter(weight, requires_grad=False)
        # something that would be seen in the size of a checkpoint
        self.register_buffer("ballast", torch.zeros(big))
        self.backbone = SimpleNamespace(native_size=SIZE, size_multiple=8)
        self.concatenated: tuple[str, ...] = ()
        self.description: dict[str, Any] = {"backbone": {"digest": "abc"}, "branches": [{"timestep": 50}], "seed": 0}
        self.seen: list[Conditions] = []
        info = {layer: FeatureInfo(channels, stride) for layer, stride in LAYERS.items()}
        self.feature_info = {branch: dict(info) for branch in self.branches}

    @torch.no_grad()
    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        images, conditions = pad_batch(images, conditions, 8)
        self.seen.append(conditions)
        noisy = images + 0.1 * batch_noise(images.shape[1:], conditions, seed=0)
        return {
            branch: {
                layer: torch.conv2d(noisy, self.weights[f"{branch}_{layer}"], stride=stride)
                for layer, stride in LAYERS.items()
            }
            for branch in self.branches
        }


class FakeSource:
    """Images whose classes are bands of colour."""

    def __init__(self, prefix: str, length: int, size: tuple[int, int] = (SIZE, SIZE)) -> None:
        rng = np.random.default_rng(len(prefix))
        self.size = size
        self.samples = []
        for number in range(length):
            edges = sorted(rng.integers(2, size[0] - 2, 2).tolist())
            mask = np.zeros(size, np.uint8)
            mask[edges[0] :] = 1
            mask[edges[1] :] = 2
            mask[0, 0] = 255
            colours = np.array([[80, 120, 240], [20, 160, 90], [230, 210, 120]])
            image = colours[np.where(mask == 255, 0, mask)] + rng.integers(-20, 20, (*size, 3))
            image = image.clip(0, 255).astype(np.uint8)
            sample_id = f"{prefix}/{number:03d}"
            self.samples.append(SegmentationSample(sample_id, image, f"image {number}", mask=mask))

    def __len__(self) -> int:
        return len(self.samples)

    def sample_id(self, index: int) -> str:
        return self.samples[index].sample_id

    def load(self, index: int) -> SegmentationSample:
        return self.samples[index]

    def sizes(self, index: int) -> tuple[tuple[int, int], ...]:
        return self.size, self.size


class FakeData(SegmentationDataModule):
    """Twelve training images in batches of two, three for validation, two for test."""

    random_views = True
    train_transform = Compose([RandomFlip(0.5)])

    def __init__(self, val_size: tuple[int, int] = (SIZE, SIZE), **loading: Any) -> None:
        super().__init__(**{"batch_size": 2, **loading})
        self.card, self.labels = DatasetCard("fake"), LABELS
        self.val_size = val_size

    def make_source(self, split: str) -> FakeSource:
        if split == "train":
            return FakeSource(split, 12)
        return FakeSource(split, 3 if split == "val" else 2, self.val_size)


def make_task(extractor: Any = None, dropout: float = 0.5, **settings: Any) -> SegmentationTask:
    """A task whose assigners drop out, so that exact resume needs the random state."""
    torch.manual_seed(3)
    extractor = FakeExtractor() if extractor is None else extractor  # an empty cache is not true
    amalgamation = WeightedAmalgamation(extractor.feature_info, hidden_channels=8, dropout=dropout)
    head = LinearHead(amalgamation.out_channels, amalgamation.strides, len(LABELS.classes), batch_norm=True)
    parts: dict[str, Any] = {
        "extractor": extractor,
        "amalgamation": amalgamation,
        "head": head,
        "loss": CrossEntropyLoss(LABELS.ignore_index),
        "optimizer": partial(torch.optim.AdamW, lr=0.02),
        "scheduler": poly,
        "labels": LABELS,
    }
    return SegmentationTask(**{**parts, **settings})


def make_trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    """A silent trainer on the CPU."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(hasattr(c, "save_last") for c in callbacks),
        "default_root_dir": folder,
        "num_sanity_val_steps": 0,
        "max_steps": 10,
        "val_check_interval": 4,
        "check_val_every_n_epoch": None,
        "log_every_n_steps": 1,
        "use_distributed_sampler": False,
    }
    return Trainer(callbacks=list(callbacks), **{**defaults, **settings})
