"""Members that stop: what is left trains on as before, and all can be put together again."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from gate_lightning.errors import ConfigError, ResumeError
from gate_lightning.pixel_classifiers.members import Members, narrow_members
from gate_lightning.pixel_classifiers.stacked import StackedBatchNorm, StackedDropout, StackedLinear
from gate_lightning.pixel_classifiers.weighted import WeightedPixels


class Small(nn.Module):
    def __init__(self, members: int = 4) -> None:
        super().__init__()
        self.first = StackedLinear(members, 5, 6, key=("first", 0))
        self.norm = StackedBatchNorm(members, 6)
        self.dropout = StackedDropout(members, 0.3, key=("dropout", 0))
        self.last = StackedLinear(members, 6, 1, key=("last", 0), bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        return self.last(self.dropout(self.norm(self.first(rows).relu())))


def _rows(steps: int) -> Tensor:
    return torch.randn(steps, 4, 5, 8, generator=torch.Generator().manual_seed(3))


def _train(module: nn.Module, optimizer: torch.optim.Optimizer, rows: Tensor) -> Tensor:
    loss = torch.zeros(())
    for step in rows:
        loss = (module(step) ** 2).flatten(1).mean(1)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return loss


@pytest.mark.parametrize("fused", [False, True])
def test_the_others_train_on_as_if_nobody_had_left(fused):
    rows, module, whole = _rows(12), Small(), Small()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1, fused=fused)
    kept = Members(module, 4)
    alive = _train(module, optimizer, rows[:5])  # a loss that is still referred to, as a logger does
    kept.stop(torch.tensor([False, True, False, False]), optimizer)
    _train(module, optimizer, rows[5:8][:, kept.active])
    kept.stop(torch.tensor([True, False, False]), optimizer)
    _train(module, optimizer, rows[8:][:, kept.active])
    assert kept.active.tolist() == [2, 3]
    assert all(len(value) == 2 for value in [*module.parameters(), *module.buffers()])
    assert len(alive) == 4

    states = {}
    whole_optimizer = torch.optim.Adam(whole.parameters(), lr=0.1, fused=fused)
    for start, stop in ((0, 5), (5, 8), (8, 12)):
        _train(whole, whole_optimizer, rows[start:stop])
        states[stop] = copy.deepcopy(whole.state_dict())
    with kept.whole() as found:
        for name, value in found.state_dict().items():
            for member, stop in enumerate((8, 5, 12, 12)):
                torch.testing.assert_close(value[member], states[stop][name][member], rtol=1e-5, atol=1e-6)
    assert len(module.first.weight) == 2


def test_a_checkpoint_goes_on_exactly():
    rows, module = _rows(12), Small()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    kept = Members(module, 4)
    _train(module, optimizer, rows[:5])
    kept.stop(torch.tensor([False, True, False, True]), optimizer)
    _train(module, optimizer, rows[5:8][:, kept.active])
    saved = pickle.dumps((kept.state_dict(), module.state_dict(), optimizer.state_dict()))
    _train(module, optimizer, rows[8:][:, kept.active])

    members, weights, moments = pickle.loads(saved)
    second = Small()
    other = Members(second, 4)
    other.load_state_dict(members)
    second.load_state_dict(weights)
    second_optimizer = torch.optim.Adam(second.parameters(), lr=0.1)
    second_optimizer.load_state_dict(moments)
    _train(second, second_optimizer, rows[8:][:, other.active])
    with kept.whole() as one, other.whole() as two:
        for name, value in one.state_dict().items():
            assert torch.equal(value, two.state_dict()[name]), name
    with pytest.raises(ResumeError, match="has 4 members, this run 3"):
        Members(Small(3), 3).load_state_dict(members)


def test_the_last_members_stay_in_the_module():
    module = Small()
    kept = Members(module, 4)
    kept.stop(torch.ones(4, dtype=torch.bool))
    assert kept.active.tolist() == [0, 1, 2, 3]


def test_whole_leaves_no_trace_even_if_the_prediction_fails():
    module = Small()
    kept = Members(module, 4)
    kept.stop(torch.tensor([True, False, False, True]))
    before = copy.deepcopy(module.state_dict())

    def predict_and_fail():
        with kept.whole():
            assert module(_rows(1)[0]).shape == (4, 1, 8)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_and_fail()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_narrowing_by_numbers():
    module = Small()
    expected = module.first.weight[[3, 1]].detach().clone()
    narrow_members(module, torch.tensor([3, 1]))
    assert torch.equal(module.first.weight, expected)


def test_a_module_without_members_is_refused():
    with pytest.raises(ConfigError, match="weight, bias have no first axis of 4 members"):
        Members(nn.Linear(3, 2), 4)


def test_dropout_masks_belong_to_a_member_and_a_draw():
    rows = torch.ones(3, 50, 40)
    dropout = StackedDropout(3, 0.25, key=("d", 0))
    first, second = dropout(rows), dropout(rows)
    assert first.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (first == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    again = StackedDropout(3, 0.25, key=("d", 0))
    narrow_members(again, torch.tensor([2]))
    assert torch.equal(again(rows[:1])[0], first[2])
    assert dropout.eval()(rows) is rows
    with pytest.raises(ConfigError, match=r"dropout is 1\.0"):
        WeightedPixels({"sd": (2, 4)}, dropout=1.0)
