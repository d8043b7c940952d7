"""Learning-rate schedules."""

from __future__ import annotations

import math

import pytest
import torch

from gate_lightning.errors import ConfigError
from gate_lightning.tasks.schedules import constant, cosine, one_cycle, poly, trapezoid


def rates(schedule, steps: int, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = schedule(optimizer, steps, **options)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return [*found, optimizer.param_groups[0]["lr"]]


def test_poly_is_torchs_without_warm_up_and_floor():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    reference = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=10, power=0.9)
    expected = [optimizer.param_groups[0]["lr"]]
    for _ in range(10):
        optimizer.step()
        reference.step()
        expected.append(optimizer.param_groups[0]["lr"])
    assert rates(poly, 10, power=0.9) == pytest.approx(expected, abs=1e-12)


def test_poly_ends_at_its_floor():
    """GATE's run falls from 1.6e-4 to 1e-4: the formula of a polynomial between two values."""
    found = rates(poly, 8, power=0.9, final_fraction=0.625)
    assert found == pytest.approx([1.25 + 0.75 * (1 - step / 8) ** 0.9 for step in range(9)])


def test_cosine_is_torchs_without_warm_up():
    found = rates(cosine, 8, final_fraction=0.25)
    assert found == pytest.approx([0.5 + 1.5 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(9)])


def test_constant_stays():
    assert rates(constant, 4) == [2.0] * 5


def test_trapezoid_holds_and_falls_to_zero_in_the_share_given():
    assert rates(trapezoid, 10, decay_share=0.4) == pytest.approx([2.0] * 7 + [1.5, 1.0, 0.5, 0.0])
    assert rates(trapezoid, 4, decay_share=0.0) == [2.0] * 5
    with pytest.raises(ConfigError, match=r"decay_share is 1\.5"):
        rates(trapezoid, 4, decay_share=1.5)


@pytest.mark.parametrize("schedule", [poly, cosine, constant, trapezoid])
def test_the_rise_is_linear_and_meets_the_peak(schedule):
    assert rates(schedule, 10, warmup_steps=3)[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])


def test_a_resumed_schedule_goes_on_where_it_stopped():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    scheduler = poly(optimizer, 10, warmup_steps=2)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    second = torch.optim.SGD([parameter], lr=2.0)
    resumed = poly(second, 10, warmup_steps=2)
    second.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    for _ in range(3):
        for either in (optimizer, second, scheduler, resumed):
            either.step()
        assert second.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize(
    ("schedule", "options", "words"),
    [
        (poly, {"power": 0.0}, "power is 0"),
        (poly, {"final_fraction": 1.5}, r"final_fraction is 1\.5"),
        (cosine, {"warmup_steps": 10}, "warmup_steps 10"),
        (constant, {"warmup_steps": -1}, "warmup_steps -1"),
    ],
)
def test_numbers_out_of_range_are_refused(schedule, options, words):
    with pytest.raises(ConfigError, match=words):
        rates(schedule, 10, **options)


def test_a_run_without_steps_is_refused():
    with pytest.raises(ConfigError, match="total_steps is 0"):
        rates(constant, 0)


def test_one_cycle_rises_to_the_peak_and_falls_to_nothing():
    found = rates(one_cycle, 20, rise_share=0.25)
    # half periods of a cosine between start, peak (step 0.25 · 20 - 1) and end
    first, last = 2.0 / 25, 2.0 / 25 / 1e4
    rise = [2.0 + (first - 2.0) * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    fall = [last + (2.0 - last) * (1 + math.cos(math.pi * step / 15)) / 2 for step in range(16)]
    assert found[:20] == pytest.approx([*rise, *fall])
    for options in ({"rise_share": 0.0}, {"rise_share": 1.0}):
        with pytest.raises(ConfigError, match="rise_share"):
            one_cycle(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), 10, **options)
