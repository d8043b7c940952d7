"""Secrets: refused on the command line, before anything is written, and left out of what a run writes.

Command lines are seen by everybody on a machine and kept by shells, so a secret belongs into the environment:
``logger.mine.api_key=${oc.env:MY_KEY}``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write

from gate_lightning.engine.checks.saved_config import nodes_of
from gate_lightning.errors import ConfigError

__all__ = ["HIDDEN", "HideSecrets", "hidden_keys", "redacted", "redacted_override", "refuse_secrets"]

#: what stands for a secret in files
HIDDEN = "***"
#: last part of a key: passwords, keys of services, their tokens (those of a text, like pad_token, are none)
_KEY = re.compile(
    r"(?:.*_)?(?:password|passwd|passphrase|secret|secrets|credential|credentials|api_?key|access_?key|private_?key"
    r"|secret_?key)|authorization|token|(?:.*_)?(?:hf|hub|huggingface|wandb|github|gitlab|aws|api|auth|access|bearer|refresh|session)"
    r"_token",
    re.IGNORECASE,
)
#: user:password@ in an address, and the tokens of two services, behind what tells them
_VALUE = re.compile(
    r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)|(?<=\bhf_)[A-Za-z0-9]{20,}|(?<=\bgh[a-z]_)[A-Za-z0-9]{20,}"
    r"|(?<=\bgithub_pat_)\w{20,}"
)
#: what is left of these; asterisks elsewhere are somebody's words
_LEFT = re.compile(r"(?:://|\bhf_|\bgh[a-z]_|\bgithub_pat_)\*\*\*")
#: key and value in an override, or in a mapping inside one
_PAIR = re.compile(r"([\w.]+)['\"]?\s*[=:]\s*(\"[^\"]*\"|'[^']*'|\$\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]]*)")
#: values that give nothing away
_OPEN = re.compile(r"['\"]?(?:\$\{.*\}|null|none|\?{3}|true|false|)['\"]?", re.IGNORECASE | re.DOTALL)


def refuse_secrets(arguments: Sequence[str]) -> None:
    """Refuse a command line that has a secret in it.

    Raises:
        ConfigError: names the key, and how to give its value.
    """
    for argument in arguments:
        key = argument.split("=", 1)[0]
        for name, value in _PAIR.findall(argument):
            if _is_secret(name) and not _is_open(value):
                key = key if name == key.lstrip("+") else f"{key}: {name}"
                break
        else:
            if not _VALUE.search(argument):
                continue
        raise ConfigError(
            f"{key} is given a secret on the command line, where other users and the shell's history see it. Put it "
            f"into an environment variable and name that: '{argument.split('=', 1)[0]}=${{oc.env:<VARIABLE>}}'. "
            "WANDB_API_KEY, HF_TOKEN and ~/.netrc are read without being named"
        )


def redacted(value: Any) -> Any:
    """A copy of plain data in which secrets are ``***``."""
    if isinstance(value, dict):
        return {key: HIDDEN if _is_secret(key) and not _is_open(one) else redacted(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(one) for one in value]
    return _VALUE.sub(HIDDEN, value) if isinstance(value, str) else value


def redacted_override(override: str) -> str:
    """An override in which secrets are ``***``: a sweep's, for example, that stands in a file."""

    def shown(found: re.Match[str]) -> str:
        name, value = found.groups()
        if not _is_secret(name) or _is_open(value):
            return found.group()
        return found.group().replace(value, HIDDEN)

    key, sign, value = override.partition("=")
    if sign and _is_secret(key) and not _is_open(value):
        return f"{key}={HIDDEN}"
    return str(redacted(_PAIR.sub(shown, override)))


def hidden_keys(plain: Any) -> list[str]:
    """Dotted keys whose values were left out of a saved configuration."""
    texts = ((key, value) for key, value in nodes_of(plain) if isinstance(value, str))
    return [key for key, value in texts if (value == HIDDEN and _is_secret(key)) or _LEFT.search(value)]


class HideSecrets(Callback):
    """Keeps secrets of one's own configuration files out of the ``multirun.yaml`` that Hydra writes.

    The jobs of the sweep compose their configurations anew, with them.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Replace them in the configuration that is about to be written."""
        with read_write(config), open_dict(config):
            _hide(config)


def _hide(node: DictConfig | ListConfig) -> None:
    """Redact in place; interpolations stay, since Hydra writes them as they are."""
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        if OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key):  # type: ignore[arg-type]
            continue
        value = node[key]
        if isinstance(value, DictConfig | ListConfig):
            _hide(value)
        elif redacted({key: value}) != {key: value}:
            node[key] = redacted({key: value})[key]


def _is_secret(key: Any) -> bool:
    return isinstance(key, str) and _KEY.fullmatch(key.rsplit(".", 1)[-1]) is not None


def _is_open(value: Any) -> bool:
    """True if a value, as text or parsed, gives nothing away."""
    return value is None or isinstance(value, bool) or _OPEN.fullmatch(str(value).strip()) is not None
