from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from gate_lightning.backbones.stable_diffusion.loading import load_unet_backbone
from gate_lightning.backbones.stable_diffusion.sdxl import SDXLBackbone
from gate_lightning.backbones.tiny.architecture import build_scheduler, write_folder
from gate_lightning.errors import ConfigError, WeightsError
from tests.support.composition import composed
from tests.support.small_networks import build, random_images
from tests.support.xl_networks import xl_like, xl_pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backbone = build("tiny", seed=3)
    folder = tmp_path_factory.mktemp("pipeline")
    write_folder(
        folder,
        torch.float32,
        vae=backbone.vae,
        unet=backbone.unet,
        text_encoder=backbone.text_encoder,
        tokenizer=backbone.tokenizer,
        scheduler=build_scheduler(),
    )
    backbone.controlnets["canny"].save_pretrained(folder / "controlnet")
    return folder


@pytest.fixture
def broken(pipeline: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(pipeline, tmp_path / "broken")


def test_a_folder_gives_the_network_that_was_saved(pipeline: Path) -> None:
    saved, loaded = build("tiny", seed=3), load_unet_backbone(str(pipeline))
    images = random_images(1)
    with torch.no_grad():
        latents, embeds = saved.encode(images), saved.encode_text(["a red house"])
        assert torch.equal(loaded.encode(images), latents)
        # the loaded text encoder has the fused attention kernel
        torch.testing.assert_close(loaded.encode_text(["a red house"]).hidden, embeds.hidden)
        assert torch.equal(loaded.denoise(latents, 9, embeds), saved.denoise(latents, 9, embeds))


@pytest.mark.thorough
def test_the_identity_tells_weights_apart_and_not_folders(pipeline: Path, broken: Path) -> None:
    one, copy = load_unet_backbone(str(pipeline)).identity, load_unet_backbone(str(broken)).identity
    assert one.digest == copy.digest
    retrained = build("tiny", seed=4)
    write_folder(broken, torch.float32, unet=retrained.unet)
    assert load_unet_backbone(str(broken)).identity.digest != one.digest


def test_a_controlnet_is_loaded_when_asked_for(pipeline: Path) -> None:
    backbone = load_unet_backbone(str(pipeline), controlnets={"canny": str(pipeline / "controlnet"), "depth": None})
    assert "canny" not in backbone.controlnets
    backbone.require_controlnet("canny")
    saved = build("tiny", seed=3)
    inputs = (torch.randn(1, 4, 16, 16), 5, backbone.encode_text([""]), torch.rand(1, 3, 64, 64))
    with torch.no_grad():
        assert torch.equal(
            backbone.control_residuals("canny", *inputs)["mid_block"],
            saved.control_residuals("canny", *inputs)["mid_block"],
        )
    assert list(backbone.description["controlnets"]) == ["canny"]


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_controlnet_has_the_memory_format_of_its_backbone(pipeline: Path, channels_last: bool) -> None:
    backbone = load_unet_backbone(
        str(pipeline), controlnets={"canny": str(pipeline / "controlnet")}, channels_last=channels_last
    )
    backbone.require_controlnet("canny")
    formats = {
        weight.is_contiguous(memory_format=torch.channels_last)
        for part in (backbone.unet, backbone.controlnets["canny"])
        for weight in part.parameters()
        if weight.ndim == 4 and min(weight.shape[1:]) > 1
    }
    assert formats == {channels_last}


@pytest.mark.thorough
def test_a_controlnet_may_be_named_by_its_file(pipeline: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pipeline / "controlnet", tmp_path / "controlnet")
    file = folder / "diffusion_pytorch_model.safetensors"
    names = {"folder": folder, "file": file, "gone": tmp_path / "no.safetensors", "alone": tmp_path / "c.safetensors"}
    shutil.copy(file, names["alone"])
    shutil.copy(file, tmp_path / "c.ckpt")
    backbone = load_unet_backbone(str(pipeline), controlnets={name: str(path) for name, path in names.items()})
    for name in ("folder", "file"):
        backbone.require_controlnet(name)
    one, other = (backbone.controlnets[name].state_dict() for name in ("folder", "file"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    digests = backbone.description["controlnets"]
    assert digests["folder"] == digests["file"]
    with pytest.raises(WeightsError, match=r"no\.safetensors does not exist"):
        backbone.require_controlnet("gone")
    with pytest.raises(WeightsError, match=r"is a file, and a ControlNet is named by its folder in diffusers format"):
        backbone.require_controlnet("alone")


@pytest.mark.thorough
def test_a_controlnets_digest_covers_its_config(pipeline: Path, tmp_path: Path) -> None:
    digests = []
    for eps in ("1e-05", "0.001"):
        folder = shutil.copytree(pipeline / "controlnet", tmp_path / eps)
        config = folder / "config.json"
        config.write_text(config.read_text().replace('"norm_eps": 1e-05', f'"norm_eps": {eps}'))
        backbone = load_unet_backbone(str(pipeline), controlnets={"c": str(folder)})
        backbone.require_controlnet("c")
        digests.append(backbone.description["controlnets"]["c"])
    assert digests[0] != digests[1]


@pytest.mark.thorough
def test_a_controlnet_of_one_variant_is_read(pipeline: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pipeline / "controlnet", tmp_path / "controlnet")
    file = folder / "diffusion_pytorch_model.safetensors"
    file.rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    backbone = load_unet_backbone(str(pipeline), controlnets={"c": str(folder)})
    backbone.require_controlnet("c")
    # beside a file without variant, that one is read
    shutil.copy(folder / "diffusion_pytorch_model.fp16.safetensors", file)
    again = load_unet_backbone(str(pipeline), controlnets={"c": str(folder)})
    again.require_controlnet("c")
    assert backbone.description["controlnets"] != again.description["controlnets"]  # files have names


@pytest.mark.thorough
def test_the_digest_covers_the_settings_of_the_tokenizer(pipeline: Path, broken: Path) -> None:
    config = broken / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": 20}))
    assert load_unet_backbone(str(broken)).identity.digest != load_unet_backbone(str(pipeline)).identity.digest


@pytest.mark.thorough
def test_weights_are_computed_in_the_type_that_was_asked_for(pipeline: Path) -> None:
    backbone = load_unet_backbone(str(pipeline), dtype="bfloat16", channels_last=True)
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.bfloat16}
    assert backbone.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        exact = load_unet_backbone(str(pipeline)).encode(random_images(1))
        rounded = backbone.encode(random_images(1))
    assert rounded.dtype == torch.bfloat16
    assert not torch.equal(rounded.float(), exact)
    assert (rounded.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.thorough
def test_random_weights_follow_their_seed() -> None:
    one, same, other = (load_unet_backbone("random", seed=seed) for seed in (1, 1, 2))
    assert one.identity == same.identity
    assert one.identity.digest != other.identity.digest
    assert torch.equal(one.unet.conv_in.weight, same.unet.conv_in.weight)


@pytest.fixture(scope="module")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xl")
    pipeline = xl_pipeline(xl_like(seed=4))
    pipeline.save_pretrained(folder)
    pipeline.to(torch.float16).save_pretrained(folder, variant="fp16")
    return folder


@pytest.mark.thorough
def test_an_xl_folder_gives_the_network_that_was_saved(xl_folder: Path) -> None:
    saved, loaded = xl_like(seed=4), load_unet_backbone(str(xl_folder))
    assert isinstance(loaded, SDXLBackbone)
    with torch.no_grad():
        latents, embeds = saved.encode(random_images(1)), saved.encode_text(["a red house"])
        assert torch.equal(loaded.encode(random_images(1)), latents)
        assert torch.equal(loaded.encode_text(["a red house"]).pooled, embeds.pooled)
        assert torch.equal(loaded.denoise(latents, 9, embeds), saved.denoise(latents, 9, embeds))
    assert (loaded.tokenizer.pad_token, loaded.tokenizer_2.pad_token) == ("<|endoftext|>", "!")
    assert loaded.schedule.config["_class_name"] == "EulerDiscreteScheduler"


@pytest.mark.thorough
def test_an_xl_folder_in_half_precision_keeps_its_autoencoder_in_single(xl_folder: Path) -> None:
    settings = {"variant": "fp16", "dtype": "float16", "size_conditions": {"original_size": [300, 400]}}
    loaded = load_unet_backbone(str(xl_folder), **settings, channels_last=True)
    assert isinstance(loaded, SDXLBackbone)
    assert (loaded.dtype, loaded.text_encoder_2.dtype, loaded.vae.dtype) == (
        torch.float16,
        torch.float16,
        torch.float32,
    )
    halves = xl_like(seed=4).vae.half().float()  # the file's own rounding, and no other
    assert torch.equal(loaded.vae.encoder.conv_in.weight, halves.encoder.conv_in.weight)
    assert loaded.vae.encoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert loaded.size_conditions.original_size == (300, 400)
    assert loaded.identity.digest != load_unet_backbone(str(xl_folder)).identity.digest


@pytest.mark.parametrize("part", ["text_encoder_2", "tokenizer_2"])
def test_a_missing_part_of_an_xl_folder_is_named(xl_folder: Path, tmp_path: Path, part: str) -> None:
    broken = shutil.copytree(xl_folder, tmp_path / "broken")
    shutil.rmtree(broken / part)
    with pytest.raises(WeightsError, match=rf"no {part} \(found: .*model_index\.json says StableDiffusionXL"):
        load_unet_backbone(str(broken))


def test_the_refiner_is_refused(xl_folder: Path, tmp_path: Path) -> None:
    refiner = shutil.copytree(xl_folder, tmp_path / "refiner")
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(refiner / part)
    with pytest.raises(WeightsError, match=r"SDXL refiner.*name the base model"):
        load_unet_backbone(str(refiner))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(broken: Path, part: str) -> None:
    shutil.rmtree(broken / part)
    with pytest.raises(WeightsError, match=f"no Stable Diffusion folder in diffusers format: no {part} "):
        load_unet_backbone(str(broken))


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no unet, vae, text_encoder.*backbone\.weights=<file>"):
        load_unet_backbone(str(tmp_path))


def test_a_tokenizer_folder_without_vocabulary_is_named(broken: Path) -> None:
    for path in (broken / "tokenizer").iterdir():
        path.unlink()
    with pytest.raises(WeightsError, match=r"tokenizer holds none of vocab\.json"):
        load_unet_backbone(str(broken))


def test_truncated_weights_are_named(broken: Path) -> None:
    path = broken / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"diffusion_pytorch_model.*incomplete"):
        load_unet_backbone(str(broken))


def test_weights_of_other_sizes_than_the_config_says_are_named(broken: Path) -> None:
    path = broken / "unet" / "config.json"
    path.write_text(path.read_text().replace('"layers_per_block": 2', '"layers_per_block": 1').replace("96", "80"))
    with pytest.raises(
        WeightsError, match=r"unet does not fit UNet2DConditionModel.*244 not expected, such as .*of another shape"
    ):
        load_unet_backbone(str(broken))


def test_a_folder_of_another_class_is_named(broken: Path) -> None:
    shutil.rmtree(broken / "vae")
    shutil.copytree(broken / "unet", broken / "vae")
    with pytest.raises(WeightsError, match="vae holds a UNet2DConditionModel, expected a AutoencoderKL"):
        load_unet_backbone(str(broken))


def test_pickled_weights_are_refused(broken: Path) -> None:
    path = broken / "vae" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(WeightsError, match=r"holds no diffusion_pytorch_model\.safetensors.*save them as safetensors"):
        load_unet_backbone(str(broken))


def test_an_unknown_type_or_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"backbone\.dtype='half'"):
        load_unet_backbone("random", dtype="half")
    with pytest.raises(ConfigError, match="architecture='sd9'"):
        load_unet_backbone("random", architecture="sd9")


@pytest.mark.parametrize("name", ["sdxl", pytest.param("playground_v2", marks=pytest.mark.thorough)])
def test_the_configurations_of_xl_models_build_them(xl_folder: Path, name: str) -> None:
    given = [
        f"backbone={name}",
        f"backbone.weights={xl_folder}",
        "backbone.native_size=32",
        "backbone.offline=true",
        "backbone.dtype=float32",
    ]
    loaded = instantiate(composed(*given, "backbone.size_conditions.crop=[3,4]").backbone)
    assert isinstance(loaded, SDXLBackbone)
    assert loaded.size_conditions.crop == (3, 4)
    # plain numbers, so that descriptions can be written as JSON
    assert json.dumps(loaded.description["size_conditions"])
    assert ("canny" in loaded.controlnet_sources) == (name == "sdxl")
