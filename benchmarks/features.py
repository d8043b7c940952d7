"""What GATE's three branches cost, against a loop that works as the released code does (naive_loop.py).

    python benchmarks/features.py --architecture sd15 --threads 2

Random weights, so no download. Branches: plain; LoRA A + Canny; LoRA B + Canny; each reads the layers of GATE's
segmentation at timestep 50. In float32 the loop and the engine take turns in one process, so that a busy machine slows
both; bfloat16 (with channels_last) follows and is compared to the same float32 loop. "one noise" is the engine's
noise=shared. A setting whose features are not the loop's stops the run. The last lines are the ratios of the medians.

Operations are two per multiplication and addition of the layers as they are defined, attention included. The floor is
the time these would take at the rate of a 2048³ matrix product of that type in the same process; "of floor" above 100 %
is possible in float32 on a CPU, where convolutions take fewer operations than defined (--plain-ops switches that off).
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from naive_loop import NaiveBranch, NaiveLoop
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from gate_lightning.backbones.stable_diffusion.architectures import build_random_backbone
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.features.branch import Branch
from gate_lightning.features.config.layer_presets import resolve_layers
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.reading.noise import batch_noise
from gate_lightning.features.reading.recorded import PassKind
from gate_lightning.structures import Conditions, Features
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt

TIMESTEP, PROMPT = 50, "a photo of a house and a tree"
RANKS = (16, 32)
SIZES = {"tiny": 64, "sd15": 512, "sd21": 768}
#: worst relative L2 distance of a feature map from the loop's
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1}
#: the same of float32 on CUDA, where convolutions and products may round factors to TF32 (10 bits after the point)
CUDA_TOLERANCE = 1e-2


@dataclass
class Setting:
    """One way to get the features, and what it took per call."""

    name: str
    run: Callable[[], tuple[float, float]]  # CPU and wall seconds of one call
    operations: int = 0
    error: float = 0.0
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    peak: float = 0.0
    floor: float = 0.0

    def once(self) -> None:
        cpu, wall = self.run()
        self.cpu.append(cpu)
        self.wall.append(wall)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        settings = bench.compare(torch.float32)
        if not options.fp32_only:
            settings += bench.compare(torch.bfloat16)
    report(settings, options, bench)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="tiny", choices=SIZES)
    parser.add_argument("--size", type=int, help="side of the images (default: the architecture's)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cached-latents", action="store_true", help="the engine is given the moments of the latents")
    parser.add_argument("--passes", default="auto", choices=get_args(PassKind), help="how the engine runs passes")
    parser.add_argument("--fp32-only", action="store_true")
    parser.add_argument("--plain-ops", action="store_true", help="every operation as the networks state it")
    options = parser.parse_args(arguments)
    options.size = options.size or SIZES[options.architecture]
    return options


class Bench:
    """The weights, the loop and the engine around them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.backbone = build_random_backbone(options.architecture).to(options.device)
        self.loras = [write_lora(folder / f"{rank}.safetensors", self.backbone, rank) for rank in RANKS]
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(options.batch, 3, 16, 16, generator=generator) * 2 - 1
        size = (options.size, options.size)
        self.images = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(-1, 1).to(options.device)
        self.conditions = Conditions(tuple(f"s{index}" for index in range(options.batch)))
        self.layers = resolve_layers(self.backbone, "gate_segmentation")
        adapted = [
            (LoRA(name, str(path)), ControlNet(), Prompt(PROMPT)) for name, path in zip("ab", self.loras, strict=True)
        ]
        self.branches = [
            Branch(name, TIMESTEP, self.layers, techniques, noise_seed=index)
            for index, (name, techniques) in enumerate(zip("pab", [(Prompt(PROMPT),), *adapted], strict=True))
        ]
        self.naive_branches = [NaiveBranch("p", PROMPT)] + [
            NaiveBranch(name, PROMPT, "canny", path) for name, path in zip("ab", self.loras, strict=True)
        ]
        self.loop = NaiveLoop(self.backbone, self.layers, TIMESTEP)
        self.engines = {
            kind: FeatureExtractor(
                self.backbone, self.branches, noise=kind, fast=not options.plain_ops, passes=options.passes
            )
            for kind in ("per_branch", "shared")
        }
        self.expected: dict[str, Features] = {}
        self.operations: dict[str, int] = {}
        self._moments: tuple[Tensor, Tensor] | None = None
        self.weight_bytes = storage_bytes([*self.backbone.parameters()])  # adapters are buffers, and not among them
        controls = storage_bytes([*self.backbone.controlnets.parameters()])
        self.pipelines_bytes = 3 * (self.weight_bytes - controls) + 2 * controls
        self.live_bytes = 0

    def compare(self, dtype: torch.dtype) -> list[Setting]:
        """Settings of one dtype, measured in turns; float32 comes first and includes the loop."""
        short = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
        self.backbone.to(dtype)
        if dtype == torch.bfloat16:
            self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        settings = [
            Setting(short + suffix, partial(self.timed, partial(self.engine, kind)))
            for kind, suffix in (("per_branch", ""), ("shared", " one noise"))
        ]
        for setting, kind in zip(settings, self.engines, strict=True):
            setting.error = self.check(kind, dtype)
            setting.operations = self.operations[kind]
        if dtype == torch.float32:
            settings.insert(0, Setting("loop", lambda: self.naive("per_branch")[:2], self.operations["loop"]))
        # a small product in a trial at a small size: without bfloat16 units a large one takes half a minute
        rate = matmul_rate(dtype, self.options.device, side=2048 if self.options.size >= 256 else 128)
        for _ in range(self.options.repeats):
            for setting in settings:
                with Peak(self.options.device) as peak:
                    setting.once()
                setting.peak = max(setting.peak, peak.bytes)
        for setting in settings:
            setting.floor = setting.operations / rate
        if dtype == torch.float32:
            self.live_bytes = live_tensor_bytes()
        return settings

    def check(self, kind: str, dtype: torch.dtype) -> float:
        """Worst relative distance of the engine's features from the float32 loop's under the same noises."""
        if kind not in self.expected:
            self.operations["loop"], (_, _, self.expected[kind]) = counted(partial(self.naive, kind))
            fast, self.engines[kind].fast = self.engines[kind].fast, False  # the operations of the layers as defined
            self.operations[kind], _ = counted(partial(self.engine, kind))
            self.engines[kind].fast = fast
        actual = self.engine(kind)
        error = max(
            float((actual[branch][layer].double() - value.double()).norm() / value.double().norm())
            for branch, layers in self.expected[kind].items()
            for layer, value in layers.items()
        )
        on_cuda = torch.device(self.options.device).type == "cuda"
        limit = CUDA_TOLERANCE if on_cuda and dtype == torch.float32 else TOLERANCE[dtype]
        if not error <= limit:
            sys.exit(f"{dtype}, noise={kind}: features differ from the loop's by {error:.1e}, more than {limit}")
        return error

    def engine(self, kind: str) -> Features:
        if self.options.cached_latents:
            if self._moments is None:
                with torch.no_grad():
                    self._moments = self.backbone.encode_moments(self.images)
            return self.engines[kind].read(*self._moments, self.images, self.conditions)
        features: Features = self.engines[kind](self.images, self.conditions)
        return features

    def naive(self, kind: str) -> tuple[float, float, Features]:
        """CPU and wall seconds and features of the loop; merging LoRAs is not part of the time."""
        cpu = wall = 0.0
        features: Features = {}
        for index, branch in enumerate(self.naive_branches):
            noise_seed = index if kind == "per_branch" else None
            side = self.options.size // self.backbone.latent_stride
            shape = (self.backbone.latent_channels, side, side)
            noise = batch_noise(shape, self.conditions, 0, 0, noise_seed).to(self.images)
            with self.loop.merged(branch.lora):
                taken = self.timed(partial(self._keep, features, branch, noise))
            cpu, wall = cpu + taken[0], wall + taken[1]
        return cpu, wall, features

    def _keep(self, features: Features, branch: NaiveBranch, noise: Tensor) -> None:
        features[branch.name] = self.loop.read(branch, self.images, noise)

    def timed(self, call: Callable[[], Any]) -> tuple[float, float]:
        synchronise(self.options.device)
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        synchronise(self.options.device)
        return time.process_time() - cpu, time.perf_counter() - wall


def write_lora(path: Path, backbone: UNetBackbone, rank: int) -> Path:
    """A random LoRA on all attention projections of the U-Net, in diffusers format."""
    generator = torch.Generator().manual_seed(rank)
    state = {}
    for name, module in backbone.unet.named_modules():
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            out, into = module.weight.shape
            state[f"unet.{name}.lora_A.weight"] = torch.randn(rank, into, generator=generator) / into**0.5
            state[f"unet.{name}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.1 / rank**0.5
    save_file(state, path)
    return path


def counted(call: Callable[[], Any]) -> tuple[int, Any]:
    """Operations of a call, the fused attention of CPUs included."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attention_flops(query: Any, key: Any, value: Any, *others: Any, out_shape: Any = None, **named: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    with FlopCounterMode(display=False, custom_mapping={attention: attention_flops}) as counter:
        result = call()
    return counter.get_total_flops(), result


def matmul_rate(dtype: torch.dtype, device: str, side: int = 2048, tries: int = 8) -> float:
    """Best operations per second of a matrix product."""
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(tries):
        synchronise(device)
        start = time.perf_counter()
        torch.mm(one, other)
        synchronise(device)
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


class Peak:
    """Most memory in use while open, in bytes: of the process, or of the accelerator."""

    def __init__(self, device: str) -> None:
        self.device, self.bytes = device, 0.0

    def __enter__(self) -> Peak:
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts anew
        return self

    def __exit__(self, *error: object) -> None:
        if self.device != "cpu":
            self.bytes = torch.cuda.max_memory_allocated()
        else:
            lines = Path("/proc/self/status").read_text().splitlines()
            self.bytes = 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def storage_bytes(tensors: Sequence[Tensor]) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def live_tensor_bytes() -> int:
    """Bytes of all tensors alive in the process, each storage once."""
    return storage_bytes(
        [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor) and thing.layout == torch.strided]
    )


def report(settings: Sequence[Setting], options: argparse.Namespace, bench: Bench) -> None:
    print(vars(options))
    head = ("images/s", "wall s", "cpu s", "peak GB", "10^9 ops", "of floor", "error")
    print(f"{'setting':18}" + "".join(f"{title:>12}" for title in head))
    for setting in settings:
        wall, cpu = statistics.median(setting.wall), statistics.median(setting.cpu)
        print(
            f"{setting.name:18}{options.batch / wall:12.4f}{wall:12.3f}{cpu:12.3f}{setting.peak / 1e9:12.2f}"
            f"{setting.operations / options.batch / 1e9:12.1f}{setting.floor / wall:12.0%}{setting.error:12.1e}"
        )
    base, live = bench.weight_bytes / 1e9, bench.live_bytes / 1e9
    print(
        f"base weights in float32 {base:.2f} GB; all tensors alive after the float32 runs {live:.2f} GB: "
        f"{live / base:.2f} copies (three pipelines would hold {bench.pipelines_bytes / 1e9:.2f} GB)"
    )
    loop, *engines = settings
    for kind in ("cpu", "best wall"):
        values = {s.name: min(s.wall) if kind == "best wall" else statistics.median(s.cpu) for s in settings}
        print(f"ratios by {kind}: " + ", ".join(f"{s.name} {values['loop'] / values[s.name]:.2f}x" for s in engines))
    for setting in engines:
        print(f"{setting.name} {statistics.median(loop.wall) / statistics.median(setting.wall):.1f}x")


if __name__ == "__main__":
    main()
