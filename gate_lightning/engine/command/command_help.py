"""Text of ``--help``: the groups, keys and tools of ``conf/``, with the comments that stand beside them there."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from gate_lightning.engine.command.configuration import config_folder
from gate_lightning.errors import ConfigError
from gate_lightning.utils.checks import did_you_mean

__all__ = ["asked_help", "described", "described_choices", "help_text"]

#: of a defaults list: "  - head: upernet      # decode head: …"
_GROUP = re.compile(r"  - (?:optional )?(\w+): +(\S.*?)(?: +# (.*))?$")
#: a key of the first level: "timestep: 50      # DDPM training timestep …"
_KEY = re.compile(r"(\w+):(?: +(\S.*?))?(?: +# (.*))$")
_MORE = """\
More
  {command} --help <group>         its choices, for example --help backbone
  {command} --cfg job [key=value]  the whole configuration that a command would use; --info: how it was put together
  {command} --hydra-help           Hydra's own options
  All keys of a choice, with what they mean: {folder}/<group>/<choice>.yaml. Guides: README.md and docs/
  Tab completion: eval "$({command} -sc install=bash)", or zsh, fish in place of bash (docs/terminal.md)
"""


def asked_help(arguments: Sequence[str]) -> bool:
    """True if a command line asks for help."""
    return any(word in ("--help", "-h") for word in arguments)


def help_text(name: str, arguments: Sequence[str]) -> str:
    """Help of a command, or of the groups that its arguments name.

    Args:
        name: of the command: ``train`` or ``eval``.
        arguments: of the command line; words that are neither options nor overrides are groups.

    Raises:
        ConfigError: there is no such group.
    """
    groups = [word for word in arguments if not word.startswith("-") and "=" not in word]
    if groups:
        return "\n".join(_group_help(group) for group in groups)
    return _command_help(name)


def described(path: Path) -> str:
    """First sentence of the comment at the head of a configuration file, without its commands; empty where none is."""
    words: list[str] = []
    for line in path.read_text().splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or (words and text.startswith("python ")):
            break
        if not text.startswith(("@package", "python ")):
            words += text.split()
    return re.split(r"(?<=[^.\d])\. | (?=(?:Command|Expected|Paper): )", " ".join(words).removeprefix("Purpose: "))[
        0
    ].rstrip(".")


def described_choices(group: str) -> list[tuple[str, str]]:
    """Choices of a group and what each is."""
    return [(path.stem, described(path)) for path in _choices(config_folder() / group)]


def _command_help(name: str) -> str:
    folder, command = config_folder(), f"python {name}.py"
    usage, *examples = _commands(folder / f"{name}.yaml")
    parts = [f"Usage: {usage[0]}", "\nExamples", *_rows(examples)]
    if name == "eval":
        tools = [(f"tool={tool}", about) for tool, about in described_choices("tool") if tool != "none"]
        parts += ["\nTools", *_rows(tools), f"\nKeys, beside those of train.py ({folder / 'train.yaml'})"]
    else:
        listed = list(_groups(folder / "train.yaml"))
        parts += ["\nGroups, with the choice that is taken if none is named", *_rows(listed)]
        parts += [f"\nKeys ({folder / 'train.yaml'})"]
    parts += [*_rows(_keys(folder / f"{name}.yaml")), "", _MORE.format(command=command, folder=folder)]
    return "\n".join(parts)


def _group_help(group: str) -> str:
    folder = config_folder()
    known = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not (folder / group).is_dir() or group.startswith((".", "/")):
        raise ConfigError(f"--help {group}: {did_you_mean(group, known)}there are the groups {', '.join(known)}")
    places = {path.parent for path in _choices(folder / group)}
    parts = []
    for place in sorted(places):
        name = place.relative_to(folder)
        of_kind = [path for path in _choices(place) if path.parent == place]
        # experiments are named by their path, other groups inside a group are groups of their own
        above = f"{name.relative_to('experiment')}/" if name.parts[0] == "experiment" and len(name.parts) > 1 else ""
        key = "experiment" if name.parts[0] == "experiment" else str(name)
        parts += [f"{key}=", *_rows([(above + path.stem, described(path)) for path in of_kind]), ""]
    return "\n".join([*parts, f"Their keys, with what they mean: {folder / group}/<choice>.yaml"])


def _choices(folder: Path) -> list[Path]:
    """Files of a group and of the groups inside it that can be chosen; private ones begin with an underscore."""
    found = sorted(folder.rglob("*.yaml"))
    return [path for path in found if not any(part.startswith("_") for part in path.relative_to(folder).parts)]


def _commands(path: Path) -> list[tuple[str, str]]:
    """Commands at the head of a file, and what stands behind them."""
    found = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        command, _, about = line.removeprefix("#").strip().partition("   ")
        found.append((command, about.strip()))
    return found


def _groups(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text().splitlines():
        match = _GROUP.match(line)
        if match:
            group, choice, comment = match.groups()
            # several choices at once: each is there under its own name
            yield f"{group}.…" if choice.startswith("[") else f"{group}={choice}", comment or ""


def _keys(path: Path) -> list[tuple[str, str]]:
    """Keys of the first level that have a comment, their values and the comments."""
    rows: list[tuple[str, str]] = []
    comments_go_on = False
    for line in path.read_text().splitlines():
        match, more = _KEY.match(line), re.match(r"\s+# (.*)", line)
        if match:
            key, value, comment = match.groups()
            rows.append((f"{key}={value}" if value else f"{key}.…", comment))
        elif more and comments_go_on:
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {more.group(1)}")
        comments_go_on = bool(match) or bool(more and comments_go_on)
    return rows


def _rows(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Two columns, wrapped to the width of the terminal."""
    total = min(max(shutil.get_terminal_size((120, 24)).columns, 60), 140)
    width = min(max((len(left) for left, _ in rows), default=0), total // 2)
    lines = []
    for left, right in rows:
        indent = " " * (width + 4)
        wrapped = textwrap.wrap(right, total - len(indent), break_on_hyphens=False) or [""]
        if len(left) > width:
            lines.append(f"  {left}")
            lines += [indent + line for line in wrapped if line]
        else:
            lines.append(f"  {left:{width}}  {wrapped[0]}".rstrip())
            lines += [indent + line for line in wrapped[1:]]
    return lines
