"""What only a real GPU can show: numerics of its kernels, CUDA graphs, memory that runs out, waits of the host.

    python -m pytest -m gpu tests/gpu

Skipped where there is none. Limits are several times what one H200 was measured at (docs/gpu.md).
"""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.jobs.training import train
from gate_lightning.engine.parts.components import Components
from gate_lightning.errors import DataError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.structures import Features
from gate_lightning.techniques.base import Technique
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt
from gate_lightning.tools.extraction.extract import extract
from gate_lightning.utils.precision import allow_tf32
from tests.support.composition import composed
from tests.support.gpu_jobs import FEW, IMAGES, LIMITS, ONE_LAYER, SCARCE, SETTINGS, TASKS, TWO_NOISES
from tests.support.small_networks import (
    adapted_layers,
    build,
    conditions,
    random_images,
    random_pairs,
    save_diffusers,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

DEVICE = "cuda"
LAYERS = ("up-level0-upsampler-out", "up-level1-upsampler-out", "up-level2-upsampler-out")
CAPTIONS = ("a red house", "a photo of a circle")


@pytest.fixture(autouse=True)
def _as_it_comes() -> Iterator[None]:
    """Each test chooses TF32 and determinism for itself, and leaves no choice behind."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allow_tf32(False)
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    torch.use_deterministic_algorithms(False)
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backbone, list[Branch]]:
    """GATE's three branches: plain, and two LoRAs with ControlNet and caption."""
    backbone, folder = build("tiny"), tmp_path_factory.mktemp("loras")
    techniques: dict[str, tuple[Technique, ...]] = {"plain": (Prompt("a photo"),)}
    for index, name in enumerate(("moderate", "overtrained")):
        pairs = random_pairs(adapted_layers(backbone), rank=2 + index, seed=index)
        lora = LoRA(name, str(save_diffusers(folder / f"{name}.safetensors", pairs)))
        techniques[name] = (Prompt(), ControlNet(), lora)
    return backbone, [
        Branch(name, 50, LAYERS, own, noise_seed=index) for index, (name, own) in enumerate(techniques.items())
    ]


def batches(count: int, size: int = 64) -> list[tuple[Tensor, Any]]:
    return [
        (
            random_images(2, size, size, seed=index),
            conditions(2, captions=CAPTIONS[:: 1 - 2 * (index % 2)], windows=((index, 0),) * 2),
        )
        for index in range(count)
    ]


def read(extractor: FeatureExtractor, given: Sequence[tuple[Tensor, Any]], device: str) -> list[Features]:
    """Features of all batches; none is copied before the last is read, so that shared memory would show."""
    extractor.to(device)
    return [extractor(images.to(device), known.to(device)) for images, known in given]


def distance(actual: Sequence[Features], expected: Sequence[Features]) -> float:
    """Largest ‖a − e‖ / ‖e‖ of a map; infinite where values are not finite."""
    found = []
    for one, other in zip(actual, expected, strict=True):
        for branch, layers in other.items():
            for layer, value in layers.items():
                right = value.double().cpu()
                found.append(float((one[branch][layer].double().cpu() - right).norm() / right.norm()))
    assert found
    return max(math.inf if math.isnan(one) else one for one in found)


def report(line: str) -> None:
    """Adds a line to the file that ``GATE_COUNTS`` names."""
    if "GATE_COUNTS" in os.environ:
        with Path(os.environ["GATE_COUNTS"]).open("a") as file:
            file.write(line + "\n")


@pytest.mark.parametrize(
    ("dtype", "tf32", "limit"),
    [
        (torch.float32, False, 1e-5),
        (torch.float32, True, 1e-2),
        (torch.bfloat16, True, 0.1),
        (torch.float16, True, 0.02),
    ],
)
def test_features_are_those_of_the_cpu(
    steered: tuple[Backbone, list[Branch]], dtype: torch.dtype, tf32: bool, limit: float
) -> None:
    backbone, branches = steered
    expected = read(FeatureExtractor(copy.deepcopy(backbone), branches), batches(2), "cpu")
    allow_tf32(tf32)
    there = FeatureExtractor(copy.deepcopy(backbone).to(dtype), branches)
    found = distance(read(there, batches(2), DEVICE), expected)
    report(f"features {dtype} tf32={tf32}: {found:.2e} from the CPU's float32")
    assert found < limit


@pytest.mark.parametrize("member", ["sd2_like", "xl_like", "adm", "dinov2_tiny"])
def test_every_kind_of_backbone_computes_there(member: str) -> None:
    backbone = build(member)
    branches = [Branch("plain", 50, tuple(list(backbone.layers)[-3:]))]
    given = batches(1, max(64, backbone.minimum_size))
    expected = read(FeatureExtractor(copy.deepcopy(backbone), branches), given, "cpu")
    found = distance(read(FeatureExtractor(backbone, branches), given, DEVICE), expected)
    report(f"features of {member}: {found:.2e} from the CPU's")
    assert found < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_graphs_give_the_features_of_the_passes_they_recorded(
    steered: tuple[Backbone, list[Branch]], dtype: torch.dtype
) -> None:
    backbone, branches = copy.deepcopy(steered[0]).to(dtype), steered[1]
    given = [*batches(4), *batches(3, 96), *batches(2)]  # two sizes share a pool of memory
    eager = read(FeatureExtractor(backbone, branches), given, DEVICE)
    again = read(FeatureExtractor(backbone, branches), given, DEVICE)
    extractor = FeatureExtractor(backbone, branches, passes="replayed")
    found, noise = distance(read(extractor, given, DEVICE), eager), distance(again, eager)
    report(f"replayed {dtype}: {found:.2e} from eager, two eager runs {noise:.2e} apart")
    assert len(extractor.recordings._made) > 2
    assert found == noise == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_passes_give_the_same_features(steered: tuple[Backbone, list[Branch]], dtype: torch.dtype) -> None:
    backbone, branches = copy.deepcopy(steered[0]).to(dtype), steered[1]
    eager = read(FeatureExtractor(backbone, branches), batches(4), DEVICE)
    found = distance(read(FeatureExtractor(backbone, branches, passes="compiled"), batches(4), DEVICE), eager)
    report(f"compiled {dtype}: {found:.2e} from eager")
    assert found < (1e-5 if dtype == torch.float32 else 5e-2)


@pytest.mark.parametrize("passes", ["eager", "replayed"])
def test_a_pass_that_runs_out_of_memory_is_halved(steered: tuple[Backbone, list[Branch]], passes: Any) -> None:
    backbone, branches = copy.deepcopy(steered[0]).to(DEVICE), steered[1]
    given = [(random_images(16, 256, 256), conditions(16, captions=CAPTIONS * 8, windows=((0, 0),) * 16))] * 3
    extractor = FeatureExtractor(backbone, branches)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    resting = torch.cuda.memory_allocated()
    expected = [
        {name: {layer: value.cpu() for layer, value in one.items()} for name, one in found.items()}
        for found in read(extractor, given, DEVICE)
    ]
    needed = torch.cuda.max_memory_allocated() - resting
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 0.6 * needed) / total)
    small = FeatureExtractor(backbone, branches, passes=passes)
    try:
        found = read(small, given, DEVICE)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    limits = [limit.most for limit in (small.limit, small._encoding)]
    report(f"of {needed / 2**20:.0f} MiB 0.6 were given, {passes}: limits {limits}, {distance(found, expected):.1e}")
    assert any(limit is not None and limit < 48 for limit in limits)
    assert distance(found, expected) < 1e-5


def final_weights(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    return state


JOBS = {
    "the default job": (*IMAGES, "trainer=gpu"),
    "cross-entropy": (*IMAGES, "loss=cross_entropy", "head=linear", "techniques=none", ONE_LAYER),
    "OHEM": (*IMAGES, "loss=ohem", "head=linear", "techniques=none", ONE_LAYER),
}


@pytest.mark.parametrize("job", JOBS)
def test_two_exact_runs_end_equal(job: str, tmp_path: Path) -> None:
    given = [*JOBS[job], "features.passes=auto", "trainer.deterministic=true"]
    metrics = [train(composed(*given), given, tmp_path / name) for name in "ab"]
    assert metrics[0] == metrics[1]
    one, other = (final_weights(tmp_path / name) for name in "ab")
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_an_exact_run_that_was_stopped_ends_where_one_that_was_not(tmp_path: Path) -> None:
    given = [
        *IMAGES,
        "trainer=gpu",
        "trainer.max_steps=6",
        "trainer.val_check_interval=6",
        "trainer.deterministic=true",
    ]
    given += ["head.decode.channels=16", "callbacks.checkpoint.every_n_steps=2"]
    whole = train(composed(*given), given, tmp_path / "whole")

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                raise InterruptedError

    made = Components.trainer.func  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Components.trainer, "func", lambda parts: _with(made(parts), Stop()))
        with pytest.raises(InterruptedError):
            train(composed(*given), given, tmp_path / "stopped")
    resumed = [f"resume={tmp_path / 'stopped'}"]
    assert train(composed(*resumed), resumed, tmp_path / "stopped") == whole


def _with(trainer: Any, callback: Callback) -> Any:
    trainer.callbacks.append(callback)
    return trainer


@pytest.mark.parametrize("job", SETTINGS)
@pytest.mark.parametrize("passes", ["eager", "replayed"])
def test_a_step_of_training_waits_as_often_as_was_counted_without_a_gpu(job: str, passes: str, tmp_path: Path) -> None:
    settings = (*SETTINGS[job], "trainer.max_steps=6", "trainer.val_check_interval=6", f"features.passes={passes}")
    parts = Components(runs.resolve(composed(*settings)), str(tmp_path), training=True)
    data, trainer, waits = parts.connected_datamodule, parts.trainer, Waits()
    trainer.callbacks.append(waits)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        trainer.fit(parts.task, data)
    listed = "\n".join(f"  {count} × {place}" for place, count in waits.found.most_common())
    report(f"waits of {job}, {passes}: {waits.found.total()} in step 5\n{listed}")
    assert waits.found.total() <= LIMITS[job][0], listed


class Waits(Callback):
    """Waits that CUDA's own check finds in the fifth step, by the lines of the package they come from."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self.steps = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.steps += 1
        if self.steps == 5:
            warnings.showwarning = self._note
            torch.cuda.set_sync_debug_mode("warn")

    def on_train_batch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    def _note(self, message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        if "synchroniz" in str(message):
            self.found[f"{filename}:{lineno}"] += 1


@pytest.mark.parametrize("job", ["label-scarce", *(f"eval {one}" for one in ("geometric", "video", "content_shift"))])
def test_every_other_task_ends(job: str, tmp_path: Path) -> None:
    if job == "label-scarce":
        assert "test/mIoU" in train(composed(*SCARCE), SCARCE, tmp_path)
        return
    own = {
        "eval geometric": ("dataset=scene_homographies", "dataset.scenes=1", "dataset.views=1", "dataset.pixels=64"),
        "eval video": ("dataset=scene_videos", "dataset.test=1", "dataset.frames=3", "dataset.size=64"),
        "eval content_shift": ("dataset.val=4", "dataset.train=4"),
    }[job]
    given = [f"task={job.split()[1]}", *own, "backbone.weights=random", ONE_LAYER, "techniques=none", "logger=none"]
    assert evaluate(composed(*given, "trainer.accelerator=gpu", name="eval"), given, tmp_path / "run")


@pytest.mark.parametrize("job", TASKS)
def test_the_parts_of_a_diffusion_model_train_in_mixed_precision(job: str, tmp_path: Path) -> None:
    from lightning import Trainer
    from torch.utils.data import DataLoader

    make, batch = TASKS[job]
    settings: dict[str, Any] = {"accelerator": "gpu", "max_steps": 3, "logger": False, "val_check_interval": 3}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(**settings, precision="bf16-mixed", num_sanity_val_steps=0, default_root_dir=tmp_path)
    loaders = [DataLoader([batch() for _ in range(number)], batch_size=None) for number in (3, 2)]
    task = make(build("tiny"))
    before = {name: value.clone() for name, value in task.named_parameters() if value.requires_grad}
    trainer.fit(task, *loaders)
    assert any(not torch.equal(value, dict(task.named_parameters())[name].cpu()) for name, value in before.items())


@pytest.mark.parametrize("place", ["card", "host"])
def test_a_cache_gives_the_features_that_were_read(place: str, tmp_path: Path) -> None:
    own = ("trainer=gpu", "callbacks=quiet", "logger=csv", "dataset.batch_size=4", "dataset.num_workers=2")
    given = [*FEW, *own, "trainer.max_steps=6", "trainer.val_check_interval=6", "trainer.deterministic=true"]
    given += [TWO_NOISES, ONE_LAYER, "head=linear", f"cache.place={place}"]
    cached, plain = (
        train(composed(*given, f"cache.memory_gib={room}"), [*given, f"cache.memory_gib={room}"], tmp_path / str(room))
        for room in (1, 0)
    )
    assert cached == plain


def test_features_of_files_are_read_there_and_the_weights_brought_back(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "image.png")
    extractor = FeatureExtractor(build("tiny"), [Branch("plain", 50, LAYERS)])
    extract(extractor, tmp_path / "image.png", tmp_path / "features")
    assert extractor.backbone.device.type == "cpu"
    with pytest.raises(DataError, match=r"the images are on cuda:0, the weights of .* on cpu"):
        extractor(random_images(1).to(DEVICE), conditions(1).to(DEVICE))
