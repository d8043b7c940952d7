"""Small jobs of every task on a GPU, and how many waits and copies their steps may take."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from gate_lightning.data.pretraining.batches import CaptionedBatch, LabelledBatch
from gate_lightning.tasks.pretraining.autoencoder import AutoencoderTask
from gate_lightning.tasks.pretraining.cleandift import CleanDIFTTask
from gate_lightning.tasks.pretraining.controlnet import ControlNetTask
from gate_lightning.tasks.pretraining.lora import LoraTask
from gate_lightning.tasks.pretraining.unet import UNetTask

#: job → waits and copies of a training step, waits and copies of a batch of evaluation: at most
LIMITS: Mapping[str, tuple[int, int, int, int]] = {
    "segmentation": (5, 7, 8, 36),
    "segmentation, features known": (2, 2, 14, 15),
    "segmentation, edges as channels": (5, 5, 8, 9),
    "classification": (4, 7, 10, 12),
    "label-scarce": (6, 8, 4, 5),
    "correspondence": (5, 18, 14, 22),
    "unet": (11, 11, 20, 15),
    "controlnet": (12, 12, 21, 22),
    "lora": (11, 11, 14, 15),
    "autoencoder": (3, 3, 4, 2),
    "cleandift": (17, 14, 26, 20),
}
FEW = ("backbone.weights=random", "dataset.train=8", "dataset.val=8", "dataset.test=4")
STEPS = ("trainer.accelerator=gpu", "trainer.max_steps=3", "trainer.val_check_interval=3")
IMAGES = (*FEW, *STEPS, "dataset.batch_size=4", "cache.memory_gib=0", "callbacks=quiet", "logger=csv")
ONE_LAYER = "layers=[up-level2-upsampler-out]"
TWO_NOISES = "techniques=[{name: a, techniques: []}, {name: b, techniques: []}]"
#: settings of the jobs that are configured
SETTINGS = {
    "segmentation": (*IMAGES, "head.decode.channels=16", "dataset.size=32"),
    "segmentation, features known": (
        *(*IMAGES, "head.decode.channels=16", "dataset.size=32", "cache.memory_gib=1", "dataset.train=4"),
        *("techniques=none", "layers=gate_segmentation"),
    ),
    "segmentation, edges as channels": (*IMAGES, "edge_channels=true", "head=linear", "techniques=none", ONE_LAYER),
    "classification": (*IMAGES, "task=classification", "layers=dift"),
    "correspondence": (*IMAGES, "dataset=scene_pairs", "dataset.eval_batch_size=4", ONE_LAYER, TWO_NOISES),
}
SCARCE = (
    *("task=label_scarce", "backbone.weights=random", ONE_LAYER, "callbacks=quiet", "logger=none"),
    *(TWO_NOISES, "trainer.accelerator=gpu"),
    *("dataset.train=3", "dataset.val=1", "dataset.test=2"),
    *("task.data.members=2", "task.data.pixels_per_batch=16", "task.start_epoch=0", "task.patience=2"),
)
ADAM = partial(torch.optim.Adam, lr=1e-3)


def captioned(count: int = 2) -> CaptionedBatch:
    generator = torch.Generator().manual_seed(0)
    images, controls = (torch.rand(count, 3, 64, 64, generator=generator) for _ in range(2))
    latents = torch.randn(count, 4, 16, 16, generator=generator)
    return CaptionedBatch(("a red house",) * count, images * 2 - 1, latents, controls)


def labelled() -> LabelledBatch:
    return LabelledBatch(captioned().images, {"domain": torch.zeros(2, dtype=torch.long)})  # type: ignore[arg-type]


TASKS = {
    "unet": (lambda backbone: UNetTask(backbone, ADAM), captioned),
    "controlnet": (lambda backbone: ControlNetTask(backbone, ADAM), captioned),
    "lora": (lambda backbone: LoraTask(backbone, ADAM, rank=2), captioned),
    "autoencoder": (lambda backbone: AutoencoderTask(backbone, ADAM), labelled),
    "cleandift": (lambda backbone: CleanDIFTTask(backbone, ADAM, layers=("us2",)), captioned),
}
