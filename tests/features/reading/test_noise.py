from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from gate_lightning.features.reading.noise import batch_noise
from gate_lightning.structures import Conditions
from gate_lightning.utils.seeding import keyed_noise
from tests.support.paths import REPOSITORY
from tests.support.small_networks import conditions

KEY = ("diffusion", 3, "horse/1.png", "", (0, 16), 0, 2)


@pytest.mark.slow
def test_another_process_draws_the_same_bits() -> None:
    code = (
        "from gate_lightning.utils.seeding import keyed_noise;"
        f"print(keyed_noise((4, 6, 5), *{KEY!r}).numpy().tobytes().hex())"
    )
    command = [sys.executable, "-c", code]
    environment = {"PYTHONHASHSEED": "77", "PYTHONPATH": str(REPOSITORY)}
    other = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()
    assert keyed_noise((4, 6, 5), *KEY).numpy().tobytes().hex() == other


def test_a_sample_draws_the_same_bits_in_any_batch_and_order() -> None:
    whole = batch_noise((4, 8, 8), conditions(4), seed=0)
    for index in (3, 0, 2):
        alone = batch_noise((4, 8, 8), Conditions((f"s{index}",)), seed=0)
        assert torch.equal(alone[0], whole[index])


def test_global_random_state_takes_no_part() -> None:
    torch.manual_seed(1)
    one = keyed_noise((4, 8, 8), *KEY)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(one, keyed_noise((4, 8, 8), *KEY))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("position", range(len(KEY)))
def test_every_part_of_the_key_counts(position: int) -> None:
    other = list(KEY)
    other[position] = {str: "x", int: 9, tuple: (16, 0)}[type(KEY[position])]
    assert not torch.equal(keyed_noise((16,), *KEY), keyed_noise((16,), *other))


@pytest.mark.parametrize(
    "change",
    [{"sample_ids": ("t",)}, {"views": ("flip",)}, {"windows": ((0, 8),)}],
)
def test_sample_view_and_window_count(change: dict[str, object]) -> None:
    base = {"sample_ids": ("s",), "views": ("",), "windows": ((0, 0),)}
    one, other = (batch_noise((4, 4, 4), Conditions(**values), 0) for values in (base, {**base, **change}))
    assert not torch.equal(one, other)


def test_neighbouring_keys_do_not_run_into_each_other() -> None:
    assert not torch.equal(keyed_noise((8,), "a", "bc"), keyed_noise((8,), "ab", "c"))


def test_noise_is_standard_normal_and_uncorrelated_between_keys() -> None:
    draws = torch.stack([keyed_noise((4096,), "s", index) for index in range(64)])
    assert abs(draws.mean()) < 5 / (64 * 4096) ** 0.5
    assert abs(draws.std() - 1) < 0.01
    correlation = torch.corrcoef(draws) - torch.eye(64)
    assert correlation.abs().max() < 6 / 4096**0.5
    assert draws.dtype == torch.float32
