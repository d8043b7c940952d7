"""Passes are as large as memory allows: halved where it runs out, with a word, and equal to what fits at once."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.stable_diffusion.loading import load_unet_backbone
from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.reading.img2img import ImageToImage
from gate_lightning.structures import Conditions, Features
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.denoise import Denoise
from gate_lightning.techniques.guidance import Guidance
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt
from tests.support.small_networks import conditions, random_images, relative

LAYER = "up-level1-upsampler-out"
LORA = "asset:tiny/lora/moderate.safetensors"


@pytest.fixture
def backbone() -> Backbone:
    return load_unet_backbone(controlnets={"canny": "asset:tiny/controlnet"})


def branches() -> list[Branch]:
    return [
        Branch("plain", 50, (LAYER, "unet-in")),
        Branch("steered", 50, (LAYER,), (Prompt(), ControlNet(), LoRA("moderate", LORA))),
        Branch("mean", 50, (LAYER,), ensemble=3),
        Branch("way", 50, (LAYER,), (ControlNet(), Denoise(2)), noise_seed=1),
        Branch("guided", 50, (LAYER,), (Guidance(2.0), Prompt("a house"))),
    ]


def known(count: int) -> Conditions:
    texts = ("a red house", "a tree", "a very long text about two houses and a tree", "a dog", "a cat")
    return conditions(count, captions=texts[:count])


class Memory:
    """Lets a module run out of memory, in the middle of a pass, on more than ``room`` samples."""

    def __init__(self, module: nn.Module, room: int) -> None:
        self.room, self.seen = room, []  # type: ignore[var-annotated]
        module.register_forward_pre_hook(self.check)

    def check(self, module: nn.Module, inputs: Any) -> None:
        self.seen.append(len(inputs[0]))
        if len(inputs[0]) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has …")


def worst(found: Features, expected: Features) -> float:
    return max(relative(value, expected[name][layer]) for name, maps in found.items() for layer, value in maps.items())


@pytest.mark.parametrize("most", [*(pytest.param(count, marks=pytest.mark.thorough) for count in (1, 2)), 3])
def test_a_limit_below_the_batch_divides_branches(backbone: Backbone, most: int) -> None:
    images = random_images(4, 64, 64)
    expected = FeatureExtractor(backbone, branches())(images, known(4))
    sizes: list[tuple[str, int]] = []
    for name in ("unet", "vae.encoder"):
        hook = lambda module, inputs, name=name: sizes.append((name, len(inputs[0])))  # noqa: E731
        backbone.get_submodule(name).register_forward_pre_hook(hook)
    found = FeatureExtractor(backbone, branches(), max_samples=most)(images, known(4))
    assert worst(found, expected) < 1e-5
    # guidance has an image twice in a pass
    assert max(size for name, size in sizes if name == "unet") == max(most, 2)
    assert max(size for name, size in sizes if name == "vae.encoder") == most


@pytest.mark.thorough
def test_the_denoiser_out_of_memory_goes_on_with_half(backbone: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    images, extractor = random_images(4, 64, 64), FeatureExtractor(backbone, branches())
    expected = extractor(images, known(4))
    memory = Memory(backbone.get_submodule("unet.mid_block"), 3)
    with caplog.at_level(logging.WARNING):
        found = extractor(images, known(4))
    assert worst(found, expected) < 1e-5
    assert max(memory.seen) > 3
    (said,) = {record.getMessage() for record in caplog.records if "features.max_samples=2" in record.getMessage()}
    assert "out of memory in a pass of the denoiser of" in said
    assert "2 at once from here on" in said
    # once is enough: later batches begin with what fits
    memory.seen.clear()
    assert worst(extractor(images, known(4)), expected) < 1e-5
    assert max(memory.seen) <= 3


def test_so_does_the_encoder(backbone: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    images, extractor = random_images(5, 64, 64), FeatureExtractor(backbone, branches()[:1])
    expected = extractor(images, known(5))
    memory = Memory(backbone.get_submodule("vae.encoder.mid_block"), 1)
    assert worst(extractor(images, known(5)), expected) < 1e-5
    assert memory.seen == [5, 2, 1, 1, 1, 1, 1]
    assert caplog.text.count("out of memory in encoding") == 2


@pytest.mark.thorough
def test_and_image_to_image(backbone: Backbone) -> None:
    images = random_images(4, 64, 64)
    made = ImageToImage(backbone, branches()[:2], 300, 2)
    expected = made(images, known(4))
    memory = Memory(backbone.get_submodule("vae.decoder.mid_block"), 3)
    found = made(images, known(4))
    assert max(memory.seen) > 3
    assert all(relative(found[name], expected[name]) < 1e-5 for name in expected)


@pytest.mark.parametrize(("part", "what"), [("unet.mid_block", "a pass of the denoiser"), ("vae.encoder", "encoding")])
def test_one_image_that_does_not_fit_is_told_of(backbone: Backbone, part: str, what: str) -> None:
    Memory(backbone.get_submodule(part), 0)
    with pytest.raises(ConfigError, match=rf"no room for one image in {what} \(CUDA out of memory\).*backbone\.dtype"):
        FeatureExtractor(backbone, branches()[:1])(random_images(2, 64, 64), known(2))


def test_other_errors_pass(backbone: Backbone) -> None:
    def broken(module: nn.Module, inputs: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    backbone.get_submodule("unet.mid_block").register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        FeatureExtractor(backbone, branches()[:1])(random_images(2, 64, 64), known(2))
