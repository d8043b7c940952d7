"""Checks of settings, shared by constructors."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Collection, Iterable
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any

from gate_lightning.errors import ConfigError

__all__ = ["a_path", "check_choice", "check_known", "check_type", "did_you_mean", "number", "shown", "whole_number"]

#: longest representation of a value in a message, in characters
_SHOWN = 80


def whole_number(value: Any, name: str, low: int = 0, high: int | None = None, *, optional: str = "") -> int:
    """``value`` as an int.

    Args:
        value: an int or an integer of NumPy; no bool, no float.
        name: of the setting, as the user typed it.
        low, high: smallest and largest allowed value; ``high`` None for no limit.
        optional: what None means, for the message, where None is allowed (the caller asks for it before).

    Raises:
        ConfigError: anything else, with the value found and the range expected.
    """
    if not isinstance(value, bool) and isinstance(value, Integral):
        number = int(value)
        if number >= low and (high is None or number <= high):
            return number
    allowed = f"a whole number from {low}" + ("" if high is None else f" to {high}")
    raise ConfigError(
        f"{name}={shown(value)}: expected {allowed}" + (f", or null (None) for {optional}" if optional else "")
    )


def number(value: Any, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """``value`` unchanged if it is an int or float (of NumPy too) in [low, high]; no bool, no text, no NaN.

    Raises:
        ConfigError: anything else, with the value found and the range expected.
    """
    if not isinstance(value, bool) and isinstance(value, int | float | Real):
        given = value if isinstance(value, int | float) else float(value)
        if low <= given <= high:  # a NaN is not
            return given
    limits = [f"of {low:g} or more"] if low > -math.inf else []
    limits += [f"up to {high:g}"] if high < math.inf else []
    raise ConfigError(f"{name}={shown(value)}: expected {' '.join(['a number', *limits])}")


def check_choice(value: Any, name: str, choices: Collection[str]) -> None:
    """Raise ConfigError unless ``value`` is one of ``choices``; the message has all of them and the nearest."""
    if not isinstance(value, str) or value not in choices:  # a list cannot be looked up
        raise ConfigError(f"{name}={shown(value)}: {did_you_mean(value, choices)}expected one of {', '.join(choices)}")


def check_type(value: Any, name: str, kind: type | UnionType, expected: str) -> None:
    """Raise ConfigError unless ``value`` is a ``kind``; the message has the value and says what is expected."""
    if not isinstance(value, kind):
        raise ConfigError(f"{name}={shown(value)}: expected {expected}")


def a_path(value: Any, name: str) -> Path:
    """``value`` as a path, with the home folder in place of ``~``; ConfigError for what is no text or path of text."""
    check_type(value, name, str | os.PathLike, "a path")
    try:
        return Path(value).expanduser()
    except (RuntimeError, TypeError) as error:  # ~somebody without a home; a path of bytes
        raise ConfigError(f"{name}={shown(value)}: expected a path; {error}") from error


def shown(value: Any) -> str:
    """A value for a message: as Python writes it, or its type where that is long or an address (tensors, networks)."""
    text = repr(value)
    if isinstance(value, str) or (len(text) <= _SHOWN and "\n" not in text and " at 0x" not in text):
        return text
    return f"<{type(value).__name__}>"


def check_known(given: Iterable[Any], known: Collection[str], where: str) -> None:
    """Raise ConfigError for the first of ``given`` that is not ``known``, naming the nearest."""
    for key in given:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; {did_you_mean(key, known)}expected of {', '.join(known)}")


def did_you_mean(name: Any, known: Iterable[str], count: int = 1) -> str:
    """``did you mean canny? `` with the nearest known names, or an empty string where none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=count)
    return f"did you mean {', '.join(near)}? " if near else ""
