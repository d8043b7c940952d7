"""The folder conf/, its resolvers, and composing it without a command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from gate_lightning.engine.checks.saved_config import read_saved
from gate_lightning.engine.checks.saved_paths import check_links
from gate_lightning.engine.command.launch import agreed
from gate_lightning.engine.folder.run_folder import require_run
from gate_lightning.engine.folder.run_lock import new_folder

__all__ = ["chosen_option", "composed", "config_folder", "with_data"]


def _run_folder(resumed: str | None, wanted: str, trust: bool = False) -> str:
    """Folder of a run: ``resumed``, that of a run that is gone on with, where that is set, else ``wanted``, made.

    Processes that were started together get the folder of the first one.

    Raises:
        ConfigError: there is no run in the resumed folder, or Hydra's log and the lock would be written through links.
    """
    if resumed is None:
        return agreed(partial(new_folder, wanted))
    require_run(Path(resumed))  # Hydra would make the folder
    if not trust:
        check_links(Path(resumed), training=True)
    return str(resumed)


OmegaConf.register_new_resolver("gate.run_folder", _run_folder, replace=True, use_cache=True)


def config_folder() -> Path:
    """``conf/`` beside the package in a checkout, else the copy inside the installed wheel."""
    package = Path(__file__).resolve().parents[2]
    beside = package.parent / "conf"
    return beside if (beside / "train.yaml").is_file() else package / "conf"


#: task → the generated data set that it is measured on where none is named: a task cannot choose one in its file, for
#: data sets choose their tasks
_GENERATED = {"classification": "scene_kinds", "geometric": "scene_homographies", "video": "scene_videos"}

#: an override of one key below a group, which says neither + nor ~
_DOTTED = re.compile(r"((?!hydra\.|tool\.)\w+(?:\.[\w-]+)+)=")


def with_data(overrides: Sequence[str]) -> list[str]:
    """Overrides of a command line, completed.

    A task for which they name no data set has a generated one. Keys that the run of ``run=`` or ``resume=`` has may be
    set although what is composed without its choices has no such key: ``run=<folder> dataset.root=<moved>``.
    """
    chosen = {key: value for key, _, value in (one.partition("=") for one in overrides)}
    named = {"dataset", "experiment", "run", "resume", "tool"} & {*chosen}
    dataset = None if named else _GENERATED.get(chosen.get("task", ""))
    completed = _open_to_run(overrides, [value for key in ("resume", "run") if (value := chosen.get(key)) is not None])
    return completed if dataset is None else [*completed, f"dataset={dataset}"]


def _open_to_run(overrides: Sequence[str], named: Sequence[str]) -> list[str]:
    """Overrides in which ``++`` stands before the dotted keys that the saved configurations of all named runs have.

    A group that the command line chooses anew (``dataset=folder``) has the keys of its file.
    """
    whole = [path for path in (Path(value.strip("'\"")) / "config.yaml" for value in named) if path.is_file()]
    several = [Path(one.strip("'\" ")) / "config.yaml" for value in named for one in value.strip("[]").split(",")]
    paths = whole or [path for path in several if path.is_file()]
    chosen = {one.partition("=")[0] for one in overrides}
    keys = {found[1] for found in map(_DOTTED.match, overrides) if found and found[1].partition(".")[0] not in chosen}
    for saved in map(read_saved, paths if keys else ()):
        keys = {key for key in keys if _has(saved, key)}
    return [f"++{one}" if paths and one.partition("=")[0] in keys else one for one in overrides]


def _has(config: DictConfig, key: str) -> bool:
    group, _, last = key.rpartition(".")
    node = OmegaConf.select(config, group)
    return isinstance(node, DictConfig) and last in node


def composed(*overrides: str, name: str = "train") -> DictConfig:
    """The configuration that the command line would give, with its interpolations, open to new keys.

    Args:
        overrides: as on the command line.
        name: file of conf/ without its suffix: ``train``, ``eval``, ``backbone/sd15`` …
    """
    with _hydra_of_its_own():
        config = compose(name, overrides=with_data(overrides))
    OmegaConf.set_struct(config, False)
    return config


def chosen_option(group: str, *overrides: str, name: str = "train") -> str:
    """The option of a group that a command line chooses, itself or by an experiment or default."""
    with _hydra_of_its_own():
        config = compose(name, overrides=with_data(overrides), return_hydra_config=True)
    return str(config.hydra.runtime.choices[group])


@contextmanager
def _hydra_of_its_own() -> Iterator[None]:
    """Context in which Hydra composes, also inside a command, whose own Hydra is there again afterwards."""
    inside = GlobalHydra.instance()
    previous = inside.hydra
    inside.clear()
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = previous
