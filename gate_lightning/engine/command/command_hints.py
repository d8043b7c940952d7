"""Hints in messages about a command line: the key, group or value that was meant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from gate_lightning.engine.command.configuration import composed, config_folder
from gate_lightning.utils.checks import did_you_mean
from gate_lightning.utils.commands import override

__all__ = ["hint", "without_choice"]


def hint(error: Exception) -> str:
    """A sentence on a value that Hydra cannot parse, on a mistyped key, or on a tool that is taken for a task."""
    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        return f"\nIf the value of {key} is a text, quote it: {override(key, value)}"
    tool = re.search(r"'task/(\w+)'", str(error))
    if tool is not None and (config_folder() / "tool" / f"{tool.group(1)}.yaml").is_file():
        return f"\n{tool.group(1)} is a tool: python eval.py tool={tool.group(1)}"
    found = re.search(r"Could not override '([^']+)'", str(error))
    if found is None:
        return ""
    keys = sorted(set(_dotted_keys(OmegaConf.to_container(composed(name="eval")))) - {found.group(1)})
    if found.group(1) == "output":  # train.py has none, and what is near it in spelling is something else
        return "\nThe folder of a run: hydra.run.dir=<folder>"
    return f"\n{did_you_mean(found.group(1), keys).capitalize()}".rstrip()


def without_choice(arguments: Sequence[str]) -> str:
    """Message for groups given something else than the name of a choice: Hydra does not name them."""
    words = [word for word in arguments if "=" in word and not word.startswith("-")]
    found = []
    for one in OverridesParser.create().parse_overrides(words):
        values = one.sweep_string_iterator() if one.is_sweep_override() else [one.get_value_string()]
        if (config_folder() / one.key_or_group).is_dir():
            key = one.get_key_element()
            found += [(one.key_or_group, f"{key}={value}") for value in values if not _is_name(f"{key}={value}")]
    groups = ", ".join(f"--help {group}" for group in dict.fromkeys(group for group, _ in found))
    told = f"{', '.join(word for _, word in found)}: " if found else ""
    return f"{told}a group takes one of its choices, not null or a number; {groups or '--help <group>'} lists them"


def _is_name(word: str) -> bool:
    """True if an override sets a text, a list of some, or keys."""
    return isinstance(OverridesParser.create().parse_override(word).value(), str | list | dict)


def _dotted_keys(node: Any, above: str = "") -> Iterator[str]:
    """All keys of nested mappings, ``head`` and ``head.decode`` as well as ``head.decode.channels``."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{above}{key}"
        yield from _dotted_keys(value, f"{above}{key}.")
