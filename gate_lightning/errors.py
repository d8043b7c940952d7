"""Errors that say what was found, what was expected and what to do.

The entry points print these without a traceback; library users catch ``GateError``.
"""

from __future__ import annotations

import signal

__all__ = [
    "CacheError",
    "ConfigError",
    "DataError",
    "GateError",
    "Interrupted",
    "NotFiniteError",
    "ResumeError",
    "WeightsError",
    "first_line",
]


class GateError(Exception):
    """Base of every error this package raises on purpose."""


class CacheError(GateError, RuntimeError):
    """Stored features cannot be used or written: other settings, a damaged file, a full disk."""


class ConfigError(GateError, ValueError):
    """A setting, argument or combination of them cannot work."""


class DataError(GateError, ValueError):
    """A data set, image, mask, caption or palette file is missing or broken."""


class WeightsError(GateError, ValueError):
    """Pre-trained weights are missing, broken, or made for another architecture."""


class ResumeError(GateError, RuntimeError):
    """A run cannot go on as asked: changed configuration, world size or checkpoint."""


class NotFiniteError(GateError, ArithmeticError):
    """Features, a loss, gradients, weights or predictions hold NaN or infinite values."""


class Interrupted(GateError):  # noqa: N818 - nothing went wrong
    """A run was stopped by a signal; the message says how to go on.

    Args:
        message: where it stopped, by which signal, and how to go on.
        number: of the signal.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal = signal.Signals(number)

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return type(self), (str(self), int(self.signal))


def first_line(error: BaseException) -> str:
    """First line of an error's message, or its class where there is no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
