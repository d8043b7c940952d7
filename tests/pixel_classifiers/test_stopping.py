"""The paper's stopping rule."""

from __future__ import annotations

import pytest
import torch

from gate_lightning.errors import ConfigError, ResumeError
from gate_lightning.pixel_classifiers.stopping import StoppingRule


def _run(rule: StoppingRule, losses: list[float], epoch: int = 4) -> list[bool]:
    return [rule.update(torch.tensor([loss]), epoch).item() for loss in losses]


def test_it_stops_with_the_batch_that_makes_more_than_patience_without_a_new_minimum():
    rule = StoppingRule(1, patience=50)
    stopped = _run(rule, [1.0] * 52)
    assert stopped == [False] * 51 + [True]  # the first sets the minimum, 50 are put up with, the 51st is too many
    assert rule.finished
    assert rule.steps.tolist() == [52]


def test_a_loss_that_never_falls_stops_after_the_fewest_steps():
    rule = StoppingRule(1, patience=3, start_epoch=2)
    step = 0
    while not rule.finished:
        rule.update(torch.ones(1), epoch=step // 5)
        step += 1
    assert step == rule.fewest_steps(batches=5) == 15


def test_a_new_minimum_starts_the_count_again_and_an_equal_loss_does_not():
    rule = StoppingRule(1, patience=2)
    assert _run(rule, [1.0, 1.0, 2.0, 0.9, 0.9, 1.0, 0.9]) == [False] * 6 + [True]


def test_early_epochs_neither_count_nor_set_the_minimum():
    rule = StoppingRule(1, patience=1)
    assert not any(_run(rule, [0.1] * 20, epoch=3))
    assert _run(rule, [5.0, 6.0, 6.0]) == [False, False, True]


def test_a_loss_that_is_no_number_is_no_minimum():
    assert _run(StoppingRule(1, patience=1), [float("nan")] * 2) == [False, True]


def test_members_are_judged_apart_and_those_that_stopped_are_not_asked_again():
    rule = StoppingRule(3, patience=1, start_epoch=0)
    rows = [[3.0, 3.0, 3.0], [2.0, 4.0, 2.0], [1.0, 4.0, 2.0]]
    found = [rule.update(torch.tensor(row), 0).tolist() for row in rows]
    assert found == [[False] * 3, [False] * 3, [False, True, False]]
    assert rule.update(torch.tensor([0.5, 2.0]), 0).tolist() == [False, True]
    assert rule.active.tolist() == [True, False, False]
    assert rule.steps.tolist() == [4, 3, 4]
    with pytest.raises(ConfigError, match=r"got losses \(3,\); expected \(1,\): 1 still train"):
        rule.update(torch.zeros(3), 0)


def test_it_goes_on_where_it_was():
    torch.manual_seed(0)
    losses = torch.rand(40, 2)
    whole, first = StoppingRule(2, patience=60, start_epoch=0), StoppingRule(2, patience=60, start_epoch=0)
    for loss in losses[:13]:
        first.update(loss, 0)
    second = StoppingRule(2, patience=60, start_epoch=0)
    second.load_state_dict(first.state_dict())
    for loss in losses[13:]:
        second.update(loss, 0)
    for loss in losses:
        whole.update(loss, 0)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert first.steps.tolist() == [13, 13]  # the state is a copy
    with pytest.raises(ResumeError, match="has 2 members, this run 3"):
        StoppingRule(3).load_state_dict(first.state_dict())
