"""Read ``config.yaml`` of a run folder: plain values only, since anybody may have made the folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gate_lightning.errors import ConfigError, GateError, first_line
from gate_lightning.utils.text import read_text

__all__ = ["nodes_of", "of_saved", "read_saved"]

log = logging.getLogger(__name__)

#: far above any that train.py writes, far below what Python's recursion or a memory minds
_DEEPEST = 40
_LONGEST = 4 << 20
#: top-level keys that hold mappings, or null
_MAPPINGS = (
    *("task", "dataset", "backbone", "backbones", "technique", "amalgamation", "head", "loss", "optimizer"),
    *("scheduler", "trainer", "callbacks", "logger", "cache", "features", "paths", "trained_on"),
)
_ADVICE = "A run's config.yaml holds plain values, as train.py wrote them; restore it from a copy"


def read_saved(path: Path) -> DictConfig:
    """The configuration in ``config.yaml``.

    Raises:
        ConfigError: not readable, no YAML mapping, of another shape than a run's, or with what train.py never writes:
            aliases, tags, interpolations (``${oc.env:…}`` would be resolved on the reader's machine).
    """
    text = read_text(path, ConfigError)
    if len(text) > _LONGEST:
        raise ConfigError(f"{path} has {len(text):,} characters, more than {_LONGEST:,}. {_ADVICE}")
    try:
        _check_events(path, text)
        config: Any = OmegaConf.create(text)
        plain = OmegaConf.to_container(config)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{line} is no YAML: {getattr(error, 'problem', None) or error}. {_ADVICE}") from error
    except (OmegaConfBaseException, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is no configuration: {error}. {_ADVICE}") from error
    _check_shape(path, plain)
    assert isinstance(config, DictConfig)
    return config


@contextmanager
def of_saved(folder: Path) -> Iterator[None]:
    """Building from the configuration of a run folder, which is foreign: whatever it makes Python or a library raise.

    Raises:
        ConfigError: in its place, with the folder; errors of ours pass.
    """
    try:
        yield
    except GateError:
        raise
    except Exception as error:
        log.debug("building from %s", folder, exc_info=error)
        raise ConfigError(
            f"the configuration of {folder} cannot be built: {type(error).__name__}: {first_line(error)}. A key was "
            "changed to what does not fit, or config.yaml is damaged (hydra.verbose=true says where it happened)"
        ) from error


def nodes_of(node: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in nested plain data, the whole included under ``above``."""
    yield above, node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from nodes_of(value, f"{above}[{key}]" if isinstance(node, list) else f"{above}.{key}".lstrip("."))


def _check_events(path: Path, text: str) -> None:
    """Before anything is built: an alias can make a few lines of text fill the memory."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"{path}, line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{where}: a YAML alias (*{event.anchor}). {_ADVICE}")
        if getattr(event, "tag", None) is not None:
            raise ConfigError(f"{where}: a YAML tag ({event.tag}). {_ADVICE}")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            raise ConfigError(f"{where}: nested more than {_DEEPEST} deep. {_ADVICE}")


def _check_shape(path: Path, plain: Any) -> None:
    if not isinstance(plain, dict) or not isinstance(plain.get("task"), dict):
        raise ConfigError(f"{path} names no task, as the configuration of a run does (empty or cut?). {_ADVICE}")
    for key in plain:
        if not isinstance(key, str):
            raise ConfigError(f"{path}: the key {key!r} is no text. {_ADVICE}")
    for key in _MAPPINGS:
        if not isinstance(plain.get(key), dict | None):
            raise ConfigError(f"{path}: {key} is {plain[key]!r}, expected a mapping. {_ADVICE}")
    for key in ("seed", "repeats"):
        value = plain.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{path}: {key} is {value!r}, expected a whole number. {_ADVICE}")
    _check_values(path, plain)


def _check_values(path: Path, plain: Any) -> None:
    for key, value in nodes_of(plain):
        if isinstance(value, str) and "${" in value:
            raise ConfigError(f"{path}: {key} is the interpolation {value!r}. {_ADVICE}")
        if isinstance(value, dict) and any(isinstance(name, str) and "${" in name for name in value):
            raise ConfigError(f"{path}: {key or 'the whole'} has a key that is an interpolation. {_ADVICE}")
