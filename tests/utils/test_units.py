"""Bytes and seconds for people."""

from __future__ import annotations

import pytest

from gate_lightning.utils.units import duration, human_size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (3 * 2**20, "3 MiB"),
        (1.726 * 2**30, "1.73 GiB"),
        (2**41, "2 TiB"),
    ],
)
def test_bytes(count: float, text: str) -> None:
    assert human_size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.42 s"), (42, "42 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (59.7, "1 min 00 s")],
)
def test_seconds(seconds: float, text: str) -> None:
    assert duration(seconds) == text
