"""Trajectories against a denoiser of known probability flow, and against stock diffusers schedulers.

For data from N(0, s²) the best prediction is linear in the latents, and the noiseless flow keeps latents / √variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler
from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.noise_schedule import DiffusionSchedule
from gate_lightning.errors import ConfigError
from gate_lightning.techniques.denoise import SAMPLERS, Denoise
from gate_lightning.techniques.inversion import Inversion
from tests.support.inversion_oracle import ALPHAS, BETAS, hyperfeatures
from tests.support.small_networks import build, relative

SPREAD = 0.6  # s of the data


@pytest.fixture(scope="module")
def epsilon() -> Backbone:
    return build("one_repeat")


@pytest.fixture(scope="module")
def velocity() -> Backbone:
    return build("sd2_like")


def variance(timestep: int) -> float:
    return float(ALPHAS[timestep] * SPREAD**2 + 1 - ALPHAS[timestep])


def gaussian(kind: str, visits: list[int] | None = None) -> Callable[[Tensor, int], Tensor]:
    """The best prediction for Gaussian data; notes the timesteps it is asked for."""

    def predict(latents: Tensor, timestep: int) -> Tensor:
        if visits is not None:
            visits.append(timestep)
        alpha = float(ALPHAS[timestep])
        noise = math.sqrt(1 - alpha) * latents / variance(timestep)
        clean = math.sqrt(alpha) * SPREAD**2 * latents / variance(timestep)
        return noise if kind == "epsilon" else math.sqrt(alpha) * noise - math.sqrt(1 - alpha) * clean

    return predict


def latents(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_follows_the_flow(epsilon: Backbone, velocity: Backbone, kind: str, sampler: str) -> None:
    backbone = epsilon if kind == "epsilon" else velocity
    trajectory, start = Denoise(steps=20, sampler=sampler, stride=10), latents()
    expected = start * math.sqrt(variance(50) / variance(250))
    error = relative(trajectory.run(start, 50, gaussian(kind), backbone), expected)
    # the released trajectory ends a step short; first-order steps leave an error in the stride, others in its square
    worst = {"pndm_released": 0.05, "ddim": 0.01, "euler": 0.01}.get(sampler, 3e-4)
    assert error < worst
    if sampler == "pndm_released":
        assert error > 5e-3


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ("ddim", [60, 59, 58, 57, 56, 55, 54, 53, 52, 51]),
        ("euler", [60, 59, 58, 57, 56, 55, 54, 53, 52, 51]),
        ("dpmpp", [60, 59, 58, 57, 56, 55, 54, 53, 52, 51]),
        ("pndm", [60, 59, 59, 58, 57, 56, 55, 54, 53, 52, 51]),
        ("pndm_released", [60, 59, 58, 57, 56, 55, 54, 53, 52, 51]),
        ("heun", [60, *(level for level in range(59, 50, -1) for _ in range(2)), 50]),
    ],
)
def test_the_timesteps_visited(epsilon: Backbone, sampler: str, expected: list[int]) -> None:
    visits: list[int] = []
    Denoise(steps=10, sampler=sampler).run(latents(), 50, gaussian("epsilon", visits), epsilon)
    assert visits == expected


def stock(scheduler: Any, timesteps: Tensor, predict: Callable[[Tensor, int], Tensor], noisy: Tensor) -> Tensor:
    """A pipeline's denoising loop."""
    for timestep in timesteps:
        prediction = predict(scheduler.scale_model_input(noisy, timestep), int(timestep))
        noisy = scheduler.step(prediction, timestep, noisy, return_dict=False)[0]
    return noisy


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_stock_schedulers_on_their_own_grid(epsilon: Backbone, velocity: Backbone, kind: str) -> None:
    backbone, predict, noisy = epsilon if kind == "epsilon" else velocity, gaussian(kind), latents()
    config = {**BETAS, "prediction_type": kind, "timestep_spacing": "leading", "steps_offset": 1}
    schedulers: dict[str, Any] = {
        "ddim": DDIMScheduler(**config, clip_sample=False),
        "euler": EulerDiscreteScheduler(**config),
    }
    if kind == "epsilon":  # the stock PNDM averages velocities of different levels
        schedulers["pndm"] = PNDMScheduler(**config, skip_prk_steps=True)
        schedulers["pndm_released"] = PNDMScheduler(**config, skip_prk_steps=True)
    for name, scheduler in schedulers.items():
        # the proper PNDM trajectory is the whole list from its top; the others start in its middle
        steps, count = (6, 100) if name == "pndm" else (11, 1000)
        scheduler.set_timesteps(count)
        stride = 1000 // count
        first = 0 if name == "pndm" else scheduler.timesteps.tolist().index(61)
        visited = scheduler.timesteps[first : first + steps + (name == "pndm")]
        read = int(visited[0]) - steps * stride
        # Euler's samples have signal 1
        before, after = (math.sqrt(ALPHAS[level]) if name == "euler" else 1.0 for level in (int(visited[0]), read))
        expected = stock(scheduler, visited, predict, noisy / before) * after
        actual = Denoise(steps, name, stride).run(noisy, read, predict, backbone)
        assert relative(actual, expected) < 1e-6, name


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_inversion_is_the_stock_one(epsilon: Backbone, velocity: Backbone, kind: str) -> None:
    backbone = epsilon if kind == "epsilon" else velocity
    visits: list[int] = []
    actual = Inversion().run(latents(), 51, gaussian(kind, visits), backbone)
    assert visits == [11, 21, 31, 41, 51]
    scheduler = DDIMInverseScheduler(
        **BETAS, prediction_type=kind, clip_sample=False, timestep_spacing="leading", steps_offset=1
    )
    scheduler.set_timesteps(100)
    assert relative(actual, stock(scheduler, scheduler.timesteps[1:6], gaussian(kind), latents())) < 1e-6


@pytest.mark.parametrize(
    ("timestep", "last", "expected"),
    [
        (0, "exact", [1]),
        (1, "exact", [1]),
        (5, "exact", [1, 5]),
        (51, "exact", [1, 11, 21, 31, 41, 51]),
        (56, "exact", [1, 11, 21, 31, 41, 51, 56]),
        (51, "grid", [1, 11, 21, 31, 41, 51]),
        (56, "grid", [1, 11, 21, 31, 41, 51, 61]),
        (1, "grid", [1]),
    ],
)
def test_the_levels_of_an_inversion(timestep: int, last: Any, expected: list[int]) -> None:
    assert Inversion(last=last).levels(timestep) == expected


def test_inversion_follows_the_flow_up_and_denoising_leads_back(epsilon: Backbone) -> None:
    clean = latents()
    up = Inversion(stride=1).run(clean, 201, gaussian("epsilon"), epsilon)
    assert relative(up, clean * math.sqrt(variance(201) / variance(1))) < 2e-2
    down = Denoise(steps=200).run(up, 1, gaussian("epsilon"), epsilon)
    assert relative(down, clean) < 2e-2


def test_half_precision_walks_in_single(epsilon: Backbone) -> None:
    # steps of one timestep change the latents by less than bfloat16 can say
    exact = Denoise(steps=100).run(latents(torch.float64), 50, gaussian("epsilon"), epsilon)
    half = Denoise(steps=100).run(latents(torch.bfloat16), 50, gaussian("epsilon"), epsilon)
    assert half.dtype == torch.bfloat16
    assert relative(half, exact) < 4e-3


def test_steps_within_the_schedule_only(epsilon: Backbone) -> None:
    Denoise(steps=949).check(epsilon, 50)
    with pytest.raises(ConfigError, match=r"starts at 1000, outside 0 … 999"):
        Denoise(steps=950).check(epsilon, 50)
    with pytest.raises(ConfigError, match="starts at 1050"):
        Denoise(steps=10, stride=100).check(epsilon, 50)
    Inversion().check(epsilon, 999)
    with pytest.raises(ConfigError, match="ends at 1001"):
        Inversion(last="grid").check(epsilon, 999)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Denoise(0), "denoise.steps=0"),
        (lambda: Denoise(True), "denoise.steps=True"),
        (lambda: Denoise(2, stride=0), "denoise.stride=0"),
        (lambda: Denoise(2, "ddpm"), "denoise.sampler='ddpm': did you mean ddim\\? expected one of ddim, pndm"),
        (lambda: Inversion(0), "inversion.stride=0"),
        (lambda: Inversion(first=-2), "inversion.first=-2"),
        (lambda: Inversion(told="last"), "inversion.told='last'"),  # type: ignore[arg-type]
        (lambda: Inversion(last="over"), "inversion.last='over'"),  # type: ignore[arg-type]
        (lambda: Denoise(2, "pndm", 3).prepare(build("one_repeat")), None),
        (lambda: Denoise(2, "pndm", 300).prepare(build("one_repeat")), "denoise.stride=300: the PNDM sampler"),
        (lambda: Denoise().prepare(build("pixels")), "pixels has no noise schedule; denoising"),
        (lambda: Inversion().prepare(build("pixels")), "pixels has no noise schedule; DDIM inversion"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object], message: str | None) -> None:
    if message is None:
        make()
        return
    with pytest.raises(ConfigError, match=message):
        make()


def test_samplers_get_a_zero_terminal_schedule() -> None:
    schedule = DiffusionSchedule({**BETAS, "rescale_betas_zero_snr": True})
    signal = [schedule.level(timestep)[0] for timestep in range(1000)]
    assert signal[999] == 0.0
    expected = DDPMScheduler(**BETAS, rescale_betas_zero_snr=True).alphas_cumprod
    torch.testing.assert_close(torch.tensor(signal) ** 2, expected)
    # whether or not they know that setting
    own = PNDMScheduler(num_train_timesteps=1000, trained_betas=schedule.betas)
    torch.testing.assert_close(own.alphas_cumprod, expected)


def test_inversion_of_hyperfeatures(epsilon: Backbone) -> None:
    def predict(latents: Tensor, timestep: int) -> Tensor:
        visits.append(timestep)
        return torch.tanh(latents * (1 + timestep / 500))

    visits: list[int] = []
    # those of its eleven maps, the last of its 50 calls among them
    expected = hyperfeatures(latents(), 50, predict)
    for label, timestep in ((49, -1), (45, 60), (40, 160), (0, 960)):
        visits.clear()
        actual = Inversion(stride=20, first=-1, told="current").run(latents(), timestep, predict, epsilon)
        assert visits == [-1, *range(0, 1000, 20)][: 49 - label]
        assert relative(actual.double(), expected[49 - label]) < 1e-6
    assert relative(Inversion(stride=20).run(latents(), 61, predict, epsilon).double(), expected[4]) > 1e-3


def test_clean_latents_are_told_so(epsilon: Backbone, velocity: Backbone) -> None:
    assert epsilon.schedule.level(-1) == (1.0, 0.0)
    start = latents()
    for backbone, kind in ((epsilon, "epsilon"), (velocity, "v_prediction")):
        backbone.check_timestep(-1)
        predict = gaussian(kind)
        moved = backbone.schedule.move(start, predict(start, 0), -1, 0)
        signal, sigma = backbone.schedule.level(0)
        noise = predict(start, 0)
        torch.testing.assert_close(moved, signal * start + sigma * noise)
    with pytest.raises(ConfigError, match="timestep=-1"):
        build("pixels").check_timestep(-1)
    with pytest.raises(ConfigError, match="ends at 0 at the lowest"):
        Denoise(steps=2).check(epsilon, -1)
