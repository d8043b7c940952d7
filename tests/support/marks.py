"""Which parameters of a test run by default."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest

__all__ = ["thorough_but"]


def thorough_but(quick: Container[Any], values: Iterable[Any]) -> list[Any]:
    """Parameters of a test; those not in ``quick`` are marked thorough."""
    return [value if value in quick else pytest.param(value, marks=pytest.mark.thorough) for value in values]
