"""Amalgamation of pixels: concatenated, weighted as described, weighted as released."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from gate_lightning.errors import ConfigError
from gate_lightning.pixel_classifiers.amalgamation import ConcatPixels
from gate_lightning.pixel_classifiers.members import narrow_members
from gate_lightning.pixel_classifiers.released import ReleasedPixels
from gate_lightning.pixel_classifiers.weighted import WeightedPixels

BUCKETS = {"sd": (3, 5), "adm": (1, 4)}


def _pixels(members: int = 2, count: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(members, count, *shape, generator=generator, dtype=torch.float64)
        for name, shape in BUCKETS.items()
    }


def test_concatenation_is_in_the_order_of_groups_entries_and_channels():
    pixels = _pixels()
    fusion = ConcatPixels(BUCKETS, 2)(pixels)
    expected = torch.cat([*pixels["sd"].unbind(2), pixels["adm"][:, :, 0]], dim=2)
    assert torch.equal(fusion.features, expected)
    assert ConcatPixels(BUCKETS, 2).out_channels == 19
    assert not fusion.weights


def _assigner_by_hand(assigner, rows, member):
    """(N, C) → (N, outputs) of one member, in training without dropout: ordinary arithmetic."""
    hidden = (rows @ assigner.first.weight[member].T + assigner.first.bias[member]).relu()
    centred = hidden - hidden.mean(0)
    hidden = centred / (hidden.var(0, unbiased=False) + 1e-5).sqrt() * assigner.norm.weight[member]
    return hidden @ assigner.last.weight[member].T


@pytest.mark.parametrize("per_channel", [False, True])
def test_weighted_sums_are_those_of_the_formula(per_channel):
    module = WeightedPixels(BUCKETS, 2, num_assigners=2, per_channel=per_channel, hidden_channels=7, dropout=0.0)
    module.double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    pixels = _pixels()
    fusion = module(pixels)
    assert fusion.features.shape == (2, 6, 2 * 5 + 4)
    assert module.out_channels == 14
    for member in range(2):
        entries = pixels["sd"][member]  # (P, b, C)
        for j, assigner in enumerate(module.assigners["sd"]):
            logits = _assigner_by_hand(assigner, entries.flatten(0, 1), member).view(6, 3, -1)
            weights = logits.exp() / logits.exp().sum(1, keepdim=True)
            expected = (weights * entries).sum(1)
            found = fusion.features[member, :, 5 * j : 5 * j + 5]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
            torch.testing.assert_close(fusion.weights["sd"][member, :, j], weights if per_channel else weights[..., 0])
        assert torch.equal(fusion.features[member, :, 10:], pixels["adm"][member, :, 0])
    assert fusion.weights["adm"].item() == 1


def test_the_same_pixels_for_all_members_are_weighed_by_each():
    module = WeightedPixels(BUCKETS, 2, dropout=0.0).double()
    pixels = _pixels(members=1)
    shared = module(pixels).features
    module_again = WeightedPixels(BUCKETS, 2, dropout=0.0).double()
    own = module_again({name: value.expand(2, -1, -1, -1).clone() for name, value in pixels.items()}).features
    torch.testing.assert_close(shared, own, rtol=0, atol=1e-12)
    assert not torch.equal(shared[0], shared[1])


def test_sparsity_and_diversity_are_those_of_the_paper():
    module = WeightedPixels({"a": (2, 3), "b": (3, 3), "c": (1, 3)}, 2, num_assigners=3, sparsity=0.3, diversity=0.7)
    generator = torch.Generator().manual_seed(0)
    pixels = {name: torch.randn(2, 4, *shape, generator=generator) for name, shape in module.backbone_groups.items()}
    fusion = module(pixels)
    losses = torch.tensor([1.0, 2.0])
    found = module.losses(losses, fusion)
    for member in range(2):
        values = []
        for name in ("a", "b"):
            for pixel in range(4):
                w = fusion.weights[name][member, pixel]  # (n, b)
                sparse = sum(w[j].norm() for j in range(3))
                diverse = sum((w[j] - w[k]).norm() for j in range(3) for k in range(3) if k != j)
                values.append((-0.3 * sparse - 0.35 * diverse).item())
        expected = losses[member].item() + sum(values[:4]) / 8 + sum(values[4:]) / 8
        assert found[member].item() == pytest.approx(expected, rel=1e-5)


def test_without_weights_or_without_a_choice_the_losses_stay():
    losses = torch.tensor([1.0, 2.0])
    for module in (ConcatPixels(BUCKETS, 2), WeightedPixels(BUCKETS, 2)):
        assert module.losses(losses, module(_to(module, _pixels()))) is losses
    single = WeightedPixels({"adm": (1, 4)}, 2, sparsity=1.0)
    assert single.losses(losses, single(_to(single, _pixels()))) is losses
    assert not list(single.parameters())


def _to(module, pixels):
    return {name: pixels[name].float() for name in module.backbone_groups}


def test_every_parameter_learns():
    for module in (WeightedPixels(BUCKETS, 2, num_assigners=2), ReleasedPixels(BUCKETS, 2)):
        fusion = module(_to(module, _pixels()))
        (fusion.features**3).sum().backward()
        assert all((parameter.grad.flatten(1) != 0).any(1).all() for parameter in module.parameters())


@pytest.mark.parametrize("kind", ["weighted", "two assigners", "released"])
def test_a_member_alone_is_the_member_among_others(kind):
    def build():
        if kind == "released":
            return ReleasedPixels(BUCKETS, 3, seed=4)
        return WeightedPixels(BUCKETS, 3, seed=4, num_assigners=2 if kind == "two assigners" else 1, sparsity=0.1)

    together, alone = build(), build()
    narrow_members(alone, torch.tensor([1]))
    for step in range(12):
        pixels = {name: value.float() for name, value in _pixels(members=3, seed=step).items()}
        losses = torch.tensor([1.0, 2.0 / (step + 1), 3.0])
        one = together(pixels)
        own = alone({name: value[1:2] for name, value in pixels.items()})
        torch.testing.assert_close(one.features[1], own.features[0])
        torch.testing.assert_close(together.losses(losses, one)[1], alone.losses(losses[1:2], own)[0])


def test_the_released_term_is_the_norm_scaled_to_the_loss():
    module = ReleasedPixels(BUCKETS, 2)
    fusion = module(_to(module, _pixels()))
    module.walk_accepted.fill_(0.25)
    losses = torch.tensor([3.0, 5.0], requires_grad=True)
    found = module.losses(losses, fusion)
    s = module.walk_weight
    torch.testing.assert_close(s, torch.full((2,), 0.25), atol=1e-5, rtol=0)
    torch.testing.assert_close(found, losses * (1 - s))
    weights = fusion.weights["sd"]  # (M, P, 1, b, C)
    norms = weights.square().sum(3).sqrt().flatten(1).mean(1) + 1  # the group of one entry adds 1
    torch.testing.assert_close(module.norms(fusion), norms)
    (gradient,) = torch.autograd.grad(found.sum(), weights, retain_graph=True)
    (expected,) = torch.autograd.grad((-s * losses.detach() * norms / norms.detach()).sum(), weights)
    torch.testing.assert_close(gradient, expected)


def test_the_sparsity_walk():
    """Accepted falls are remembered; without a better fall s returns to the accepted one, but for 1 time in 20."""
    module = ReleasedPixels({"sd": (2, 3)}, 2000)
    pixels = {"sd": torch.zeros(1, 2, 2, 3)}
    fusion = module.eval()(pixels)
    history = []
    for step in range(11):
        loss = {0: 3.0, 5: 2.0, 10: 2.0}.get(step, 9.0)  # only every fifth counts
        module.losses(torch.full((2000,), loss), fusion)
        history.append(module.walk_weight.clone())
    first, second, third = history[0], history[5], history[10]
    assert all(torch.equal(history[step], first) for step in range(5))
    # from 0, clipped: 0 in two of three cases
    assert sorted(set((first * 1e5).round().tolist())) == [0, 1]
    assert 0.28 < (first > 0).float().mean() < 0.39
    # a fall of 1 from 5 steps ago: all are accepted, and move by one at most
    assert ((second - first).abs() < 1.1e-5).all()
    assert (second[first > 0] > 1.5e-5).float().mean() > 0.2
    # no fall: some 5 % are accepted all the same (and remember 0), the others start from `first` again
    accepted = module.walk_fall == 0
    torch.testing.assert_close(module.walk_fall[~accepted], torch.full(((~accepted).sum(),), 0.9))
    assert 0.03 < accepted.float().mean() < 0.07
    torch.testing.assert_close(module.walk_accepted, torch.where(accepted, second, first))
    assert ((third - module.walk_accepted).abs() < 1.1e-5).all()
    assert (third >= 0).all()


MAPS = {"sd": [(3, 4, 4), (2, 8, 8)], "adm": [(4, 16, 16)]}


def _image(seed: int = 0) -> dict[str, list[list[torch.Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: [
            [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
            for _ in range(BUCKETS[name][0])
        ]
        for name, shapes in MAPS.items()
    }


@pytest.mark.parametrize("rows", [3, 64])
@pytest.mark.parametrize("kind", ["concat", "weighted", "two assigners", "released"])
def test_dense_products_are_those_of_resized_and_fused_pixels(kind, rows):
    module = {
        "concat": lambda: ConcatPixels(BUCKETS, 2),
        "weighted": lambda: WeightedPixels(BUCKETS, 2, hidden_channels=6),
        "two assigners": lambda: WeightedPixels(BUCKETS, 2, hidden_channels=6, num_assigners=2),
        "released": lambda: ReleasedPixels(BUCKETS, 2, hidden_channels=6),
    }[kind]()
    module.double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    module(_pixels(count=40))  # running values of their own
    module.eval()
    maps, size = _image(), (16, 16)
    weight = torch.randn(2, 7, module.out_channels, dtype=torch.float64)
    pixels = {
        name: torch.stack(
            [
                torch.cat([interpolate(m[None], size, mode="bilinear")[0] for m in entry]).flatten(1).T
                for entry in entries
            ],
            dim=1,
        )[None]
        for name, entries in maps.items()
    }
    with torch.no_grad():
        expected = weight @ module(pixels).features.transpose(1, 2)
        found = torch.cat(list(module.dense(maps, weight, size, rows)), dim=2)
    assert found.shape == (2, 7, 16, 16)
    torch.testing.assert_close(found.flatten(2), expected, rtol=1e-6, atol=1e-12)


def test_features_that_were_not_announced_are_refused():
    module = ConcatPixels(BUCKETS, 2)
    pixels = _pixels()
    with pytest.raises(ConfigError, match=r"adm: None, expected \(M, P, \*\(1, 4\)\)"):
        module({"sd": pixels["sd"]})
    with pytest.raises(ConfigError, match=r"sd: \(2, 6, 2, 5\), expected \(M, P, \*\(3, 5\)\)"):
        module(pixels | {"sd": pixels["sd"][:, :, :2]})


@pytest.mark.parametrize(
    "arguments",
    [{"num_assigners": 0}, {"sparsity": -1.0}, {"dropout": 1.0}, {"backbone_groups": {}}, {"hidden_channels": 0}],
)
def test_settings_that_cannot_work_are_refused(arguments):
    with pytest.raises(ConfigError):
        WeightedPixels(**{"backbone_groups": BUCKETS, "members": 2} | arguments)
