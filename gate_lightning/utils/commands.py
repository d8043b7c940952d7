"""Command-line overrides as a shell and Hydra's grammar read them, for messages."""

from __future__ import annotations

import re
import shlex
from typing import Any

__all__ = ["override", "quoted"]

#: what neither a shell nor Hydra takes for something else
_PLAIN = re.compile(r"[A-Za-z_/.][\w/.+@%-]*", re.ASCII)
_WORDS = ("null", "true", "false", "nan", "inf", ".")


def override(key: str, value: Any) -> str:
    """``key=value`` as it must be typed: quoted where a path holds blanks, ``=`` and the like.

    >>> override("run", "outputs/2026-01-01"), override("dataset.root", "/a b=c")
    ('run=outputs/2026-01-01', '"dataset.root=\\'/a b=c\\'"')
    """
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return f"{key}={text}"
    whole = f"{key}={quoted(text)}"
    # double quotes are easier to read; a shell looks for these signs inside them
    return shlex.quote(whole) if re.search(r'["$`\\!\n]', whole) else f'"{whole}"'


def quoted(text: str) -> str:
    """A text in single quotes of Hydra's grammar: backslashes count only before a quote, ``${`` interpolates."""
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    text = re.sub(r"(\\+)$", r"\1\1", text)
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return f"'{text}'"
