"""The published segmentation runs and their baselines: each builds at its real size and takes a step in small."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gate_lightning.backbones.stable_diffusion import loading
from gate_lightning.backbones.stable_diffusion.architectures import build_random_backbone
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.structures import Conditions
from gate_lightning.techniques.prompt import Prompt
from tests.support.benchmarks import make_ade20k, make_cityscapes
from tests.support.experiments import FOLDER, configuration, parts_of, small, structure, write_loras
from tests.support.marks import thorough_but

DATA = ("ade20k", "cityscapes")
#: experiment without the data set → {stride at the size that SD 1.5 sees: channels}
PYRAMIDS: dict[str, dict[int, int]] = {
    "gate/{}": {8: 2 * 640, 16: 2 * 1280, 32: 2 * 1280},
    "gate/{}_released_config": {8: 3 * 640, 16: 3 * 1280, 32: 3 * 1280},
    "gate/{}_released_class": {8: 640, 16: 1280, 32: 1280},
    "gate/{}_practical": {8: 2 * 320, 16: 2 * 640, 32: 2 * 2560},
    "gate/{}_attention": {8: 2 * 640, 16: 2 * 1280, 32: 2 * 1280},  # and a channel per token and size
    "gate/{}_timesteps": {8: 640, 16: 1280, 32: 1280},
    "baseline/{}_legacy": {8: 640 + 320, 16: 1280, 32: 1280},
    "baseline/{}_practical": {8: 320, 16: 640, 32: 2560},
    "baseline/{}_vpd_frozen": {8: 320, 16: 640, 32: 1280, 64: 1280},  # and a channel per token, size and stage
    "baseline/{}_sdxl": {8: 1280, 16: 2560},
    "baseline/{}_sd15_sdxl": {8: 320 + 1280, 16: 640 + 2560, 32: 2560},
    "baseline/{}_linear": {8: 320, 16: 640, 32: 2560},
}
EXPERIMENTS = [
    name.format(data) for name in PYRAMIDS for data in DATA if (FOLDER / f"{name.format(data)}.yaml").exists()
]
#: pixels of the image to one that SD 1.5 sees, of the runs on squares of 1024
HALVED = [name for name in EXPERIMENTS if "cityscapes" in name and not name.endswith("_linear")]


def in_small(name: str) -> list[str]:
    """Images of one tile for a network that reads 64 pixels."""
    squares = ["dataset.scale=[256,128]", "dataset.crop_size=[128,128]", "task.inference.stride=64"]
    tiles = ["dataset.scale=[256,64]", "dataset.crop_size=64", "task.inference.stride=64"]
    widths = [] if name.endswith("_linear") else ["head.decode.channels=16"]
    steps = ["techniques[3].denoise_steps=1"] if name.endswith("_attention") else []
    return [
        *(squares if name in HALVED else tiles),
        *widths,
        *steps,
        "dataset.batch_size=2",
        "scheduler.warmup_steps=0",
    ]


def common(name: str, root: Path, loras: Path) -> list[str]:
    kind = "ade20k" if "ade20k" in name else "cityscapes"
    weights = [f"technique.lora.weights.{role}={loras / role}.safetensors" for role in ("moderate", "overtrained")]
    further = ["backbones.xl.weights=random"] if name.endswith("sd15_sdxl") else []
    own = ["backbone.weights=random", "dataset.num_workers=0", f"dataset.root={root / kind}", "trainer.accelerator=cpu"]
    return [*own, *weights, *further, "trainer.max_steps=1", "trainer.limit_val_batches=0"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_ade20k(folder / "ade20k")
    make_cityscapes(folder / "cityscapes")
    return folder


@pytest.fixture(scope="module")
def real_loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_loras(tmp_path_factory.mktemp("real") / "loras", structure("sd15"), every=40)


@pytest.fixture(scope="module")
def small_loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_loras(tmp_path_factory.mktemp("small") / "loras", small("sd15"))


def test_every_experiment_is_tried() -> None:
    written = {
        path.relative_to(FOLDER).with_suffix("").as_posix()
        for data in DATA
        for path in (*FOLDER.glob(f"gate/{data}*.yaml"), *FOLDER.glob(f"baseline/{data}*.yaml"))
    }
    assert written == set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.slow
def test_it_builds_at_its_real_size(
    name: str, root: Path, real_loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "build_random_backbone", lambda architecture, *args, **own: structure(architecture))
    monkeypatch.setattr("mmengine.model.BaseModule.init_weights", lambda head: None)  # it wants numbers
    components = parts_of(name, common(name, root, real_loras), tmp_path)
    shape = name.replace("ade20k", "{}").replace("cityscapes", "{}")
    expected = {stride * (2 if name in HALVED else 1): count for stride, count in PYRAMIDS[shape].items()}
    if name.endswith("vpd_frozen"):
        expected[min(expected)] += 2 * 2 * structure("sd15").text_length(", ".join(components.labels.classes))
    if name.endswith("attention"):
        expected[min(expected)] += 2 * structure("sd15").text_length(components.card.prompt_fine)
    assert components.extractor.feature_info
    with torch.device("meta"):
        amalgamation: Any = components.amalgamation
        head: Any = components.head
        assert components.auxiliary_head is None or components.auxiliary_head.in_channels == head.in_channels
    assert dict(zip(amalgamation.strides, amalgamation.out_channels, strict=True)) == expected
    assert head.num_classes == (150 if "ade20k" in name else 19)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.slow
def test_it_takes_a_step_on_small_networks(
    name: str, root: Path, small_loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "build_random_backbone", lambda architecture, *args, **own: small(architecture))
    components = parts_of(name, [*common(name, root, small_loras), *in_small(name)], tmp_path)
    before = [parameter.detach().clone() for parameter in components.task.parameters() if parameter.requires_grad]
    components.trainer.fit(components.task, components.datamodule)
    after = [parameter for parameter in components.task.parameters() if parameter.requires_grad]
    assert math.isfinite(components.trainer.callback_metrics["train/loss"])
    assert sum(not torch.equal(old, new) for old, new in zip(before, after, strict=True)) > len(after) / 2
    assert components.trainer.global_step == 1


@pytest.mark.parametrize("data", thorough_but(("ade20k",), DATA))
def test_the_released_runs_differ_as_their_headers_say(data: str) -> None:
    described = runs.resolve(configuration(f"gate/{data}"))
    for reading in ("released_config", "released_class"):
        released = runs.resolve(configuration(f"gate/{data}_{reading}"))
        found = {
            key: (described_value, released_value)
            for key, described_value, released_value in (
                ("timestep", described.timestep, released.timestep),
                ("posterior", described.posterior, released.posterior),
                ("order", described.head.auxiliary.order, released.head.auxiliary.order),
                ("norm", described.head.auxiliary.norm, released.head.auxiliary.norm),
                ("padding", described.dataset.pad_label, released.dataset.pad_label),
            )
        }
        assert found == {
            "timestep": (50, 51),
            "posterior": ("mean", "sample"),
            "order": ("fine_first", "coarse_first"),
            "norm": ("GN", "BN"),
            "padding": (None, 1),
        }
    schedule = described.scheduler.final_fraction * described.optimizer.lr
    assert schedule == pytest.approx(1e-4)


def test_vpd_reads_clean_latents_under_the_class_names(
    root: Path, small_loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "build_random_backbone", lambda architecture, *args, **own: small(architecture))
    name = "baseline/cityscapes_vpd_frozen"
    given = [*common(name, root, small_loras), *in_small(name), "backbone_scale=1.0", "techniques[0].layers=unet-in"]
    components, images = parts_of(name, given, tmp_path), torch.rand(1, 3, 64, 64) * 2 - 1
    features = components.extractor(images, Conditions(("a",)))["vpd"]["unet-in"]
    torch.testing.assert_close(features, small("sd15").encode_moments(images)[0])
    (branch,) = components.branches
    assert branch.timestep == 1
    assert branch.techniques[0] == Prompt(", ".join(components.labels.classes))


@pytest.mark.slow
def test_gate_takes_a_step_at_its_real_size(root: Path, tmp_path: Path) -> None:
    """Stable Diffusion 1.5 with random weights, 512 pixels: about 6 GB and some minutes on a CPU."""
    loras = write_loras(tmp_path / "loras", build_random_backbone("sd15"))
    given = [*common("gate/ade20k", root, loras), "dataset.batch_size=1"]
    components = parts_of("gate/ade20k", given, tmp_path / "run")
    components.trainer.fit(components.task, components.datamodule)
    assert math.isfinite(components.trainer.callback_metrics["train/loss"])
