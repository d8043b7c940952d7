"""Objects from nodes of the configuration; a value or a part of the wrong kind is told of by its key."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from gate_lightning.errors import ConfigError, GateError
from gate_lightning.utils.protocols import is_protocol

__all__ = ["built", "built_group", "call_with", "called", "check_kinds", "check_values"]

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}


def built(node: Any, where: str, **arguments: Any) -> Any:
    """The object that a node describes. An error of ours keeps its type and message, which Hydra would wrap.

    Args:
        node: mapping with a ``_target_``.
        where: its key, for messages.
        arguments: further ones of the target.

    Raises:
        ConfigError: a value is not of the kind that the target's annotations name, or the target refuses it.
    """
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    check_values(plain, where)
    try:
        return instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, GateError):
            raise error.__cause__ from None
        raise ConfigError(" ".join(str(error).replace("full_key:", "of key").split())) from error


def built_group(config: Any, group: str, **arguments: Any) -> Any:
    """The object of a group of the configuration.

    Raises:
        ConfigError: as for `built`, or there is no such group.
    """
    node = config.get(group)
    if node is None:
        raise ConfigError(f"the configuration has no {group}; choose one: {group}=<name> (see conf/{group}/)")
    return built(node, group, **arguments)


def call_with(function: Callable[..., Any], **available: Any) -> Any:
    """Call with those of ``available`` that the signature names and that are not bound already."""
    if not isinstance(function, partial):
        raise ConfigError(f"{function!r} is already built; its configuration needs `_partial_: true`")
    parameters = inspect.signature(function.func).parameters
    given = {name: value for name, value in available.items() if name in parameters and name not in function.keywords}
    return called(function, object, **given)


def called(function: partial[Any], kind: type, *arguments: Any, **given: Any) -> Any:
    """Call a partial, and check that its result is of ``kind``.

    Raises:
        ConfigError: it refuses the arguments, or returns something else.
    """
    name = f"{function.func.__module__}.{getattr(function.func, '__qualname__', function.func)}"
    try:
        made = function(*arguments, **given)
    except (TypeError, ValueError) as error:  # what constructors of libraries raise of wrong arguments
        if isinstance(error, GateError):
            raise
        given_keys = ", ".join([*function.keywords, *given])
        raise ConfigError(f"{name}, given {given_keys or 'nothing'}: {error}") from error
    if not isinstance(made, kind):
        raise ConfigError(f"{name} makes a {type(made).__name__}, expected a {kind.__name__}")
    return made


def check_values(node: Any, where: str) -> None:
    """Compare the values of a node, and of those inside it, with the annotations of what takes them.

    Raises:
        ConfigError: a text where a number belongs, and the like; names the key and what is expected.
    """
    if isinstance(node, list | tuple):
        for index, item in enumerate(node):
            check_values(item, f"{where}[{index}]")
    if not isinstance(node, Mapping):
        return
    hints = _hints(node.get("_target_"))
    for key, value in node.items():
        if isinstance(value, Mapping | list | tuple):
            check_values(value, f"{where}.{key}")
        if key in hints and value is not None and not _fits(value, hints[key]):
            raise ConfigError(f"{where}.{key}={value!r}: expected {_expected(hints[key])}")


def check_kinds(target: type, parts: Mapping[str, Any]) -> None:
    """Compare parts with the classes that the annotations of a constructor name.

    Raises:
        ConfigError: one is of another class.
    """
    hints = _hints(f"{target.__module__}.{target.__qualname__}")
    for name, part in parts.items():
        hint = hints.get(name)
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kinds = tuple(one for one in options if isinstance(one, type) and not is_protocol(one))
        if part is not None and kinds and len(kinds) == len(options) and not isinstance(part, kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
            raise ConfigError(f"{name} is a {type(part).__name__}; {target.__name__} takes a {wanted}")


def _hints(target: Any) -> dict[str, Any]:
    """Annotations of the arguments of a class or function; empty where they cannot be had."""
    try:
        found = get_object(str(target)) if target is not None else None
        made = found.__init__ if isinstance(found, type) else found  # type: ignore[misc]
        return typing.get_type_hints(made) if callable(made) else {}
    except Exception:  # no such target (building it says so), or annotations that only type checkers can read
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """True if a plain value may stand where ``hint`` is annotated; True where that cannot be told."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in options)
    if origin is typing.Literal:
        return value in options
    kind = origin or hint
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    if kind in (str, Path):  # a name that looks like a number is one
        return not isinstance(value, Mapping | list | tuple | bool)
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if kind is type(None):
        return False
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return isinstance(value, Mapping)
    if isinstance(kind, type) and issubclass(kind, Sequence):
        return isinstance(value, list | tuple)
    return not isinstance(value, str | int | float) if isinstance(kind, type) and kind.__module__ == "torch" else True


def _expected(hint: Any) -> str:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        # of what no configuration can hold there is nothing to say
        words = (_expected(option) for option in options if getattr(option, "__module__", "") != "torch")
        return " or ".join(dict.fromkeys(words))
    if origin is typing.Literal:
        return " or ".join(map(str, options))
    if hint is type(None):
        return "null"
    kind = origin or hint
    if isinstance(kind, type) and issubclass(kind, Mapping | Sequence) and kind is not str:
        return "keys and values" if issubclass(kind, Mapping) else "a list"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))
