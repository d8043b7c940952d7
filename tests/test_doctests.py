"""The examples in docstrings run and give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY


def modules_with_examples() -> list[str]:
    package = REPOSITORY / "gate_lightning"
    paths = [path for path in package.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")]
    return sorted(_name(path) for path in paths)


def _name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples(name: str) -> None:
    failed, attempted = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert attempted > 0
    assert failed == 0
