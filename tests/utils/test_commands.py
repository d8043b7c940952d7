"""Printed overrides say the same to a shell and to Hydra."""

from __future__ import annotations

import random
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from gate_lightning.utils.commands import override

AWKWARD = [
    "/a b=c",
    "123",
    "null",
    "/a'b",
    "/a\\",
    "/a${b}",
    "~/x",
    "C:\\x y",
    "/ü",
    "[x]",
    "a,b",
    " a",
    "",
    "a\nb",
    ".",
]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_printed_can_be_typed(seed: int) -> None:
    """Parsers of the shell and of Hydra, and OmegaConf's interpolation, give back the path."""
    pick, parser = random.Random(seed), OverridesParser.create()
    made = ["".join(pick.choice("ab'\\\"${} =,/!#") for _ in range(pick.randint(1, 8))) for _ in range(200)]
    for path in [*AWKWARD, *made]:
        (word,) = shlex.split(override("dataset.root", path))
        parsed = parser.parse_override(word)
        assert parsed.key_or_group == "dataset.root"
        assert OmegaConf.create({"x": parsed.value()}).x == path


def test_plain_paths_are_not_quoted() -> None:
    assert override("resume", "outputs/2026-01-01/12-00-00") == "resume=outputs/2026-01-01/12-00-00"
    assert override("dataset.root", "/a b=c") == "\"dataset.root='/a b=c'\""
