"""What features cost, and what sharing work between branches saves.

    python benchmarks/features.py --architecture sd15 --size 512 --dtype bfloat16 --channels-last

Random weights, so no download. GATE's three branches without LoRA weights: one prompted, two under ControlNet. CPU
seconds are printed beside wall seconds: trust those where the machine is shared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from gate_lightning.backbones.loading import load_unet_backbone
from gate_lightning.backbones.unet import UNetBackbone
from gate_lightning.features.branch import Branch
from gate_lightning.features.extractor import FeatureExtractor
from gate_lightning.features.presets import resolve_layers
from gate_lightning.structures import Conditions
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.prompt import Prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="tiny")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layers", default="gate_segmentation")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    backbone = load_unet_backbone(
        "random", architecture=options.architecture, dtype=options.dtype, channels_last=options.channels_last
    ).to(options.device)
    images = torch.rand(options.batch, 3, options.size, options.size, device=options.device) * 2 - 1
    conditions = Conditions(tuple(f"s{index}" for index in range(options.batch)))
    layers = resolve_layers(backbone, options.layers)
    branches = [
        Branch("prompt", 50, layers, (Prompt("a fine photo"),), noise_seed=0),
        Branch("control", 50, layers, (ControlNet(),), noise_seed=1),
        Branch("control 2", 50, layers, (ControlNet(), Prompt("a fine photo")), noise_seed=2),
    ]
    together = FeatureExtractor(backbone, branches)
    shared = FeatureExtractor(
        backbone, [branches[1], Branch("c", 50, layers, (ControlNet(scale=0.5),))], noise="shared"
    )
    alone = [FeatureExtractor(backbone, [branch]) for branch in branches]
    plain = FeatureExtractor(backbone, [Branch("plain", 50, layers)])
    full = FeatureExtractor(backbone, [Branch("plain", 50, ("unet-out",))])
    latents = backbone.encode_moments(images)
    cases: dict[str, Callable[[], Any]] = {
        "encode": lambda: encode(backbone, images),
        "denoiser, whole": lambda: full.read(*latents, images, conditions),
        "denoiser, up to the last layer": lambda: plain.read(*latents, images, conditions),
        "one plain branch": lambda: plain(images, conditions),
        "three branches, one after the other": lambda: [extractor(images, conditions) for extractor in alone],
        "three branches, together": lambda: together(images, conditions),
        "two ControlNet branches, one noise": lambda: shared(images, conditions),
    }
    print(f"{options}\n{'per picture':40}{'cpu s':>10}{'wall s':>10}")
    for name, case in cases.items():
        cpu, wall = measure(case, options.repeats, options.device)
        print(f"{name:40}{cpu / options.batch:10.4f}{wall / options.batch:10.4f}")


@torch.no_grad()
def encode(backbone: UNetBackbone, images: torch.Tensor) -> Any:
    return backbone.encode_moments(images)


def measure(case: Callable[[], Any], repeats: int, device: str) -> tuple[float, float]:
    """Median (CPU, wall) seconds after one warm-up."""
    times = []
    for _ in range(repeats + 1):
        cpu, wall = time.process_time(), time.perf_counter()
        case()
        if device != "cpu":
            torch.accelerator.synchronize()
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpus, walls = zip(*times[1:], strict=True)
    return statistics.median(cpus), statistics.median(walls)


if __name__ == "__main__":
    main()
