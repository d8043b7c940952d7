"""Against numbers of the released GATE / generic-diffusion-feature and DIFT code, where those are at hand.

Every file holds the noise it was made with and the timestep its denoiser was really told (51 where 50 was asked for:
the released code is one off on Stable Diffusion 1.5, this package is not).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gate_lightning.backbones.stable_diffusion.loading import load_unet_backbone
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.structures import Conditions
from gate_lightning.techniques.base import Technique
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.denoise import Denoise
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt
from tests.support.small_networks import relative

TOLERANCE = 1e-5  # relative L2 per array
PROMPT = "a photo of a horse"


@pytest.fixture(scope="module")
def golden(shared_dir: Path) -> Path:
    folder = shared_dir / "golden"
    if not (folder / "tiny-sd").is_dir():
        pytest.skip("no reference outputs")
    return folder


@pytest.fixture(scope="module")
def backbone(golden: Path) -> UNetBackbone:
    return load_unet_backbone(str(golden / "tiny-sd"), controlnets={"canny": str(golden / "tiny-controlnet")})


def arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def read(backbone: UNetBackbone, stored: dict[str, Tensor], branch: Branch, images: Tensor) -> dict[str, Tensor]:
    """The branch's features, of the stored posterior sample and under the stored noise."""
    with torch.no_grad():
        mean, std = backbone.encode_moments(images)
    sample = mean + std * stored["posterior_noise"]
    names = tuple(str(index) for index in range(len(images)))
    conditions = Conditions(names, noise=stored["diffusion_noise"])
    return FeatureExtractor(backbone, [branch]).read(sample, std, images, conditions)[branch.name]


def techniques(name: str, golden: Path) -> tuple[Technique, ...]:
    if name.startswith("d_"):
        return (Prompt(PROMPT), ControlNet())
    if name.startswith("e_"):
        # what the released code calls "from 60" starts at 61
        return (Prompt(PROMPT), ControlNet(), Denoise(steps=11, sampler="pndm_released"))
    if name.startswith("g_"):
        kind = name.rpartition("_")[2]
        return (Prompt(PROMPT), LoRA(kind, str(golden / "tiny-lora" / f"lora_a_{kind}.safetensors")))
    return (Prompt(PROMPT),)


@pytest.mark.parametrize(
    "name",
    [
        "a_all_layers_t50",
        "b_legacy_t50",
        "b_legacy_tensor_input",
        "d_legacy_canny_t50",
        "e_legacy_canny_denoise60",
        "g_legacy_lora_a_diffusers",
        "g_legacy_lora_a_kohya",
    ],
)
def test_features_of_the_released_code(golden: Path, backbone: UNetBackbone, name: str) -> None:
    stored = arrays(golden / f"{name}.npz")
    expected = {key.removeprefix("feat/"): value for key, value in stored.items() if key.startswith("feat/")}
    branch = Branch("x", int(stored["unet_t"]), tuple(expected), techniques(name, golden))
    actual = read(backbone, stored, branch, stored["image_tensor"])
    worst = {layer: relative(actual[layer], expected[layer]) for layer in expected}
    assert {layer: error for layer, error in worst.items() if not error <= TOLERANCE} == {}
    assert len(expected) == (197 if name.startswith("a_") else 4)


def test_the_control_image_and_its_residuals(golden: Path, backbone: UNetBackbone) -> None:
    stored = arrays(golden / "d_legacy_canny_t50.npz")
    images = stored["image_tensor"]
    control = ControlNet().source()(images, Conditions(("0", "1")))
    assert torch.equal(control.permute(0, 2, 3, 1) * 255, stored["control_image_0"].float())
    backbone.require_controlnet("canny")
    with torch.no_grad():
        embeds = backbone.encode_text([PROMPT] * 2)
        residuals = backbone.control_residuals("canny", stored["unet_in"], 51, embeds, control)
    names = [f"control_down_{index}" for index in range(len(backbone.skips))]
    expected = {
        path: stored[name] for path, name in zip((*backbone.skips, "mid_block"), (*names, "control_mid"), strict=True)
    }
    assert residuals.keys() == expected.keys()
    assert max(relative(residuals[path], expected[path]) for path in expected) <= TOLERANCE


def test_two_controlnets_whose_scales_add_up_to_one(golden: Path) -> None:
    sources = {name: str(golden / "tiny-controlnet") for name in ("canny", "again")}
    twice = load_unet_backbone(str(golden / "tiny-sd"), controlnets=sources)
    stored = arrays(golden / "d_legacy_canny_t50.npz")
    expected = {key.removeprefix("feat/"): value for key, value in stored.items() if key.startswith("feat/")}
    # the second one is given the stored control image instead of making its own
    both = (Prompt(PROMPT), ControlNet("canny", 0.3), ControlNet("again", 0.7, image="stored"))
    images = stored["image_tensor"]
    with torch.no_grad():
        mean, std = twice.encode_moments(images)
    given = {"stored": stored["control_image_0"].permute(0, 3, 1, 2) / 255}
    conditions = Conditions(("0", "1"), noise=stored["diffusion_noise"], control_images=given)
    extractor = FeatureExtractor(twice, [Branch("x", int(stored["unet_t"]), tuple(expected), both)])
    actual = extractor.read(mean + std * stored["posterior_noise"], std, images, conditions)["x"]
    assert max(relative(actual[layer], expected[layer]) for layer in expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "preset_layer", "prompt"),
    [
        ("n_dift_up1_t261_e8", "up-level1-upsampler-out", PROMPT),
        ("n_dift_odd_size_up2_t101_e2", "up-level2-upsampler-out", ""),
    ],
)
def test_dift_of_the_released_code(
    golden: Path, backbone: UNetBackbone, name: str, preset_layer: str, prompt: str
) -> None:
    stored = arrays(golden / f"{name}.npz")
    images = stored["image_tensor"].expand(len(stored["posterior_noise"]), -1, -1, -1)
    branch = Branch("dift", int(stored["unet_t"]), (preset_layer,), prompt=prompt)
    ensemble = read(backbone, stored, branch, images)[preset_layer]
    assert relative(ensemble.mean(dim=0, keepdim=True), stored["unet_ft"]) <= TOLERANCE
    # and by an ensemble branch, every draw with its own posterior sample
    branch = replace(branch, ensemble=len(images))
    noise = {
        key: stored[f"{name}_noise"][None] for key, name in (("noise", "diffusion"), ("posterior_noise", "posterior"))
    }
    extractor = FeatureExtractor(backbone, [branch], posterior="sample", max_samples=3)
    averaged = extractor(images[:1], Conditions(("0",), **noise))["dift"][preset_layer]
    assert relative(averaged, stored["unet_ft"]) <= TOLERANCE
