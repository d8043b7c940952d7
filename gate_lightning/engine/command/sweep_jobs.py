"""Settings that the jobs of a sweep share although not all of them read them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from gate_lightning.engine.command.configuration import composed
from gate_lightning.engine.command.used_keys import unread

__all__ = ["own_overrides"]

log = logging.getLogger(__name__)

#: of a composed configuration: the top-level keys that a run reads
Keys = Callable[[DictConfig], Collection[str]]


def own_overrides(config: DictConfig, keys: Keys) -> list[str]:
    """Overrides of this job, without those that it does not read and another job of its sweep does.

    Looked at are the jobs that differ from the sweep's first one in one value; those of Hydra's own sweeper.

    Args:
        config: composed configuration of the job.
        keys: what a job reads.
    """
    job = HydraConfig.get()
    overrides = [str(one) for one in job.overrides.task]
    if job.mode != RunMode.MULTIRUN or not str(job.sweeper._target_).startswith("hydra._internal.core_plugins."):
        return overrides
    left = unread(overrides, keys(config))
    if not left:
        return overrides
    words = [f"{key}={value}" for key, value in (job.sweeper.get("params") or {}).items()]
    words += [word for word in sys.argv[1:] if not word.startswith(("-", "hydra.", "hydra/", "+hydra.", "++hydra."))]
    mistakes = _unread_by_all(tuple(words), str(job.job.config_name), keys, tuple(left))
    shared = [one for one in left if one not in mistakes]
    if shared:
        log.info("%s: read by other jobs of this sweep, not by this one", ", ".join(shared))
    return [one for one in overrides if one not in shared]


@lru_cache(maxsize=64)
def _unread_by_all(words: tuple[str, ...], name: str, keys: Keys, left: tuple[str, ...]) -> tuple[str, ...]:
    """Overrides of ``left`` that none of the jobs reads."""
    for job in _jobs(words):
        if not left:
            break
        left = tuple(unread(left, keys(composed(*job, name=name))))
    return left


def _jobs(words: Sequence[str]) -> Iterator[list[str]]:
    """Overrides of the first job of a sweep, and of those that differ from it in one value."""
    parsed = OverridesParser.create().parse_overrides(list(words))
    values = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [str(one.input_line)]
        for one in parsed
    ]
    first = [options[0] for options in values]
    yield first
    for place, options in enumerate(values):
        yield from ([*first[:place], other, *first[place + 1 :]] for other in options[1:])
