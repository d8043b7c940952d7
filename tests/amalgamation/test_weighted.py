"""Learned branch weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gate_lightning.amalgamation.weighted import WeightAssigner, WeightedAmalgamation
from gate_lightning.errors import ConfigError
from gate_lightning.structures import FeatureInfo, Pyramid
from tests.support.paths import GOLDEN

LAYERS = {"fine": FeatureInfo(6, 8), "coarse": FeatureInfo(4, 16)}
INFO = {"plain": LAYERS, "steered": LAYERS, "strong": LAYERS}


def random_features(batch=2):
    generator = torch.Generator().manual_seed(1)
    return {
        branch: {
            "fine": torch.randn(batch, 6, 6, 5, generator=generator, dtype=torch.float64),
            "coarse": torch.randn(batch, 4, 3, 2, generator=generator, dtype=torch.float64),
        }
        for branch in INFO
    }


def build(**options) -> WeightedAmalgamation:
    torch.manual_seed(0)
    amalgamation = WeightedAmalgamation(INFO, **options).double().eval()
    for assigner in (module for module in amalgamation.modules() if isinstance(module, WeightAssigner)):
        torch.nn.init.normal_(assigner.linear.weight)  # weights far from equal
    return amalgamation


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("num_assigners", [1, 2])
def test_output_is_the_concatenation_of_weighted_sums(num_assigners, per_channel):
    amalgamation, features = build(num_assigners=num_assigners, per_channel=per_channel), random_features()
    pyramid = amalgamation(features)
    assert amalgamation.out_channels == (6 * num_assigners, 4 * num_assigners)
    for layer, level, weights in zip(("fine", "coarse"), pyramid.levels, pyramid.weights, strict=True):
        maps = [features[branch][layer].numpy() for branch in INFO]
        w, channels = weights.detach().numpy(), maps[0].shape[1]
        expected = np.zeros(level.shape)
        for b in range(2):
            for j in range(num_assigners):
                for c in range(channels):
                    for i in range(3):
                        weight = w[b, j, i, c] if per_channel else w[b, j, i]
                        expected[b, j * channels + c] += weight * maps[i][b, c]
        np.testing.assert_allclose(level.detach().numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_may_vary_over_the_image(per_channel):
    amalgamation, features = build(num_assigners=2, per_channel=per_channel, spatial=True), random_features()
    pyramid = amalgamation(features)
    assert amalgamation.out_channels == (12, 8)
    for layer, level, weights in zip(("fine", "coarse"), pyramid.levels, pyramid.weights, strict=True):
        maps = np.stack([features[branch][layer].numpy() for branch in INFO], axis=1)
        w, channels = weights.detach().numpy(), maps.shape[2]
        w = w if per_channel else np.repeat(w[:, :, :, None], channels, axis=3)
        assert w.shape == (2, 2, 3, channels, *maps.shape[-2:])
        np.testing.assert_allclose(w.sum(axis=2), 1.0, rtol=0, atol=1e-12)
        assert w.std(axis=(-2, -1)).min() > 1e-4  # and vary they do
        expected = np.concatenate([(w[:, j] * maps).sum(axis=1) for j in range(2)], axis=1)
        np.testing.assert_allclose(level.detach().numpy(), expected, rtol=0, atol=1e-12)


def test_the_mean_of_spatial_logits_is_the_logit_of_the_image():
    whole, spatial = (
        WeightAssigner(6, 2, hidden_channels=8, spatial=spatial).double().eval() for spatial in (False, True)
    )
    spatial.load_state_dict(whole.state_dict())
    maps = torch.stack([layers["fine"] for layers in random_features().values()], dim=1)
    torch.testing.assert_close(spatial(maps).mean(dim=(3, 4)), whole(maps))


def test_spatial_regularization_is_the_mean_over_positions():
    amalgamation = WeightedAmalgamation(INFO, num_assigners=2, spatial=True, sparsity=0.3, diversity=0.7)
    weights = torch.rand(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    at_positions = [
        amalgamation.regularization(Pyramid(levels=(), weights=(weights[..., row, column],))).item()
        for row in range(4)
        for column in range(5)
    ]
    value = amalgamation.regularization(Pyramid(levels=(), weights=(weights,))).item()
    assert value == pytest.approx(np.mean(at_positions), abs=1e-6)


@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_sum_to_one_over_branches_and_are_not_equal(per_channel):
    for weights in build(num_assigners=2, per_channel=per_channel)(random_features()).weights:
        assert weights.shape[:3] == (2, 2, 3)
        torch.testing.assert_close(weights.sum(dim=2), torch.ones_like(weights.sum(dim=2)))
        assert weights.std(dim=2).min() > 0.01


def test_the_order_of_branches_does_not_matter():
    amalgamation, features = build(), random_features()
    shuffled = {"plain": features["strong"], "steered": features["plain"], "strong": features["steered"]}
    first, second = amalgamation(features), amalgamation(shuffled)
    torch.testing.assert_close(first.levels, second.levels)
    torch.testing.assert_close(first.weights[0][:, :, [2, 0, 1]], second.weights[0])


def test_a_single_branch_has_weight_one_no_assigner_and_no_regularization():
    amalgamation = WeightedAmalgamation({"plain": LAYERS}, num_assigners=2, sparsity=1.0)
    pyramid = amalgamation({"plain": {k: x.float() for k, x in random_features()["plain"].items()}})
    assert list(amalgamation.parameters()) == []
    assert amalgamation.out_channels == (6, 4)
    assert [weights.tolist() for weights in pyramid.weights] == [[[[1.0]]], [[[1.0]]]]
    assert amalgamation.regularization(pyramid) is None


def test_refiners_are_shared_by_branches_and_change_the_output_once_trained():
    amalgamation, features = build(refiner_blocks=2), random_features()
    refiners = sum(parameter.numel() for parameter in amalgamation.refiners.parameters())
    assert refiners == sum(2 * (2 * 9 * c * c + 4 * c) for c in (6, 4))
    before = amalgamation(features).levels[0]
    for refiner in amalgamation.refiners:
        torch.nn.init.ones_(refiner[-1].layers[-1].weight)
    assert not torch.allclose(before, amalgamation(features).levels[0])


@pytest.mark.parametrize("per_channel", [False, True])
def test_regularization_is_the_formula_of_the_paper(per_channel):
    amalgamation = build(num_assigners=3, per_channel=per_channel, sparsity=0.3, diversity=0.7)
    pyramid = amalgamation(random_features())
    levels = []
    for weights in pyramid.weights:
        w = weights.detach().numpy()
        w = w[..., None] if w.ndim == 3 else w
        values = []
        for b in range(w.shape[0]):
            for c in range(w.shape[3]):
                sparse = sum(np.sqrt((w[b, j, :, c] ** 2).sum()) for j in range(3))
                diverse = sum(
                    np.sqrt(((w[b, j, :, c] - w[b, k, :, c]) ** 2).sum()) for j in range(3) for k in range(3) if k != j
                )
                values.append(-0.3 * sparse - 0.7 / 2 * diverse)
        levels.append(np.mean(values))
    assert amalgamation.regularization(pyramid).item() == pytest.approx(np.mean(levels), abs=1e-12)


def test_regularization_is_least_for_one_hot_weights_that_differ():
    amalgamation = WeightedAmalgamation(INFO, num_assigners=2, sparsity=1.0, diversity=1.0)
    equal = torch.full((1, 2, 3), 1 / 3)
    same = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
    different = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    values = [amalgamation.regularization(Pyramid(levels=(), weights=(w,))).item() for w in (equal, same, different)]
    assert values == pytest.approx([-2 / np.sqrt(3), -2.0, -2.0 - np.sqrt(2)])


def test_regularization_of_equal_assigners_has_a_finite_gradient():
    weights = torch.full((1, 2, 3), 1 / 3, requires_grad=True)
    amalgamation = WeightedAmalgamation(INFO, num_assigners=2, diversity=1.0)
    amalgamation.regularization(Pyramid(levels=(), weights=(weights,))).backward()
    assert torch.isfinite(weights.grad).all()


@pytest.mark.parametrize(
    "other",
    [
        {"fine": FeatureInfo(6, 8), "coarse": FeatureInfo(5, 16)},
        {"fine": FeatureInfo(6, 8)},
        {"fine": FeatureInfo(6, 8), "other": FeatureInfo(4, 32)},
    ],
)
def test_branches_of_unequal_channels_are_refused_by_name(other):
    with pytest.raises(ConfigError, match=r"stride 16 they have plain: 4, steered: \d.*amalgamation=concat"):
        WeightedAmalgamation({"plain": LAYERS, "steered": other})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_assigners", 0),
        ("hidden_channels", 0),
        ("dropout", 1.0),
        ("refiner_blocks", -1),
        ("sparsity", -0.1),
        ("diversity", -0.1),
        ("norm", "LN"),
    ],
)
def test_numbers_out_of_range_are_refused(option, value):
    with pytest.raises(ConfigError, match=option):
        WeightedAmalgamation(INFO, **{option: value})


def released_assigner(arrays, prefix: str) -> tuple[WeightAssigner, torch.Tensor]:
    """Our assigner with released weights, and what the released biases add to every branch's logits alike."""
    weights = {key.removeprefix(prefix): torch.from_numpy(arrays[key]) for key in arrays if key.startswith(prefix)}
    assigner = WeightAssigner(24, 24, 128, norm="BN").eval()
    assigner.load_state_dict(
        {
            "conv.weight": weights["0.weight"],
            "norm.weight": weights["2.weight"],
            "norm.running_mean": weights["2.running_mean"],
            "norm.running_var": weights["2.running_var"],
            "norm.num_batches_tracked": weights["2.num_batches_tracked"],
            "linear.weight": weights["6.weight"],
        }
    )
    return assigner.double(), (weights["6.weight"] @ weights["2.bias"] + weights["6.bias"]).double()


def test_the_assigner_computes_what_the_released_one_does():
    arrays = np.load(GOLDEN / "o_weight_assigner.npz")
    assigner, shift = released_assigner(arrays, "w/weight_assigner.")
    logits = assigner(torch.from_numpy(arrays["x"]).double()[:, None])[:, 0] + shift
    torch.testing.assert_close(logits.float(), torch.from_numpy(arrays["y"]), rtol=0, atol=1e-6)


def test_a_level_is_fused_as_in_the_released_code():
    arrays = np.load(GOLDEN / "o_amalgamation_level.npz")
    assigner, _ = released_assigner(arrays, "w_assigner/weight_assigner.")
    info = {f"branch{index}": {"layer": FeatureInfo(24, 8)} for index in range(3)}
    amalgamation = WeightedAmalgamation(info, per_channel=True, norm="BN").double().eval()
    amalgamation.assigners[0][0].load_state_dict(assigner.state_dict())
    group = torch.from_numpy(arrays["bucket"]).double()
    pyramid = amalgamation({f"branch{index}": {"layer": group[index]} for index in range(3)})
    weights = torch.from_numpy(arrays["weights"])[..., 0, 0].movedim(0, 1)[:, None]
    torch.testing.assert_close(pyramid.weights[0].float(), weights, rtol=0, atol=1e-6)
    torch.testing.assert_close(pyramid.levels[0].float(), torch.from_numpy(arrays["summed"]), rtol=0, atol=1e-6)


def test_joined_layers_are_one_level_with_weights_of_their_own():
    """GATE's network for correspondence: all layers at the finest resolution, then weights per channel."""
    torch.manual_seed(0)
    amalgamation = WeightedAmalgamation(INFO, per_channel=True, joined=True).double().eval()
    features = random_features()
    assert (amalgamation.out_channels, amalgamation.strides) == ((10,), (8,))
    pyramid = amalgamation(features)
    bucket = [
        torch.cat([maps["fine"], torch.nn.functional.interpolate(maps["coarse"], (6, 5), mode="bilinear")], dim=1)
        for maps in features.values()
    ]
    ((assigner,),) = amalgamation.assigners
    weights = torch.stack([assigner(one[:, None])[:, 0] for one in bucket]).softmax(dim=0)  # (branches, B, C)
    expected = sum(weight[:, :, None, None] * one for weight, one in zip(weights, bucket, strict=True))
    torch.testing.assert_close(pyramid.levels[0], expected)
