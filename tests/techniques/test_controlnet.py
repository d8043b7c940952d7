"""Several ControlNets, their control images, and training-time dropout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import ControlNetModel
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from torch import Tensor

from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.ops.edges import canny
from gate_lightning.techniques.base import Conditioning
from gate_lightning.techniques.controlnet import ControlFunction, ControlNet
from tests.support.small_networks import build, conditions, random_images, relative

LAYER, PATH = "up-level1-upsampler-out", "up_blocks.1.upsamplers.0"


@pytest.fixture(scope="module")
def backbone() -> UNetBackbone:
    """With two ControlNets that both say something."""
    made = build("tiny")
    assert isinstance(made, UNetBackbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        for name in ("canny", "depth"):
            controlnet = ControlNetModel.from_unet(made.unet, conditioning_embedding_out_channels=(4, 4, 4))
            for parameter in controlnet.parameters():
                parameter.data += torch.randn_like(parameter) * 0.03
            made.add_controlnet(name, controlnet)
    return made


def brightness(images: Tensor) -> Tensor:
    return ((images + 1) / 2).mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)


def read(backbone: UNetBackbone, *techniques: ControlNet, **own: object) -> Tensor:
    noise = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(3))
    given = conditions(2, noise=noise, **own)
    extractor = FeatureExtractor(backbone, [Branch("x", 50, (LAYER,), techniques, prompt="a photo")])
    return extractor(random_images(2), given)["x"][LAYER]


def oracle(backbone: UNetBackbone, controls: dict[str, tuple[float, Tensor]]) -> Tensor:
    """diffusers' own sum of ControlNets, and its own U-Net call."""
    images = random_images(2)
    noise = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        latents = backbone.schedule.add_noise(backbone.encode(images), noise, 50)
        embeds = backbone.encode_text(["a photo"] * 2).hidden
        nets = MultiControlNetModel([backbone.controlnets[name] for name in controls])
        scales, given = zip(*controls.values(), strict=True)
        down, middle = nets(latents, 50, embeds, list(given), list(scales), return_dict=False)
        caught = []
        handle = backbone.unet.get_submodule(PATH).register_forward_hook(lambda m, i, output: caught.append(output))
        backbone.unet(latents, 50, embeds, down_block_additional_residuals=down, mid_block_additional_residual=middle)
        handle.remove()
    return caught[0]


def edges(images: Tensor) -> Tensor:
    pixels = ((images.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    maps = torch.stack([torch.from_numpy(canny(image, 100, 200)) for image in pixels])
    return (maps[:, None] / 255).expand(-1, 3, -1, -1)


@pytest.mark.thorough
def test_two_controlnets_add_up_each_with_its_image_and_scale(backbone: UNetBackbone) -> None:
    both = (ControlNet("canny", 0.7), ControlNet("depth", 0.4, function=ControlFunction(brightness)))
    images = random_images(2)
    expected = oracle(backbone, {"canny": (0.7, edges(images)), "depth": (0.4, brightness(images))})
    assert relative(read(backbone, *both), expected) < 1e-5
    assert relative(read(backbone, *both[::-1]), expected) < 1e-5
    one = oracle(backbone, {"canny": (0.7, edges(images))})
    assert relative(read(backbone, both[0]), one) < 1e-5
    assert relative(one, expected) > 1e-3  # the second one says something


def test_control_images_of_the_batch_have_the_name_that_is_asked_for(backbone: UNetBackbone) -> None:
    given = brightness(random_images(2))
    expected = oracle(backbone, {"canny": (1.0, given)})
    assert relative(read(backbone, ControlNet(image="grey"), control_images={"grey": given}), expected) < 1e-5
    named = ControlNet("depth", folder="anywhere")
    assert relative(read(backbone, named, control_images={"depth": given}), expected) > 1e-3
    with pytest.raises(DataError, match=r"needs control images.*give the ControlNet a folder of them"):
        read(backbone, named)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda images: images[:, :1], r"of shape \(2, 1, 64, 96\) for images of shape \(2, 3, 64, 96\)"),
        (lambda images: images[..., ::2, ::2], "cropped and resized together"),
        (lambda images: images * 255, r"values from -255 to 255; expected 0 to 1"),
        (lambda images: images * float("nan"), "expected 0 to 1"),
        (lambda images: images > 0, r"returned torch\.bool; expected a floating-point tensor"),
        (lambda images: images.numpy(), "returned ndarray"),
    ],
)
def test_what_a_function_makes_is_checked(backbone: UNetBackbone, function: object, message: str) -> None:
    images = random_images(2)
    images[0, 0, 0, :2] = torch.tensor([-1.0, 1.0])
    with pytest.raises(DataError, match=message):
        ControlFunction(function)(images, conditions(2))  # type: ignore[arg-type]


def test_a_function_is_described_by_its_name_or_the_configuration() -> None:
    assert ControlFunction(brightness).description.endswith("test_controlnet.brightness")
    described = ControlNet("depth", function=ControlFunction(brightness, "net v2")).description
    assert described == {"technique": "controlnet", "name": "depth", "scale": 1.0, "function": "net v2"}
    assert ControlNet("depth", folder="d").description["folder"] == "d"


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"dropout": 1.0}, r"dropout=1\.0: expected a share in \[0, 1\)"),
        ({"dropout": -0.1}, "dropout"),
        ({"function": "cany"}, "function='cany': did you mean canny"),
        ({"function": "canny", "folder": "d"}, "a function and a folder"),
        ({"function": ControlFunction(brightness), "image": "d"}, "a function and an image"),
        ({"function": "canny", "name": "x", "low": 300}, "low ≤ high"),
    ],
)
def test_contradictions_are_refused(own: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ControlNet(**own)  # type: ignore[arg-type]


def kept(technique: ControlNet, ids: tuple[str, ...], view: str = "draw0", training: bool = True) -> list[bool]:
    given = replace(conditions(len(ids)), sample_ids=ids, views=(view,) * len(ids), training=training)
    start = Conditioning(prompts=("",) * len(ids))
    (control,) = technique.apply(start, random_images(len(ids)), given, build("pixels")).controls
    return [True] * len(ids) if control.kept is None else list(control.kept)


def test_dropout_is_drawn_by_seed_sample_and_view_in_training_only() -> None:
    ids = tuple(f"s{index}" for index in range(400))
    dropping = ControlNet(dropout=0.25, seed=1)
    first = kept(dropping, ids)
    assert 0.66 < sum(first) / len(first) < 0.84  # 0.75 ± 4 standard deviations
    assert kept(dropping, ids[::-1]) == first[::-1]
    assert kept(dropping, ids[:7]) == first[:7]
    assert kept(dropping, ids, "draw1") != first
    assert kept(replace(dropping, seed=2), ids) != first
    assert kept(replace(dropping, name="depth"), ids) != first
    assert all(kept(dropping, ids, training=False))
    assert all(kept(ControlNet(), ids))


def test_a_dropped_image_has_plain_features_and_the_others_have_theirs(backbone: UNetBackbone) -> None:
    seed = next(seed for seed in range(99) if kept(ControlNet(dropout=0.5, seed=seed), ("s0", "s1")) == [True, False])
    dropping = ControlNet(dropout=0.5, seed=seed)
    views = {"views": ("draw0", "draw0")}
    mixed = read(backbone, dropping, training=True, **views)
    assert relative(mixed[0], read(backbone, ControlNet(), **views)[0]) < 1e-6
    assert relative(mixed[1], read(backbone, **views)[1]) < 1e-6
    assert relative(mixed[1], read(backbone, ControlNet(), **views)[1]) > 1e-3
    assert torch.equal(read(backbone, dropping, **views), read(backbone, ControlNet(), **views))
