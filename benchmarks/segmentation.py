"""Where the time of a training step goes: data, autoencoder, text, ControlNet, U-Net, and what is trained.

    python benchmarks/segmentation.py --threads 2 experiment=gate/ade20k backbone.weights=random
    python benchmarks/segmentation.py --threads 2 --validate dataset=ade20k techniques=all \\
        backbone=sd15 backbone.weights=random

Takes whatever train.py takes. Where a benchmark's data set has no `dataset.root=`, images of its size are made up in
its layout; where the recipe's LoRAs have no files, random ones are written. With --folder both stay there, and the
command is printed with which train.py does the same.

Seconds are means over --steps optimiser steps after --warmup others; replayed passes (features.passes) have no parts
and are among "other features", and begin with the eleventh step. "other features" are noise, hooks, resizing and
caches; "head" is all that is trained: amalgamation, heads, losses, their gradients, the optimiser.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from features import write_lora
from lightning import Callback

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.data.segmentation.cityscapes import LABEL_IDS
from gate_lightning.engine.command.configuration import composed
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.parts.components import Components

#: method of a backbone → what it is called in the table
PARTS = {
    "encode_moments": "autoencoder",
    "encode_text": "text",
    "control_residuals": "ControlNet",
    "denoise": "U-Net",
}
RANK = 16
#: nothing is written while the clock runs
QUIET = ("callbacks=quiet", "callbacks.checkpoint=null", "callbacks.interrupt=null")
#: made-up images: (height, width) as in the data set's middle
SIZES = {"ade20k": (512, 683), "cityscapes": (1024, 2048)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="as for train.py: group=name key=value")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--validate", action="store_true", help="one batch of validation at the end")
    parser.add_argument("--folder", type=Path, help="keep made-up images and LoRAs here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        measure(options, options.folder or Path(temporary))


def measure(options: argparse.Namespace, folder: Path) -> None:
    given = [*options.overrides, *made_up_data(options.overrides, folder)]
    steps = options.warmup + options.steps
    run = [f"trainer.max_steps={steps}", "trainer.val_check_interval=1000000", "logger=none", *QUIET]
    parts = Components(
        runs.resolve(composed(*given, *run, "+trainer.limit_val_batches=1")), str(folder / "run"), training=True
    )
    given += made_up_loras(parts, folder)
    if parts.config.get("scheduler") is not None:
        parts.config.scheduler.warmup_steps = 0  # longer than these few steps
    if options.folder is not None:
        print("python train.py " + " ".join(given))
    clock = Clock(parts.config.trainer.accelerator)
    for backbone in parts.backbones.values():
        clock.listen(backbone)
    watch = Watch(clock, options.warmup, parts.extractor)
    trainer = parts.trainer
    trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    trainer.fit(parts.task, parts.datamodule)
    began = clock.now()
    if options.validate:
        trainer.validate(parts.task, parts.datamodule, verbose=False)
    report(options, parts, watch, clock.now() - began)


def made_up_data(overrides: Sequence[str], folder: Path) -> list[str]:
    """Images of the data set's size where the overrides name no folder of them."""
    if any(override.startswith("dataset.root=") for override in overrides):
        return []
    target = str(composed(*overrides).dataset._target_)
    kind = next((name for name in SIZES if f".{name}." in target), None)
    if kind is None:
        return []
    rng, (height, width) = np.random.default_rng(0), SIZES[kind]
    root = folder / kind
    for split, count in (("train", 8), ("val", 2)):
        for number in range(count):
            low = rng.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8)
            values = rng.integers(0, 151, low.shape[:2]) if kind == "ade20k" else rng.choice(LABEL_IDS, low.shape[:2])
            image, mask = layout(root, kind, split, number)
            write(image, cv2.resize(low, (width, height), interpolation=cv2.INTER_CUBIC))
            write(mask, cv2.resize(values.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST))
    return [f"dataset.root={root}"]


def layout(root: Path, kind: str, split: str, number: int) -> tuple[Path, Path]:
    """Paths of an image and its mask."""
    if kind == "ade20k":
        folder, name = ("training" if split == "train" else "validation"), f"ADE_{split}_{number:08d}"
        return root / f"images/{folder}/{name}.jpg", root / f"annotations/{folder}/{name}.png"
    name = f"{split}/town/town_{number:06d}_000019"
    return root / f"leftImg8bit/{name}_leftImg8bit.png", root / f"gtFine/{name}_gtFine_labelIds.png"


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), array)


def made_up_loras(parts: Components, folder: Path) -> list[str]:
    """Random LoRAs for the roles that have none, told to the configuration and returned as overrides."""
    written = []
    weights = parts.config.technique.lora.weights
    for role in [name for name, path in weights.items() if path is None]:
        if isinstance(parts.backbone, UNetBackbone):
            folder.mkdir(parents=True, exist_ok=True)
            weights[role] = str(write_lora(folder / f"{role}.safetensors", parts.backbone, RANK))
            written.append(f"technique.lora.weights.{role}={weights[role]}")
    return written


class Clock:
    """Seconds spent in the parts of backbones."""

    def __init__(self, accelerator: str) -> None:
        self.waits = accelerator != "cpu" and torch.cuda.is_available()
        self.seconds: Counter[str] = Counter()

    def now(self) -> float:
        if self.waits:
            torch.cuda.synchronize()
        return time.perf_counter()

    def listen(self, backbone: Backbone) -> None:
        for method, name in PARTS.items():
            setattr(backbone, method, self.timed(getattr(backbone, method), name))

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **own: Any) -> Any:
            began = self.now()
            try:  # a pass of the denoiser ends behind the last layer that is read, by an exception
                return function(*arguments, **own)
            finally:
                self.seconds[name] += self.now() - began

        return call


class Watch(Callback):
    """Splits the time of the steps after the warm-up."""

    def __init__(self, clock: Clock, warmup: int, extractor: torch.nn.Module) -> None:
        self.clock, self.warmup = clock, warmup
        self.steps, self.features, self.whole, self.data = 0, 0.0, 0.0, 0.0
        self.began = self.ended = self.entered = 0.0
        extractor.register_forward_pre_hook(self.enter)
        extractor.register_forward_hook(self.leave)

    def enter(self, *_: Any) -> None:
        self.entered = self.clock.now()

    def leave(self, *_: Any) -> None:
        self.features += self.clock.now() - self.entered

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.began = self.clock.now()
        if trainer.global_step == self.warmup:
            self.clock.seconds.clear()
            self.steps, self.features, self.whole, self.data = 0, 0.0, 0.0, 0.0
        self.data += self.began - self.ended if self.ended else 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ended = self.clock.now()
        self.whole += self.ended - self.began
        self.steps += 1
        if trainer.global_step == trainer.max_steps:
            self.rows = self.split()

    def split(self) -> dict[str, float]:
        """Part → seconds per step."""
        inside = {name: self.clock.seconds[name] for name in PARTS.values()}
        rows = {"data": self.data, **inside, "other features": self.features - sum(inside.values())}
        rows |= {"head": self.whole - self.features, "whole step": self.data + self.whole}
        return {name: value / self.steps for name, value in rows.items()}


def report(options: argparse.Namespace, parts: Components, watch: Watch, validation: float) -> None:
    dataset = parts.config.dataset
    print(f"{' '.join(options.overrides)}; {options.threads} threads, {options.steps} steps")
    print(f"batch {dataset.batch_size}, crop {dataset.get('crop_size', dataset.get('size'))}")
    print(f"{'part':16}{'s per step':>12}{'share':>8}")
    for name, seconds in watch.rows.items():
        print(f"{name:16}{seconds:12.3f}{seconds / watch.rows['whole step']:8.1%}")
    trained = sum(parameter.numel() for parameter in parts.task.parameters() if parameter.requires_grad)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{trained / 1e6:.1f} million trained parameters, peak memory {peak / 1e9:.2f} GB")
    if torch.cuda.is_available():
        print(f"peak memory on the GPU {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")
    if options.validate:
        print(f"one batch of validation {validation:.1f} s")


if __name__ == "__main__":
    main()
