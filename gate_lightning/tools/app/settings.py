"""Settings that the page offers, as the words of a command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gate_lightning.errors import ConfigError
from gate_lightning.tools.matching import PartsOf
from gate_lightning.utils.checks import check_choice, whole_number
from gate_lightning.utils.commands import override, quoted

__all__ = ["AS_GIVEN", "Settings", "command", "video_command", "words"]

#: stands for branches that were given on the command line, which the page cannot show as names
AS_GIVEN = "as on the command line"
#: keys of the page itself, which the matches of a pair do not have
_OWN = frozenset(
    {"tool", "tool.port", "tool.memory_gib", "tool.output", "tool.frames", "output", "source", "target", "targets"}
)
#: names of layers: ids, aliases such as up_blocks[1], presets
_LAYER = re.compile(r"[\w.\-\[\]]+", re.ASCII)


@dataclass(frozen=True)
class Settings:
    """Settings by which images are read.

    What comes from a browser becomes part of a command line that may name any program: names are checked here, and
    nothing else is let through.

    Args:
        backbone: option of ``conf/backbone``.
        timestep: noise level.
        layers: layer ids, aliases or presets.
        techniques: names of one branch's techniques, none for plain features; ("all",) or (`AS_GIVEN`,) alone.
        ensemble: noises whose features are averaged.
        prompt: text of the technique ``prompt``; "" for the one of the command line.

    Raises:
        ConfigError: a value of another form.
    """

    backbone: str
    timestep: int
    layers: tuple[str, ...]
    techniques: tuple[str, ...]
    ensemble: int
    prompt: str = ""

    def __post_init__(self) -> None:
        whole_number(self.timestep, "timestep", 0)
        whole_number(self.ensemble, "ensemble", 1)
        if not self.layers:
            raise ConfigError("no layer is chosen; choose a preset or layers of the backbone")
        for name in self.layers:
            if not _LAYER.fullmatch(name):
                raise ConfigError(f"layers: {name!r} is no name of a layer or preset")
        alone = [name for name in ("all", AS_GIVEN) if name in self.techniques]
        if alone and len(self.techniques) > 1:
            raise ConfigError(
                f"techniques: {alone[0]!r} stands for branches of its own; choose it alone, or the others"
            )
        if not self.prompt.isprintable():
            raise ConfigError("the prompt has more than one line, or signs that cannot be shown; expected one line")

    def check(self, backbones: Iterable[str], techniques: Iterable[str]) -> None:
        """Raise ConfigError for a backbone or technique that is not among the known ones."""
        check_choice(self.backbone, "backbone", list(backbones))
        for name in self.techniques:
            check_choice(name, "techniques", list(techniques))

    @classmethod
    def of_command(cls, parts_of: PartsOf) -> Settings:
        """Settings of the command line."""
        layers, techniques = parts_of.value("layers"), parts_of.value("techniques")
        listed = [techniques] if isinstance(techniques, str) else list(techniques or ())
        named = all(isinstance(name, str) for name in listed)
        return cls(
            backbone=parts_of.choice("backbone"),
            timestep=parts_of.value("timestep"),
            layers=(layers,) if isinstance(layers, str) else tuple(layers),
            techniques=tuple(name for name in listed if name != "none") if named else (AS_GIVEN,),
            ensemble=parts_of.value("ensemble"),
        )


def words(overrides: Sequence[str], initial: Settings, settings: Settings) -> tuple[str, ...]:
    """Overrides by which ``tool=match`` reads images as the page does.

    Args:
        overrides: those of the page's command line; what settings replace is left out, and keys of a backbone that was
            changed for another one.
        initial: settings of that command line.
        settings: those of the page now.
    """
    set_here = {"backbone", "timestep", "layers", "ensemble"}
    found = [f"backbone={settings.backbone}", f"timestep={settings.timestep}", f"layers={_listed(settings.layers)}"]
    if AS_GIVEN not in settings.techniques:
        set_here.add("techniques")
        found.append(f"techniques={_techniques(settings.techniques)}")
    found.append(f"ensemble={settings.ensemble}")
    if settings.prompt and "prompt" in settings.techniques:
        set_here.add("technique.prompt.text")
        found.append(f"technique.prompt.text={quoted(settings.prompt)}")
    changed = settings.backbone != initial.backbone
    kept = [
        one
        for one in overrides
        if (key := one.partition("=")[0].lstrip("+~")) not in set_here | _OWN
        and not (changed and key.startswith("backbone."))
    ]
    return (*kept, *found)


def command(words: Sequence[str], source: Path, target: Path, point: Sequence[float]) -> str:
    """The command that matches a point of an image with another image, for a shell."""
    pair = [override("source", source), override("target", target), f'"points=[[{point[0]:.10g},{point[1]:.10g}]]"']
    return " ".join(["python eval.py tool=match", *map(shlex.quote, words), *pair])


def video_command(words: Sequence[str], frames: Path, mask: Path, short_side: int, prompt: str) -> str:
    """The command that follows a mask through a video as the page does, for a shell.

    Args:
        words: as of `words`; keys of tools, and a data set that gave the prompt, are left out.
        frames: folder or video file.
        mask: of the first frame.
        short_side: of the frames that the backbone sees.
        prompt: for all frames.
    """
    kept = [one for one in words if not one.lstrip("+~").startswith(("tool.", "dataset"))]
    given = [override("dataset.frames", frames), override("dataset.masks", mask), f"dataset.short_side={short_side}"]
    return " ".join(
        [
            *("python eval.py task=video dataset=video", *given, override("dataset.prompt", prompt)),
            *map(shlex.quote, kept),
        ]
    )


def _listed(names: Sequence[Any]) -> str:
    """One name, or a list of them, in Hydra's grammar."""
    texts = [name if re.fullmatch(r"[A-Za-z_][\w.-]*", name) else quoted(name) for name in names]
    return texts[0] if len(texts) == 1 else f"[{','.join(texts)}]"


def _techniques(names: Sequence[str]) -> str:
    return _listed(names) if names else "none"
