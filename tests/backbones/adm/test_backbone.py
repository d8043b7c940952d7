"""Pixel-space backbones: loading, layer table, what they refuse."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from safetensors.torch import save_file

from gate_lightning.backbones.adm.backbone import ADMBackbone
from gate_lightning.backbones.adm.loading import load_adm_backbone
from gate_lightning.errors import ConfigError, DataError, WeightsError
from gate_lightning.features.branch import Branch
from gate_lightning.features.config.layer_presets import resolve_layers
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.reading.hooks import FeatureRecorder
from gate_lightning.techniques.prompt import Prompt
from tests.support.adm_oracle import random_oracle
from tests.support.small_networks import conditions, random_images

SMALL = {"multipliers": (1, 2), "attention": (2,)}


def real_size() -> ADMBackbone:
    with torch.device("meta"):
        return load_adm_backbone("random", architecture="adm256")


def checkpoint(path: Path, **settings: object) -> Path:
    torch.save(random_oracle(**{**SMALL, **settings}).state_dict(), path)
    return path


def prediction(backbone: ADMBackbone) -> torch.Tensor:
    images = random_images(1, 16, 24)
    return backbone.denoise(images, 101, backbone.encode_text([""]))


def test_the_published_size_has_the_published_places() -> None:
    backbone = real_size()
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 552_814_086
    assert (backbone.size_multiple, backbone.native_size) == (32, 256)
    # DIFT's table: 18 output blocks
    strides = [32] * 2 + [16] * 3 + [8] * 3 + [4] * 3 + [2] * 3 + [1] * 4
    channels = [1024] * 6 + [512] * 6 + [256] * 6
    info = backbone.feature_info([f"output_blocks.{index}" for index in range(18)])
    assert [(one.channels, one.stride) for one in info.values()] == list(zip(channels, strides, strict=True))
    # where DatasetDDPM's blocks are found in diffusers
    modules = [info[f"output_blocks.{index}"].module for index in (5, 6, 7, 8, 12)]
    places = ["1.upsamplers.0", "2.attentions.0", "2.attentions.1", "2.upsamplers.0", "4.resnets.0"]
    assert modules == [f"up_blocks.{place}" for place in places]
    assert sum(layer.startswith("input_blocks.") and "-" not in layer for layer in backbone.layers) == 18
    assert backbone.layers["output_blocks.4-self-map"].channels == 16


def test_presets_of_the_field() -> None:
    backbone = real_size()
    assert resolve_layers(backbone, "dift_semantic") == ("output_blocks.4",)
    assert resolve_layers(backbone, "dift_geometric") == ("output_blocks.11",)
    assert resolve_layers(backbone, "dift_temporal") == ("output_blocks.7",)
    assert (
        sum(info.channels for info in backbone.feature_info(resolve_layers(backbone, "ddpm_segmentation")).values())
        == 2816
    )
    assert backbone.layer_id("mid") == "middle_block"


def test_noise_levels() -> None:
    backbone = load_adm_backbone("random", architecture="adm_tiny")
    ones = torch.ones(1, 3, 8, 8)
    for timestep, alpha in ((41, 0.97887), (51, 0.96887), (101, 0.89325)):
        signal = backbone.schedule.add_noise(ones, torch.zeros_like(ones), timestep)
        sigma = backbone.schedule.add_noise(torch.zeros_like(ones), ones, timestep)
        assert float(signal[0, 0, 0, 0]) == pytest.approx(math.sqrt(alpha), abs=1e-5)
        assert float(sigma[0, 0, 0, 0]) == pytest.approx(math.sqrt(1 - alpha), abs=1e-5)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", "old.pt"])
def test_checkpoints_in_every_format(tmp_path: Path, suffix: str) -> None:
    oracle = random_oracle(**SMALL)
    path = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(oracle.state_dict(), path)
    else:
        torch.save(oracle.state_dict(), path, _use_new_zipfile_serialization=suffix == ".pt")
    backbone = load_adm_backbone(str(path), head_channels=16, native_size=64)
    expected = oracle(random_images(1, 16, 24), 101)[:, :3]
    torch.testing.assert_close(prediction(backbone), expected, rtol=1e-4, atol=1e-5)
    assert backbone.native_size == 64
    assert backbone.identity.digest


def test_dtype_and_memory_format(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "model.pt")
    plain = load_adm_backbone(str(path), head_channels=16)
    half = load_adm_backbone(str(path), head_channels=16, dtype="bfloat16", channels_last=True)
    assert half.dtype == torch.bfloat16
    weight = half.unet.down_blocks[0].resnets[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    images = random_images(1, 16, 24).bfloat16()
    outcome = half.denoise(images, 101, half.encode_text([""]))
    torch.testing.assert_close(outcome.float(), prediction(plain), rtol=0.1, atol=0.1)
    with pytest.raises(ConfigError, match=r"backbone\.dtype='int8'"):
        load_adm_backbone(str(path), dtype="int8")


def test_the_description_tells_head_sizes_apart(tmp_path: Path) -> None:
    path = str(checkpoint(tmp_path / "model.pt"))
    one, other = (load_adm_backbone(path, head_channels=channels) for channels in (16, 32))
    assert one.identity.digest == other.identity.digest
    assert one.description != other.description
    assert one.description["schedule"]["beta_schedule"] == "linear"


class Executed:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_not_run(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.pt"
    state = {"output_blocks.0": Executed(tmp_path / "executed")}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"model\.pt holds more than tensors, and pickled code is not run"):
        load_adm_backbone(str(path))
    assert not (tmp_path / "executed").exists()
    with path.open("wb") as file:  # a bare pickle
        pickle.dump(state, file, protocol=2)
    with pytest.raises(WeightsError, match=r"pickled code is not run|damaged"):
        load_adm_backbone(str(path))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_a_truncated_file_is_recognised(tmp_path: Path, zipped: bool, kept: float) -> None:
    path = tmp_path / "model.pt"
    torch.save(random_oracle(**SMALL).state_dict(), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(WeightsError, match=r"model\.pt is damaged or incomplete"):
        load_adm_backbone(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438167534\n", "git-LFS pointer"),
        (b"", "no safetensors file, or its download is incomplete"),
        (b"nonsense that is no file format at all", "no safetensors file"),
    ],
)
def test_other_files_under_that_name_are_recognised(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "lsun_horse.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        load_adm_backbone(str(path))


def test_a_training_state_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"epoch": 3, "model": random_oracle(**SMALL).state_dict()}, path)
    with pytest.raises(WeightsError, match=r"holds no state dict.*it holds: epoch, model"):
        load_adm_backbone(str(path))


def test_the_file_is_named_when_its_model_is_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "conditional.pt", classes=7)
    with pytest.raises(WeightsError, match=r"conditional\.pt: a class-conditional model \(7 classes\)"):
        load_adm_backbone(str(path))


def test_missing_weights_come_with_advice() -> None:
    with pytest.raises(WeightsError, match=r"256x256_diffusion_uncond\.pt does not exist.*backbone\.weights=<file>"):
        load_adm_backbone("256x256_diffusion_uncond.pt")


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"architecture='adm512': .*expected one of adm256, adm_tiny"):
        load_adm_backbone("random", architecture="adm512")


def ddpm_unet(**settings: object) -> UNet2DModel:
    """In the style of google/ddpm-*: Ho et al.'s network as diffusers builds it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(
            **{
                "sample_size": 32,
                "block_out_channels": (32, 32, 64),
                "layers_per_block": 2,
                "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
                "attention_head_dim": None,
                "downsample_padding": 0,
                "flip_sin_to_cos": False,
                "freq_shift": 1,
                "norm_eps": 1e-6,
                **settings,
            }
        ).eval()


@pytest.mark.parametrize(("network", "scheduler"), [("", ""), ("unet", "scheduler")])
def test_diffusers_folders(tmp_path: Path, network: str, scheduler: str) -> None:
    unet = ddpm_unet()
    unet.save_pretrained(tmp_path / network)
    DDPMScheduler(beta_end=0.03).save_pretrained(tmp_path / scheduler)
    backbone = load_adm_backbone(str(tmp_path), native_size=32)
    images = random_images(1, 16, 24)
    with FeatureRecorder(backbone, backbone.layers, stop=False) as recorder:
        outcome = backbone.denoise(images, 101, backbone.encode_text([""]))
    assert torch.equal(outcome, unet(images, 101).sample)
    shapes = {layer: feature.shape[1:] for layer, feature in recorder.features.items()}
    for layer, spec in backbone.layers.items():
        if spec.kind != "attention":
            assert shapes[layer] == (spec.channels, 16 // spec.stride, 24 // spec.stride), layer
    assert [layer for layer in shapes if layer.startswith("output_blocks") and "-" not in layer] == [
        f"output_blocks.{index}" for index in range(9)
    ]
    signal = backbone.schedule.add_noise(torch.ones(1), torch.zeros(1), 300)
    torch.testing.assert_close(signal**2, DDPMScheduler(beta_end=0.03).alphas_cumprod[300:301])


def test_diffusers_folders_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"neither config\.json nor unet/config\.json \(found: \[\]\)"):
        load_adm_backbone(str(tmp_path))
    ddpm_unet(num_class_embeds=5).save_pretrained(tmp_path / "unet")
    with pytest.raises(WeightsError, match="it is class-conditional"):
        load_adm_backbone(str(tmp_path), native_size=32)
    ddpm_unet().save_pretrained(tmp_path / "unet")
    with pytest.raises(ConfigError, match=r"native_size=256, but .* 32 px; set backbone\.native_size=32"):
        load_adm_backbone(str(tmp_path))
    (tmp_path / "vqvae").mkdir()
    with pytest.raises(WeightsError, match="has a vqvae: a latent diffusion model"):
        load_adm_backbone(str(tmp_path), native_size=32)


def test_a_schedule_without_betas_is_refused(tmp_path: Path) -> None:
    ddpm_unet().save_pretrained(tmp_path)
    DDIMScheduler().save_pretrained(tmp_path)
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "ScoreSdeVeScheduler", "sigma_max": 1348}')
    with pytest.raises(WeightsError, match=r"ScoreSdeVeScheduler.*names no betas"):
        load_adm_backbone(str(tmp_path), native_size=32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_channels": 4}, "reads 4 channels"),
        ({"out_channels": 4}, "predicts 4 channels"),
        ({"time_embedding_type": "fourier"}, "time embedding is fourier"),
        ({"center_input_sample": True}, r"images in \[0, 1\]"),
        ({"sample_size": None}, "no sample_size"),
    ],
)
def test_networks_of_another_kind_are_refused(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    ddpm_unet(**settings).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=f"no unconditional pixel-space diffusion model: .*{message}"):
        load_adm_backbone(str(tmp_path), native_size=32)


def test_blocks_without_a_table_are_refused(tmp_path: Path) -> None:
    ddpm_unet(down_block_types=("SkipDownBlock2D",) * 3, up_block_types=("SkipUpBlock2D",) * 3).save_pretrained(
        tmp_path
    )
    with pytest.raises(WeightsError, match="SkipDownBlock2D, SkipUpBlock2D; layers are known for"):
        load_adm_backbone(str(tmp_path), native_size=32)


def test_features_through_the_extractor() -> None:
    backbone = load_adm_backbone("random", architecture="adm_tiny")
    layers = ("output_blocks.4", "output_blocks.11", "mid")
    branches = [Branch("early", 101, layers), Branch("late", 41, layers[:1])]
    extractor = FeatureExtractor(backbone, branches)
    images = random_images(2, 48, 64)
    features = extractor(images, conditions(2))
    assert features["early"]["output_blocks.4"].shape == (2, 64, 12, 16)
    alone = extractor(images[1:], conditions(2).__class__(("s1",)))
    torch.testing.assert_close(alone["late"]["output_blocks.4"], features["late"]["output_blocks.4"][1:])
    with pytest.raises(DataError, match="reads multiples of 8"):
        backbone.check_images(random_images(1, 50, 64))
    assert extractor(random_images(1, 50, 64), conditions(1))["early"]["output_blocks.4"].shape == (1, 64, 14, 16)


def test_prompts_are_refused() -> None:
    backbone = load_adm_backbone("random", architecture="adm_tiny")
    with pytest.raises(ConfigError, match="random-adm_tiny does not support prompt"):
        FeatureExtractor(backbone, [Branch("a", 101, ("output_blocks.4",), (Prompt(text="a horse"),))])
