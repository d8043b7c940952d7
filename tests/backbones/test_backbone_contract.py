"""What every backbone promises, checked on each of them."""

from __future__ import annotations

import pickle
from collections.abc import Iterable

import pytest
import torch

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.features.reading.hooks import FeatureRecorder
from tests.support.marks import thorough_but
from tests.support.small_networks import MEMBERS, build, random_images, steps
from tests.support.transformer_networks import TRANSFORMERS, TransformerBackbone, build_transformer


@pytest.fixture(
    scope="module",
    params=thorough_but({*MEMBERS, *TRANSFORMERS} - {"one_repeat", "sd2_like"}, (*MEMBERS, *TRANSFORMERS)),
)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return build_transformer(request.param) if request.param in TRANSFORMERS else build(request.param)


def odd_images(backbone: Backbone) -> torch.Tensor:
    # not square, and not divisible by the deepest stride where that is allowed
    unit = backbone.size_multiple
    return random_images(2, unit * 9, unit * 14) if unit > 1 else random_images(2, 33, 50)


@torch.no_grad()
def run(backbone: Backbone, images: torch.Tensor, layers: Iterable[str], stop: bool = True) -> dict[str, torch.Tensor]:
    latents = backbone.encode(images)
    embeds = backbone.encode_text(["a red circle", "a photo"])
    with FeatureRecorder(backbone, layers, stop) as recorder:
        backbone.denoise(latents, 50, embeds)
    return recorder.features


def test_feature_info_tells_what_every_layer_yields(backbone: Backbone) -> None:
    images = odd_images(backbone)
    features = run(backbone, images, list(backbone.layers))
    height, width = images.shape[-2:]
    expected = {}
    for layer, info in backbone.feature_info(backbone.layers).items():
        if backbone.layers[layer].kind != "attention":
            expected[layer] = (2, info.channels, -(-height // info.stride), -(-width // info.stride))
    maps = {layer: tuple(feature.shape) for layer, feature in features.items() if layer in expected}
    assert maps == expected


def test_derived_layers_yield_what_feature_info_tells(backbone: Backbone) -> None:
    names = [*backbone.derived, *backbone.aliases]
    if not names:
        assert backbone.family in ("pixels", "vision") or isinstance(backbone, TransformerBackbone)
        return
    images = odd_images(backbone)
    height, width = images.shape[-2:]
    features = run(backbone, images, names)
    for layer, info in backbone.feature_info(names).items():
        batch, channels, *sides = features[layer].shape
        assert (batch, *sides) == (2, -(-height // info.stride), -(-width // info.stride)), layer
        assert channels == (info.channels or channels), layer


def test_attention_maps_are_heads_by_queries_by_keys_and_sum_to_one(backbone: Backbone) -> None:
    images = odd_images(backbone)
    maps = [layer for layer, spec in backbone.layers.items() if spec.kind == "attention"]
    if not maps:
        assert backbone.family in ("pixels", "vision") or isinstance(backbone, TransformerBackbone)
        return
    queries = [layer.replace("-map", "-q") for layer in maps]
    features = run(backbone, images, [*maps, *queries])
    for layer, query in zip(maps, queries, strict=True):
        batch, heads, count, _ = features[layer].shape
        assert (batch, heads) == (2, backbone.layers[layer].channels)
        assert count == features[query][0, 0].numel()
        torch.testing.assert_close(features[layer].sum(-1), torch.ones(batch, heads, count))


def test_layers_fire_in_the_order_of_the_table(backbone: Backbone) -> None:
    # attention maps are made as soon as the keys are there, before the values
    order = [layer for layer, spec in backbone.layers.items() if spec.kind != "attention"]
    assert steps(run(backbone, odd_images(backbone), reversed(order))) == steps(order)


def test_stopping_early_changes_nothing(backbone: Backbone) -> None:
    images = odd_images(backbone)
    layers = [*backbone.layers, *backbone.derived]
    whole = run(backbone, images, layers, stop=False)
    for layer in layers[::17]:
        assert torch.equal(run(backbone, images, [layer])[layer], whole[layer])


def test_no_hook_stays_behind(backbone: Backbone) -> None:
    run(backbone, odd_images(backbone), list(backbone.layers)[-3:])
    hooks = [path for path, module in backbone.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    assert hooks == []


def test_latents_have_the_announced_shape_and_repeat(backbone: Backbone) -> None:
    images = odd_images(backbone)
    with torch.no_grad():
        mean, std = backbone.encode_moments(images)
        noise = torch.randn(mean.shape)
        assert torch.equal(backbone.encode(images), mean)
        torch.testing.assert_close(backbone.encode(images, noise), mean + std * noise)
    stride = backbone.latent_stride
    assert mean.shape == (2, backbone.latent_channels, images.shape[2] // stride, images.shape[3] // stride)
    assert mean.shape == std.shape


def test_it_is_frozen_for_good(backbone: Backbone) -> None:
    backbone.train()
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.modules())


def test_it_can_be_pickled_with_its_results_unchanged(backbone: Backbone) -> None:
    images = odd_images(backbone)
    layer = list(backbone.layers)[-1]
    copy = pickle.loads(pickle.dumps(backbone))
    assert torch.equal(run(copy, images, [layer])[layer], run(backbone, images, [layer])[layer])


def test_a_image_too_small_is_refused(backbone: Backbone) -> None:
    with pytest.raises(DataError, match="too small"):
        backbone.check_images(random_images(1, backbone.minimum_size - 1, 200))
    backbone.check_images(random_images(1, backbone.minimum_size, 2 * backbone.minimum_size))


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 4, 64, 64)])
def test_something_else_than_colour_images_is_refused(backbone: Backbone, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="expected \\(B, 3, H, W\\)"):
        backbone.check_images(torch.zeros(shape))


@pytest.mark.parametrize("timestep", [-2, 1000, 50.0, True, "50"])
def test_a_timestep_outside_the_schedule_is_refused(backbone: Backbone, timestep: object) -> None:
    with pytest.raises(ConfigError, match="timestep"):
        backbone.check_timestep(timestep)  # type: ignore[arg-type]


def test_an_unknown_layer_is_refused(backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match="up-level9"):
        backbone.feature_info(["up-level9-upsampler-out"])
