"""Group counts."""

from __future__ import annotations

import pytest

from gate_lightning.errors import ConfigError
from gate_lightning.ops.normalization import group_count


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (5, 1), (8, 1), (24, 3), (30, 3), (64, 8), (97, 1), (256, 32), (640, 32), (1280, 32)],
)
def test_groups_divide_the_channels_and_keep_eight_of_them(channels, groups):
    assert group_count(channels) == groups
    assert channels % group_count(channels) == 0


def test_limits_are_arguments():
    assert group_count(64, max_groups=4) == 4
    assert group_count(64, min_group_size=1) == 32


def test_nothing_below_one_is_accepted():
    with pytest.raises(ConfigError, match="channels=0"):
        group_count(0)
