"""Check of the paths in a run folder: its reader writes into the folder itself, or where the reader says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gate_lightning.engine.checks.saved_config import nodes_of
from gate_lightning.errors import ConfigError
from gate_lightning.utils.commands import override

__all__ = ["INSIDE", "check_links", "check_writes", "located", "typed"]

#: prefix, in a configuration, of paths inside the run folder, so that a run folder can be moved
INSIDE = "run:"
#: settings that name a folder that is written into, by whoever reads features or data
_FOLDERS = ("cache.folder", "dataset.cache", "task.data.cache")
#: … and by training alone
_OF_TRAINING = ("task.store_folder", "callbacks.export.folder")
#: arguments of callbacks, loggers and the trainer that name one
_NAMES = ("folder", "output")
#: … and that name one of whatever part, wherever it stands
_ANYWHERE = ("run_folder", "dirpath", "save_dir", "log_dir", "default_root_dir", "root_dir", "cache", "store_folder")


def located(place: str | None, folder: str | Path) -> str | None:
    """A path of a configuration, ``run:name`` resolved inside the run folder (None where there is no run folder)."""
    if place is None or not place.startswith(INSIDE):
        return place
    return str(Path(folder) / place.removeprefix(INSIDE)) if str(folder) else None


def check_writes(config: DictConfig, folder: Path, said: DictConfig | None, training: bool) -> None:
    """Refuse a saved configuration by which files outside the run folder would be written.

    A folder of features that is there already, and is one, may be gone on with: it refuses those of other settings.

    Args:
        config: of the run folder, with what the command line changed.
        folder: the run folder.
        said: what the reader's own command line and conf/ say; None in Python. A place that they name too is theirs.
        training: whether the run is to be trained on.

    Raises:
        ConfigError: names the key, the place and what to say.
    """
    plain = OmegaConf.to_container(config)
    own = {} if said is None else dict(nodes_of(OmegaConf.to_container(said)))
    for key, place in _places(plain, training):
        if place is None or (key in own and own[key] == place) or _is_inside(place, folder):
            continue
        if key == "cache.folder" and isinstance(place, str) and (Path(place).expanduser() / "manifest.json").is_file():
            continue
        raise ConfigError(
            f"{folder / 'config.yaml'}: {key} is {place!r}, outside the run folder, and files would be written there. "
            f"If you mean it, say so: {override(typed(key, said), place)} (or another place, or null), or "
            "trust=true; in Python, load_run(…, trust=True)"
        )


def typed(key: str, said: DictConfig | None) -> str:
    """A saved key as it is typed on a command line that composes ``said``: ``++`` where that has no such key."""
    missing = said is not None and key not in dict(nodes_of(OmegaConf.to_container(said)))
    return f"++{key}" if missing else key


def check_links(folder: Path, training: bool) -> None:
    """Refuse a run folder with symbolic links by which files outside it would be overwritten.

    Args:
        folder: the run folder.
        training: whether the run is to be trained on. An evaluation writes no checkpoints, and may read linked ones.

    Raises:
        ConfigError: names the first link, its target and what to do.
    """
    root = _root(folder)
    for above, folders, files in os.walk(folder):
        here = Path(above)
        for name in sorted((*folders, *files)):
            path = here / name
            unwritten = not training and (name == "checkpoints" or here.name == "checkpoints")
            if not path.is_symlink() or unwritten or path.resolve().is_relative_to(root):
                continue
            raise ConfigError(
                f"{path} is a link out of the run folder, to {path.readlink()}, and files would be written there. If "
                "the link is yours, or you trust who made the folder, add trust=true, else delete it; in Python, "
                "load_run(…, trust=True)"
            )
        folders[:] = [name for name in folders if name != "wandb"]  # which links to logs of its own


def _places(plain: Any, training: bool) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of what names a place to write to."""
    values = dict(nodes_of(plain))
    keys = [*_FOLDERS, *(_OF_TRAINING if training else ())]
    if training and values.get("cache.augmented_views") and values.get("cache.folder") is None:
        keys.append("paths.cached_views")
    yield from ((key, values[key]) for key in keys if key in values)
    for key, value in values.items():
        group, name = key.split(".")[0], key.rsplit(".", 1)[-1]
        own = group in ("callbacks", "logger", "trainer") and name in _NAMES
        if (own or (name in _ANYWHERE and isinstance(value, str))) and key not in _OF_TRAINING:
            yield key, value
    named = values.get("task.name")
    if isinstance(named, str) and Path(named).name != named:  # of a file
        yield "task.name", f"../{named}"


def _is_inside(place: Any, folder: Path) -> bool:
    if not isinstance(place, str):
        return False
    root, target = _root(folder), Path(located(place, folder) or "").expanduser().resolve()
    return target.is_relative_to(root) and target != root


def _root(folder: Path) -> Path:
    """The run folder, or that of all re-splits, which share features."""
    root = folder.resolve()
    is_split = root.name.removeprefix("split").isdigit() and (root.parent / "config.yaml").is_file()
    return root.parent if is_split else root
