"""What a split of GATE's Horse-21 protocol costs: memory, disk, time, on features of the real sizes.

    python benchmarks/label_scarce.py --threads 2                       # 30 + 30 images, 500 steps, evaluation
    python benchmarks/label_scarce.py --amalgamation released_pixels
    python benchmarks/label_scarce.py --tiny                            # the same in small, to see that it runs

Random features and masks, so no weights and no data: four steered SD 1.5 branches at 512 pixels (legacy layers and the
averaged attention feature, 3674 channels each) and ADM's five blocks at 256 pixels (2816 channels). They go the way of
real ones: extractor → cache on disk (half precision, native resolution) → store in memory → sampled pixels; 10 members
of the small classifier. What the backbones take is not in the figures (benchmarks/features.py measures that).

"released" is computed, not measured: all maps upsampled to the masks' size in float32, as the released code keeps them.
The protocol's time is a lower bound: the stopping rule lets every member run four whole epochs and 52 batches at least.
"""

from __future__ import annotations

import argparse
import logging
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import psutil
import torch
from torch import Tensor, nn

from gate_lightning.data.card import ClassLabels, DatasetCard
from gate_lightning.data.label_scarce.datamodule import LabelScarceDataModule
from gate_lightning.data.samples import SampleSource, SegmentationSample
from gate_lightning.data.segmentation.base import SegmentationDataModule
from gate_lightning.features.caches.disk import DiskCache
from gate_lightning.pixel_classifiers.amalgamation import ConcatPixels, PixelAmalgamation
from gate_lightning.pixel_classifiers.ensemble import PixelEnsemble
from gate_lightning.pixel_classifiers.released import ReleasedPixels
from gate_lightning.pixel_classifiers.stopping import StoppingRule
from gate_lightning.pixel_classifiers.store import group_widths, map_shapes
from gate_lightning.pixel_classifiers.weighted import WeightedPixels
from gate_lightning.structures import Conditions, FeatureInfo, Features
from gate_lightning.tasks.label_scarce.task import LabelScarceTask

GIB = 2**30
CLASSES = 21
SPLITS = 5
#: channels and stride in pixels of a 512-pixel image
SD15 = {
    "up-level0-upsampler-out": (1280, 32),
    "up-level1-upsampler-out": (1280, 16),
    "up-level2-upsampler-out": (640, 8),
    "up-level3-repeat2-vit-out": (320, 8),
    "attn-up-cross": (154, 8),
}
ADM = {
    "output_blocks.5": (1024, 16),
    "output_blocks.6": (512, 16),
    "output_blocks.7": (512, 16),
    "output_blocks.8": (512, 8),
    "output_blocks.12": (256, 4),
}
SD_BRANCHES = ("prompt", "canny", "lora_a", "lora_b")
AMALGAMATIONS: dict[str, type[PixelAmalgamation]] = {
    "weighted_pixels": WeightedPixels,
    "released_pixels": ReleasedPixels,
    "concat_pixels": ConcatPixels,
}


class RandomFeatures(nn.Module):
    """Stands for the backbones: maps that are functions of the image's name."""

    def __init__(self, shrink: int) -> None:
        super().__init__()
        sd = {layer: FeatureInfo(count // shrink, stride) for layer, (count, stride) in SD15.items()}
        adm = {layer: FeatureInfo(count // shrink, stride) for layer, (count, stride) in ADM.items()}
        self.feature_info = {**dict.fromkeys(SD_BRANCHES, sd), "ddpm": adm}
        self.concatenated = ()
        self.backbone = SimpleNamespace(size_multiple=1)
        self.description: dict[str, Any] = {"kind": "random", "shrink": shrink}

    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        features: Features = {branch: {} for branch in self.feature_info}
        names = conditions.sample_ids
        for branch, layers in self.feature_info.items():
            for layer, one in layers.items():
                shape = (one.channels, *(-(-side // one.stride) for side in images.shape[-2:]))
                generators = [torch.Generator().manual_seed(hash_of(name, branch, layer)) for name in names]
                features[branch][layer] = torch.stack([torch.randn(shape, generator=one) for one in generators])
        return features


class Patches(SampleSource):
    """Images of noise with masks of 21 classes in patches."""

    def __init__(self, split: str, count: int, size: int) -> None:
        self.split, self.count, self.size = split, count, size

    def __len__(self) -> int:
        return self.count

    def sample_id(self, index: int) -> str:
        return f"{self.split}/{index:04d}"

    def load(self, index: int) -> SegmentationSample:
        rng = np.random.default_rng(hash_of(self.split, index))
        image = rng.integers(0, 256, (self.size, self.size, 3), dtype=np.uint8)
        coarse = rng.integers(0, CLASSES, (8, 8), dtype=np.uint8)
        side = self.size // 8
        mask = coarse.repeat(side, axis=0).repeat(side, axis=1)
        return SegmentationSample(self.sample_id(index), image, mask=mask)

    def sizes(self, index: int) -> tuple[tuple[int, int], tuple[int, int]]:
        return (self.size, self.size), (self.size, self.size)


class PatchesDataModule(SegmentationDataModule):
    """As many images as Horse-21 has."""

    def __init__(self, train: int, test: int, size: int) -> None:
        super().__init__()
        self.lengths, self.size = {"train": train, "test": test, "val": test}, size
        names = tuple(f"class {number}" for number in range(CLASSES))
        self.card = DatasetCard("patches")
        self.labels = ClassLabels(names, tuple((10 * number,) * 3 for number in range(CLASSES)))

    def make_source(self, split: str) -> Patches:
        return Patches(split, self.lengths[split], self.size)


class Clock(lightning.Callback):
    """Seconds and peak memory of the parts of a run."""

    def __init__(self) -> None:
        self.marks: dict[str, tuple[float, float]] = {}
        self.steps = 0

    def mark(self, name: str) -> None:
        self.marks[name] = (time.perf_counter(), peak())

    def on_train_start(self, *args: Any) -> None:
        self.mark("filled")

    def on_train_batch_end(self, *args: Any) -> None:
        self.steps += 1

    def on_train_end(self, *args: Any) -> None:
        self.mark("trained")

    def on_test_start(self, *args: Any) -> None:
        self.mark("test")

    def on_test_end(self, *args: Any) -> None:
        self.mark("tested")


def hash_of(*key: object) -> int:
    """31 bits that are a function of the key."""
    import zlib

    return zlib.crc32(repr(key).encode()) & 0x7FFFFFFF


def peak() -> float:
    """Largest resident memory of this process so far, bytes."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(found if sys.platform == "darwin" else found * 1024)


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    size, image_size = (32, 64) if arguments.tiny else (256, 512)
    images = RandomFeatures(shrink=64 if arguments.tiny else 1)
    extractor = DiskCache(images, folder / "features")  # type: ignore[arg-type]
    inner = PatchesDataModule(arguments.train, arguments.test, size)
    datamodule = LabelScarceDataModule(inner, size=size, image_size=image_size, members=arguments.members, split_seed=0)
    kind = AMALGAMATIONS[arguments.amalgamation]
    if kind.separate_branches:
        backbone_groups = {branch: (branch,) for branch in images.feature_info}
    else:
        backbone_groups = {"sd": SD_BRANCHES, "adm": ("ddpm",)}
    amalgamation = kind(group_widths(images.feature_info, backbone_groups), arguments.members)
    task = LabelScarceTask(
        extractor,
        amalgamation,
        PixelEnsemble(amalgamation.out_channels, CLASSES, arguments.members),
        backbone_groups,
        partial(torch.optim.Adam, lr=1e-3, fused=True),
        None,
        inner.labels,
        max_steps_per_member=arguments.steps,
    )
    clock = Clock()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=100,
        limit_val_batches=0,
        default_root_dir=folder,
        enable_model_summary=False,
        callbacks=[clock],
        **quiet,  # type: ignore[arg-type]
    )
    clock.mark("start")
    for batch in (*datamodule.images("train"), *datamodule.images("test")):
        extractor(batch.images, batch.conditions)
    clock.mark("extracted")
    trainer.fit(task, datamodule)
    trainer.test(task, datamodule, verbose=False)
    report(arguments, clock, folder, images, (size, image_size), task)


def report(
    arguments: argparse.Namespace,
    clock: Clock,
    folder: Path,
    images: RandomFeatures,
    sizes: tuple[int, int],
    task: LabelScarceTask,
) -> None:
    def seconds(first: str, last: str) -> float:
        return clock.marks[last][0] - clock.marks[first][0]

    size, image_size = sizes
    shapes = map_shapes(images.feature_info, (image_size, image_size))
    channels = sum(shape.channels for shape in shapes)
    values = sum(shape.values for shape in shapes)
    disk = sum(path.stat().st_size for path in (folder / "features").rglob("*") if path.is_file())
    weights = sum(parameter.numel() for parameter in task.trained_parameters())
    step, test = seconds("filled", "trained") / clock.steps, seconds("test", "tested")
    epoch = arguments.train * size * size // 64
    least = StoppingRule(members=1).fewest_steps(epoch)
    print(
        f"{arguments.amalgamation}, {arguments.members} members, {arguments.train} + {arguments.test} images of "
        f"{image_size}² with masks of {size}², {channels} channels, {weights / 1e6:.2f} M weights, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(
        f"released: {arguments.train * size * size * channels * 4 / 1e9:.1f} GB of RAM for the training features alone"
    )
    print(f"store:    {arguments.train * values * 2 / 1e9:.2f} GB in memory, {2 * values / 1e6:.1f} MB an image")
    print(f"disk:     {disk / 1e9:.2f} GB of features of {arguments.train + arguments.test} images")
    print(f"made:     {seconds('start', 'extracted'):.1f} s (random features drawn and written to disk)")
    print(f"filled:   {seconds('extracted', 'filled'):.1f} s (the labelled images' read, masks, orders of pixels)")
    print(f"step:     {1000 * step:.1f} ms, mean of {clock.steps}")
    print(f"test:     {test:.1f} s with reading, {test / arguments.test:.2f} s an image")
    for name, label in (("filled", "filling"), ("trained", "training"), ("tested", "evaluation")):
        print(f"peak RAM: {clock.marks[name][1] / GIB:.2f} GiB up to the end of: {label}")
    split = least * step + arguments.train * test / arguments.test  # as many images are measured as are labelled
    print(f"protocol: {least} steps a member at least; {SPLITS} splits {SPLITS * split / 3600:.2f} h")


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=30, help="labelled images")
    parser.add_argument("--test", type=int, default=30)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--amalgamation", choices=sorted(AMALGAMATIONS), default="weighted_pixels")
    parser.add_argument("--folder", type=Path, default=None, help="for the features; default: a temporary one")
    parser.add_argument("--tiny", action="store_true", help="a 64th of the channels, images of 64 pixels")
    arguments = parser.parse_args(given)
    torch.set_num_threads(arguments.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(f"memory at start: {psutil.Process().memory_info().rss / GIB:.2f} GiB")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        measure(arguments, Path(folder))


if __name__ == "__main__":
    main()
