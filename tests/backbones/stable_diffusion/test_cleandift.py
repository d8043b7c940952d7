"""CleanDIFT U-Nets: clean latents in, told a timestep of their own."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gate_lightning.backbones.stable_diffusion.architectures import build_random_backbone
from gate_lightning.backbones.stable_diffusion.cleandift import load_cleandift_backbone
from gate_lightning.backbones.stable_diffusion.loading import load_unet_backbone
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.reading.hooks import FeatureRecorder
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.denoise import Denoise
from tests.support.small_networks import conditions, random_images

PREFIX = "unet_feature_extractor_cleandift."
LAYERS = ("mid", *(f"us{count}" for count in range(1, 11)))


@pytest.fixture(scope="module")
def student() -> UNetBackbone:
    backbone = build_random_backbone("tiny", seed=5)
    assert isinstance(backbone, UNetBackbone)
    return backbone


def saved(folder: Path, student: UNetBackbone, timestep: float | None = None) -> Path:
    """The student's U-Net alone, or with ``timestep`` a whole training state."""
    state = {name: tensor.clone() for name, tensor in student.unet.state_dict().items()}
    if timestep is not None:
        state = {PREFIX + name: tensor for name, tensor in state.items()}
        state |= {"timestep": torch.tensor(timestep), "unet_feature_extractor_base.conv_in.bias": torch.zeros(3)}
    path = folder / ("full.safetensors" if timestep is not None else "unet.safetensors")
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, student: UNetBackbone) -> Path:
    """A folder with unet.safetensors and full.safetensors, whose learned timestep is 259.73."""
    folder = tmp_path_factory.mktemp("cleandift")
    saved(folder, student)
    saved(folder, student, 259.73)
    return folder


@pytest.fixture(scope="module")
def plain(files: Path) -> UNetBackbone:
    return load(files / "unet.safetensors")


def load(path: Path, **settings: object) -> UNetBackbone:
    return load_cleandift_backbone(str(path), base="tiny", **settings)


@torch.no_grad()
def expected(student: UNetBackbone, backbone: UNetBackbone, images: Tensor, timestep: float) -> dict[str, Tensor]:
    """Oracle: the student's plain U-Net on the clean latents of the base model's autoencoder."""
    latents = backbone.vae.encode(images).latent_dist.mean * backbone.scaling_factor
    embeds = backbone.encode_text([""] * len(images)).hidden
    with FeatureRecorder(student, LAYERS, stop=False) as recorder:
        student.unet(latents, torch.tensor(timestep), encoder_hidden_states=embeds)
    return recorder.features


@pytest.mark.parametrize(
    ("file", "timestep"),
    [("unet.safetensors", 261.0), pytest.param("full.safetensors", 259.73, marks=pytest.mark.thorough)],
)
def test_features_are_those_of_the_unet_on_clean_latents(
    files: Path, student: UNetBackbone, file: str, timestep: float
) -> None:
    backbone = load(files / file)
    assert backbone.own_timestep == pytest.approx(timestep, abs=1e-4)
    images = random_images(2, 64, 80)
    extractor = FeatureExtractor(backbone, [Branch("clean", 50, LAYERS)])
    features = extractor(images, conditions(2))["clean"]
    for layer, value in expected(student, backbone, images, timestep).items():
        torch.testing.assert_close(features[layer], value, rtol=1e-5, atol=1e-5)
    # the fraction counts
    for layer, value in expected(student, backbone, images, timestep + 0.4).items():
        assert (features[layer] - value).abs().max() > 2e-5, layer


def test_the_branch_timestep_has_no_effect_and_that_is_said(
    plain: UNetBackbone, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        quiet = FeatureExtractor(plain, [Branch("a", 261, ("us6",))])
        assert caplog.text == ""
        loud = FeatureExtractor(plain, [Branch("a", 50, ("us6",), noise_seed=3)])
    assert "at its own timestep, 261: timestep=50 has no effect" in caplog.text
    images = random_images(1)
    assert torch.equal(quiet(images, conditions(1))["a"]["us6"], loud(images, conditions(1))["a"]["us6"])
    with pytest.raises(ConfigError, match="timestep=1000: expected a whole number from 0 to 999"):
        FeatureExtractor(plain, [Branch("a", 1000, ("us6",))])


def test_the_description_tells_weights_and_timestep(files: Path, plain: UNetBackbone) -> None:
    other = load(files / "full.safetensors", own_timestep=250.5)
    assert plain.description["own_timestep"] == 261.0
    assert other.description["own_timestep"] == 250.5  # what is said beats what was learned
    base = load_unet_backbone("tiny").identity.digest
    assert len({base, plain.identity.digest, other.identity.digest}) == 3


@pytest.mark.thorough
def test_a_file_of_a_folder(files: Path, student: UNetBackbone) -> None:
    backbone = load(files, file="unet.safetensors", channels_last=True)
    assert torch.equal(backbone.unet.conv_in.weight, student.unet.conv_in.weight)
    assert backbone.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(WeightsError, match=r"holds no nothing\.safetensors \(found: \['full\.safetensors', 'unet"):
        load(files, file="nothing.safetensors")
    with pytest.raises(WeightsError, match=r"holds no file named by backbone\.file"):
        load(files)


def test_a_unet_of_another_architecture_is_refused(tmp_path: Path, student: UNetBackbone) -> None:
    state = {name: tensor.clone() for name, tensor in student.unet.state_dict().items()}
    del state["conv_in.bias"]
    state |= {"extra": torch.zeros(1), "conv_out.bias": torch.zeros(7)}
    save_file(state, tmp_path / "unet.safetensors")
    misfits = (
        r"1 missing, such as conv_in\.bias; 1 not expected, such as extra; 1 of another shape, such as conv_out\.bias "
        r"is \(7,\), expected \(4,\)\. Check that backbone\.base"
    )
    with pytest.raises(WeightsError, match=misfits):
        load(tmp_path / "unet.safetensors")


def test_a_whole_state_without_its_timestep_is_refused(tmp_path: Path, student: UNetBackbone) -> None:
    path = tmp_path / "full.safetensors"
    save_file({PREFIX + name: tensor.clone() for name, tensor in student.unet.state_dict().items()}, path)
    with pytest.raises(WeightsError, match="but no timestep"):
        load(path)


@pytest.mark.parametrize("timestep", [-0.5, 1000.0, float("nan")])
def test_an_impossible_timestep_is_refused(timestep: float) -> None:
    with pytest.raises(ConfigError, match=r"own_timestep=.*expected a number of 0 or more up to 999"):
        load_cleandift_backbone("random", base="", architecture="tiny", own_timestep=timestep)


def test_what_needs_noisy_latents_is_refused() -> None:
    backbone = load_cleandift_backbone("random", base="", architecture="tiny")
    with pytest.raises(ConfigError, match="does not support controlnet"):
        FeatureExtractor(backbone, [Branch("a", 261, ("us6",), (ControlNet("canny"),))])
    with pytest.raises(ConfigError, match="reads clean latents"):
        FeatureExtractor(backbone, [Branch("a", 261, ("us6",), (Denoise(2),))])
    with pytest.raises(ConfigError, match="has no layer or preset 'vae-out'"):
        FeatureExtractor(backbone, [Branch("a", 261, ("vae-out",))])
