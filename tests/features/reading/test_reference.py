"""Features against the plain way of reading them, and that against the released GATE and DIFT code.

The chain: the released code's outputs equal the plain procedure (where the large files are at hand), the plain
procedure equals the numbers in tests/golden, and these equal this package's features, in every clone.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gate_lightning.backbones.noise_schedule import DiffusionSchedule
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.structures import Conditions, Identity
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.prompt import Prompt
from tests.golden import make
from tests.support.paths import GOLDEN
from tests.support.plain_reference import LAYERS, SCHEDULE, Parts, PlainReference, reference_parts
from tests.support.small_networks import relative

TOLERANCE = 1e-5  # relative L2 per array


@pytest.fixture(scope="module")
def parts() -> Parts:
    return reference_parts()


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    with np.load(GOLDEN / "features.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def compare(name: str, found: dict[str, Tensor], stored: dict[str, Tensor]) -> dict[str, float]:
    """Layers whose sampled numbers or norm are off."""
    errors = {}
    for layer, value in found.items():
        norm = float(value.double().norm())
        errors[layer] = relative(make.sampled(name, layer, value), stored[f"{name}/{layer}"])
        errors[f"norm of {layer}"] = abs(norm / float(stored[f"{name}/{layer}/norm"]) - 1)
    return {layer: error for layer, error in errors.items() if not error <= TOLERANCE}


@pytest.mark.parametrize("name", make.CASES)
def test_this_package_reads_the_stored_features(name: str, parts: Parts, stored: dict[str, Tensor]) -> None:
    _, timestep, draws, prompt, controlled, layers = make.CASES[name]
    schedule = DiffusionSchedule(SCHEDULE)
    backbone = UNetBackbone(
        parts.unet, parts.vae, parts.text_encoder, parts.tokenizer, schedule, Identity("reference", "", "")
    )
    backbone.add_controlnet("plain", parts.controlnet)
    given = make.case_inputs(name)
    techniques = (Prompt(prompt), *((ControlNet("plain", image="given"),) if controlled else ()))
    branch = Branch("x", timestep, layers, techniques, ensemble=draws)
    ensemble = {key: given[key][None] if draws > 1 else given[key] for key in ("noise", "posterior_noise")}
    conditions = Conditions(("0",), control_images={"given": given["control"]}, **ensemble)
    found = FeatureExtractor(backbone, [branch], posterior="sample")(given["images"], conditions)["x"]
    assert compare(name, found, stored) == {}


def test_the_stored_features_are_those_of_the_plain_procedure(stored: dict[str, Tensor]) -> None:
    again = make.features()
    assert {name for name in again if relative(torch.from_numpy(again[name]), stored[name]) > TOLERANCE} == set()
    assert again.keys() == stored.keys()


@pytest.mark.parametrize("index", range(7))
def test_prompts_are_encoded_as_by_the_released_code(index: int, parts: Parts) -> None:
    """The long ones too, in windows of 77 tokens."""
    from transformers import CLIPTextModel, CLIPTokenizer

    from gate_lightning.backbones.stable_diffusion.clip_text import token_windows

    text_encoder = CLIPTextModel.from_pretrained(GOLDEN / "text_encoder").eval()
    tokenizer = CLIPTokenizer.from_pretrained(GOLDEN / "tokenizer")
    prompt = json.loads((GOLDEN / "facts.json").read_text())["prompts"][index]
    with np.load(GOLDEN / "m_prompts.npz") as arrays:
        expected = torch.from_numpy(arrays[f"prompt_{index}_pos"])
    with torch.no_grad():
        windows = [text_encoder(window.ids)[0] for window in token_windows(tokenizer, [prompt], 77, "released")]
    assert relative(torch.cat(windows, dim=1), expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "controlled"), [("b_legacy_t50", False), ("d_legacy_canny_t50", True), ("a_all_layers_t50", False)]
)
def test_the_plain_procedure_is_that_of_the_released_code(shared_dir: Path, name: str, controlled: bool) -> None:
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = shared_dir / "golden"
    if not (folder / "tiny-sd").is_dir():
        pytest.skip("no reference outputs")
    model = folder / "tiny-sd"
    parts = Parts(
        UNet2DConditionModel.from_pretrained(model / "unet").eval(),
        AutoencoderKL.from_pretrained(model / "vae").eval(),
        CLIPTextModel.from_pretrained(model / "text_encoder").eval(),
        CLIPTokenizer.from_pretrained(model / "tokenizer"),
        ControlNetModel.from_pretrained(folder / "tiny-controlnet").eval(),
    )
    with np.load(folder / f"{name}.npz") as arrays:
        given = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    control = given["control_image_0"].permute(0, 3, 1, 2) / 255 if controlled else None
    layers = [layer for layer in LAYERS if f"feat/{layer}" in given]
    noises = (given["posterior_noise"], given["diffusion_noise"])
    schedule = json.loads((model / "scheduler" / "scheduler_config.json").read_text())
    found = PlainReference(parts, schedule).features(
        given["image_tensor"], *noises, int(given["unet_t"]), "a photo of a horse", layers, control
    )
    assert {layer for layer in layers if relative(found[layer], given[f"feat/{layer}"]) > TOLERANCE} == set()
    assert len(layers) == (10 if name.startswith("a_") else 4)
