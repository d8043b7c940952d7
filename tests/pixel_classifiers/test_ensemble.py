"""The pixel ensemble: its members, all at once, against ordinary networks, one after another."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from gate_lightning.errors import ConfigError
from gate_lightning.pixel_classifiers.amalgamation import ConcatPixels
from gate_lightning.pixel_classifiers.ensemble import PixelEnsemble, member_losses
from gate_lightning.pixel_classifiers.members import Members
from gate_lightning.pixel_classifiers.stopping import StoppingRule
from tests.support.one_by_one import single_members

WIDTHS = {"small": [128, 32], "large": [256, 128], "linear": []}


@pytest.mark.parametrize("variant", ["small", "large", "linear"])
def test_the_layers_are_the_papers(variant):
    ensemble = PixelEnsemble(12, 5, members=3, variant=variant)
    single = single_members(ensemble)[0]
    linears = [module for module in single if isinstance(module, nn.Linear)]
    assert [linear.out_features for linear in linears] == [*WIDTHS[variant], 5]
    hidden = ["Linear", "ReLU", "BatchNorm1d"]
    assert [type(module).__name__ for module in single] == [*hidden * len(WIDTHS[variant]), "Linear"]
    count = sum(parameter.numel() for parameter in ensemble.parameters())
    assert count == 3 * sum(parameter.numel() for parameter in single.parameters())


def test_parameters_of_the_published_width():  # 1.087 M and 2.20 M a member at 8448 channels
    with torch.device("meta"):
        small, large = nn.Linear(8448, 128), nn.Linear(8448, 256)
    rest = {"small": 21, "large": 34}
    for variant, first in (("small", small), ("large", large)):
        ensemble = PixelEnsemble(8, rest[variant], members=1, variant=variant)
        count = sum(parameter.numel() for parameter in ensemble.parameters())
        count += sum(parameter.numel() for parameter in first.parameters()) - first.out_features * 9
        assert round(count / 1e6, 3 if variant == "small" else 2) == {"small": 1.087, "large": 2.20}[variant]


def test_from_30_classes_on_the_networks_are_large():
    assert [PixelEnsemble(4, count).variant for count in (2, 29, 30, 34)] == ["small", "small", "large", "large"]


def test_the_start_is_normal_with_002_and_differs_between_members_and_seeds():
    ensemble = PixelEnsemble(300, 5, members=3)
    assert ensemble.first_weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(ensemble.first_weight.mean().item()) < 3e-4
    assert all((linear.bias == 0).all() for linear in ensemble.linears)
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in ensemble.norms)
    assert not torch.equal(ensemble.first_weight[0], ensemble.first_weight[1])
    assert not torch.equal(ensemble.first_weight, PixelEnsemble(300, 5, members=3, seed=1).first_weight)


def test_a_member_does_not_depend_on_how_many_there_are_nor_on_the_global_generator():
    torch.manual_seed(1)
    many = PixelEnsemble(7, 4, members=4)
    torch.manual_seed(2)
    few = PixelEnsemble(7, 4, members=2)
    for large, small in zip(many.parameters(), few.parameters(), strict=True):
        assert torch.equal(large[:2], small)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_logits_running_values_and_gradients_are_those_of_single_networks(training, shared):
    torch.manual_seed(0)
    ensemble = PixelEnsemble(9, 4, members=3).double().train(training)
    rows = torch.randn(1 if shared else 3, 16, 9, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(4, (3, 16))
    singles = [single.train(training) for single in single_members(ensemble)]
    logits = ensemble(rows)
    losses = member_losses(logits, labels)
    losses.sum().backward()
    expected_input = torch.zeros_like(rows)
    for member, single in enumerate(singles):
        own = rows[0 if shared else member].detach().clone().requires_grad_()
        expected = single(own)
        loss = cross_entropy(expected, labels[member])
        loss.backward()
        expected_input[0 if shared else member] += own.grad
        torch.testing.assert_close(logits[member], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(losses[member], loss, rtol=0, atol=1e-12)
        linears = [module for module in single if isinstance(module, nn.Linear)]
        for stacked, linear in zip(ensemble.linears, linears, strict=True):
            torch.testing.assert_close(stacked.weight.grad[member], linear.weight.grad, rtol=0, atol=1e-12)
            torch.testing.assert_close(stacked.bias.grad[member], linear.bias.grad, rtol=0, atol=1e-12)
        norms = [module for module in single if isinstance(module, nn.BatchNorm1d)]
        for stacked, norm in zip(ensemble.norms, norms, strict=True):
            torch.testing.assert_close(stacked.running_mean[member], norm.running_mean, rtol=0, atol=1e-14)
            torch.testing.assert_close(stacked.running_var[member], norm.running_var, rtol=0, atol=1e-14)
    torch.testing.assert_close(rows.grad, expected_input, rtol=0, atol=1e-12)


def _batches(steps: int, members: int, pixels: int, channels: int, classes: int) -> list[tuple[torch.Tensor, ...]]:
    """Learnable: classes have centres. The noise keeps single-batch losses from falling forever."""
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(classes, channels, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (steps, members, pixels), generator=generator)
    noise = torch.randn(steps, members, pixels, channels, generator=generator, dtype=torch.float64)
    return list(zip(centres[labels] + 1.5 * noise, labels, strict=True))


@pytest.mark.slow
def test_together_and_one_after_another_stop_at_the_same_steps_with_the_same_predictions():
    """300 steps, float64, epochs of 15 steps; every member on batches of its own."""
    members, epoch_steps, patience = 5, 15, 20
    batches = _batches(300, members, 12, 10, 4)
    start = PixelEnsemble(10, 4, members=members).double()
    singles = [_train_alone(single, member, batches) for member, single in enumerate(single_members(start))]

    kept, rule = Members(start, members), StoppingRule(members, patience)
    optimizer = torch.optim.Adam(start.parameters(), lr=1e-3)
    for step, (rows, labels) in enumerate(batches):
        losses = member_losses(start(rows[kept.active]), labels[kept.active])
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        kept.stop(rule.update(losses, step // epoch_steps), optimizer)
        if rule.finished:
            break

    assert rule.steps.tolist() == [steps for _, steps in singles]
    assert 60 + patience < min(rule.steps) < max(rule.steps) < 300
    assert len(set(rule.steps.tolist())) >= 3
    test = torch.randn(200, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    with kept.whole(), torch.no_grad():
        together = start.eval()(test.unsqueeze(0))
    alone = torch.stack([single.eval()(test) for single, _ in singles])
    assert torch.equal(together.argmax(dim=2), alone.argmax(dim=2))
    torch.testing.assert_close(together, alone, rtol=1e-7, atol=1e-7)


def _train_alone(single: nn.Module, member: int, batches: list) -> tuple[nn.Module, int]:
    """The rule as a plain loop; the network and the steps it made."""
    optimizer = torch.optim.Adam(single.parameters(), lr=1e-3)
    best, waited = float("inf"), 0
    for step, (rows, labels) in enumerate(batches):
        loss = cross_entropy(single(rows[member]), labels[member])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step // 15 > 3:
            best, waited = (loss.item(), 0) if loss.item() < best else (best, waited + 1)
            if waited > 20:
                return single, step + 1
    return single, len(batches)


def test_dense_logits_are_those_of_resized_features():
    torch.manual_seed(0)
    maps = [torch.randn(5, 4, 4), torch.randn(3, 8, 6), torch.randn(2, 16, 16)]
    maps = [map_.double() for map_ in maps]
    ensemble = PixelEnsemble(10, 4, members=3).double()
    ensemble(torch.randn(1, 50, 10, dtype=torch.float64))  # running values of their own
    ensemble.eval()
    fuse = ConcatPixels({"maps": (1, 10)}, members=3)
    full = torch.cat([interpolate(map_[None], (16, 16), mode="bilinear")[0] for map_ in maps])
    with torch.no_grad():
        expected = ensemble(full.flatten(1).T.unsqueeze(0)).transpose(1, 2).unflatten(2, (16, 16))
        for rows in (1, 5, 16, 100):
            found = ensemble.dense(fuse.dense({"maps": [maps]}, ensemble.first_weight, (16, 16), rows))
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "huge"}, "variant='huge': expected one of small, large, linear"),
        ({"members": 0}, "members 0"),
        ({"num_classes": 1}, "num_classes is 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        PixelEnsemble(**{"in_channels": 4, "num_classes": 3} | arguments)


def test_rows_that_do_not_fit_are_refused():
    ensemble = PixelEnsemble(4, 3, members=3)
    with pytest.raises(ConfigError, match=r"got rows \(3, 8, 5\); expected \(members, pixels, 4\)"):
        ensemble(torch.zeros(3, 8, 5))
    with pytest.raises(ConfigError, match="rows of 2 members; expected 3, or 1"):
        ensemble(torch.zeros(2, 8, 4))
    with pytest.raises(ConfigError, match="at least 2 pixels"):
        ensemble(torch.zeros(3, 1, 4))
