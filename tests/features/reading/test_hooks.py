from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.errors import ConfigError
from gate_lightning.features.reading.hooks import FeatureRecorder
from tests.support.small_networks import build


@pytest.fixture(scope="module")
def backbone() -> UNetBackbone:
    return build("one_repeat")


def hooks_of(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def denoise(backbone: UNetBackbone) -> None:
    with torch.no_grad():
        backbone.denoise(torch.zeros(1, 4, 8, 8), 1, backbone.encode_text([""]))


def test_hooks_are_removed_when_the_network_fails(backbone: UNetBackbone) -> None:
    embeds, five_channels = backbone.encode_text([""]), torch.zeros(1, 5, 8, 8)
    recorder = FeatureRecorder(backbone, list(backbone.layers))
    with pytest.raises(RuntimeError, match="channels"), recorder:
        backbone.denoise(five_channels, 1, embeds)
    assert hooks_of(backbone) == 0
    with recorder:
        assert hooks_of(backbone) > len(backbone.layers)


def test_hooks_are_removed_when_a_module_is_missing(backbone: UNetBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    block = backbone.unet.up_blocks[1]
    monkeypatch.delitem(block._modules, "upsamplers")
    with pytest.raises(AttributeError), FeatureRecorder(backbone, ["unet-in", "up-level1-upsampler-out"]):
        pass
    assert hooks_of(backbone) == 0


def test_errors_of_others_pass_through(backbone: UNetBackbone) -> None:
    with pytest.raises(KeyboardInterrupt), FeatureRecorder(backbone, ["unet-in"]):
        raise KeyboardInterrupt


def test_a_listened_to_network_can_be_pickled(backbone: UNetBackbone) -> None:
    with FeatureRecorder(backbone, list(backbone.layers)):
        assert pickle.dumps(backbone.unet)


def test_a_pass_that_is_not_stopped_goes_on(backbone: UNetBackbone) -> None:
    went_on = []
    for stop in (True, False):
        with FeatureRecorder(backbone, ["unet-in"], stop=stop):
            denoise(backbone)
            went_on.append(stop)
    assert went_on == [False]


def test_attention_maps_are_the_networks_own_probabilities(backbone: UNetBackbone) -> None:
    layer = "up-level1-repeat0-vit-block0-cross-map"
    attention = backbone.unet.up_blocks[1].attentions[0].transformer_blocks[0].attn2
    seen = []
    attention.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    with FeatureRecorder(backbone, [layer]) as recorder:
        denoise(backbone)
    attention._forward_pre_hooks.clear()
    (hidden,), kwargs = seen[0]
    context = kwargs["encoder_hidden_states"]
    query, key = (attention.head_to_batch_dim(x) for x in (attention.to_q(hidden), attention.to_k(context)))
    expected = attention.get_attention_scores(query, key)  # diffusers' own, heads in the batch
    torch.testing.assert_close(recorder.features[layer].flatten(0, 1), expected)


def test_an_interrupted_pass_leaves_no_hook(backbone: UNetBackbone) -> None:
    def interrupt(module: nn.Module, inputs: object) -> None:
        raise KeyboardInterrupt

    handle = backbone.unet.mid_block.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), FeatureRecorder(backbone, ["attn-up-cross", "vae-out", "us1"]):
        denoise(backbone)
    handle.remove()
    assert hooks_of(backbone) == 0
    with FeatureRecorder(backbone, ["us1"]) as recorder:  # and nobody is waited for any more
        denoise(backbone)
        pytest.fail("the pass went on")
    assert list(recorder.features) == ["us1"]


@pytest.mark.parametrize("inner_first", [True, False])
def test_nested_recorders_both_get_what_they_want(backbone: UNetBackbone, inner_first: bool) -> None:
    layers = ["unet-in", "up-level0-upsampler-out"]
    first, second = layers if inner_first else reversed(layers)
    later = []
    handle = backbone.unet.up_blocks[1].register_forward_pre_hook(lambda *_: later.append("block 1"))
    with FeatureRecorder(backbone, [second]) as outer:
        with FeatureRecorder(backbone, [first]) as inner:
            denoise(backbone)
            pytest.fail("the pass went on")
        kept = outer.features[second]
        denoise(backbone)  # nothing is wanted of it: it runs, and changes nothing
        assert outer.features[second] is kept
    handle.remove()
    assert list(inner.features) == [first]
    assert later == ["block 1"]
    assert hooks_of(backbone) == 0


def test_a_recorder_inside_does_not_end_the_pass_of_one_that_wants_it_all(backbone: UNetBackbone) -> None:
    with FeatureRecorder(backbone, ["unet-out"], stop=False) as outer, FeatureRecorder(backbone, ["unet-in"]):
        denoise(backbone)
    assert list(outer.features) == ["unet-out"]


def test_features_come_under_the_name_that_was_asked_for(backbone: UNetBackbone) -> None:
    names = ["up_blocks[1]", "up_blocks.1", "up-level1-upsampler-out", "mid"]
    with FeatureRecorder(backbone, names) as recorder:
        denoise(backbone)
    assert set(recorder.features) == set(names)
    assert torch.equal(recorder.features["up_blocks[1]"], recorder.features["up-level1-upsampler-out"])
    assert list(backbone.feature_info(names)) == names


def test_unknown_layers_are_refused_with_a_hint(backbone: UNetBackbone) -> None:
    with pytest.raises(ConfigError, match=r"no layer 'up_block\[1\]'; did you mean up_blocks\[1\]"):
        FeatureRecorder(backbone, ["up_block[1]"])
    with pytest.raises(ConfigError, match="did you mean attn-mid-cross-stride16"):
        backbone.feature_info(["attn-mid-cross-stride64"])


def test_reading_nothing_is_refused(backbone: UNetBackbone) -> None:
    with pytest.raises(ConfigError, match="no layers to read"):
        FeatureRecorder(backbone, [])
