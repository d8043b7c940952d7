"""Checks of settings name what was found, what was expected and the nearest name."""

from __future__ import annotations

import numpy as np
import pytest

from gate_lightning.errors import ConfigError
from gate_lightning.utils.checks import check_choice, check_known, did_you_mean, whole_number


@pytest.mark.parametrize("value", [0, 5, np.int64(5), np.uint8(0)])
def test_whole_numbers_come_back_as_int(value: object) -> None:
    assert type(whole_number(value, "steps", 0, 5)) is int


@pytest.mark.parametrize("value", [True, 1.0, "3", None, -1, 6, np.float32(2)])
def test_anything_else_is_refused_with_the_range(value: object) -> None:
    with pytest.raises(ConfigError, match=r"steps=.*: expected a whole number from 0 to 5"):
        whole_number(value, "steps", 0, 5)


def test_names() -> None:
    check_choice("canny", "controlnet", ("canny", "depth"))
    with pytest.raises(ConfigError, match=r"controlnet='cany': did you mean canny\? expected one of canny, depth"):
        check_choice("cany", "controlnet", ("canny", "depth"))
    with pytest.raises(
        ConfigError, match=r"branch 0: unknown key 'layer'; did you mean layers\? expected of layers, name"
    ):
        check_known({"name": 1, "layer": 2}, ("layers", "name"), "branch 0")
    assert did_you_mean("zzz", ("canny",)) == ""
