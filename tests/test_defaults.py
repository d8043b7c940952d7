"""One owner of a default: the constructor's (docs/design/0052-one-owner-of-a-default.md)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from gate_lightning.engine.command.configuration import config_folder

CONF = config_folder()
FILES = [
    path.relative_to(CONF).with_suffix("").as_posix()
    for path in sorted(CONF.glob("*/**/*.yaml"))
    if path.relative_to(CONF).parts[0] not in ("experiment", "debug", "local")
]
#: group → keys whose value is what an option of the group is, or is chosen for the data set or the embedded model
CHOSEN = {
    "backbone": {"channels_last", "controlnets", "dtype", "file", "native_size"},
    "callbacks": {"every_n_steps"},
    "dataset": {
        *("batch_size", "eval_batch_size", "num_workers", "train_length", "val_length"),
        *("low", "high", "blur_sigma"),
    },
    "head": {"type", "levels", "channels", "batch_norm", "decoder"},
    "loss": {"weights", "ignore_index", "learned", "negatives"},
    "task": {
        "inference",
        "data",
        "reference",
        "part",
        "kind",
        "noises",
    },  # the engine builds task.data; a measure comes twice
    "technique": {"weights", "source", "tokens"},
    "tool": {"processes"},  # the engine starts them
}


def parameters_of(target: str) -> tuple[dict[str, inspect.Parameter], bool]:
    """Parameters of a constructor, those of its bases too, and whether it takes any other name."""
    made = get_object(target)
    family = [base for base in reversed(made.__mro__) if base is not object] if inspect.isclass(made) else [made]
    found: dict[str, inspect.Parameter] = {}
    for one in family:
        if one.__module__.startswith("gate_lightning"):
            found |= inspect.signature(one).parameters
    last = inspect.signature(made).parameters.values()
    return found, any(parameter.kind is parameter.VAR_KEYWORD for parameter in last)


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping with a ``_target_`` of ours."""
    if isinstance(node, dict):
        if str(node.get("_target_")).startswith("gate_lightning."):
            yield node
        for value in node.values():
            yield from nodes(value)


@pytest.mark.parametrize("name", FILES)
def test_a_value_in_conf_is_the_constructors_or_chosen(name: str) -> None:
    plain = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    for node in nodes(plain):
        parameters, open_ended = parameters_of(node["_target_"])
        for key, value in node.items():
            if key.startswith("_") or key == "defaults" or key in CHOSEN.get(name.split("/")[0], ()):
                continue
            assert key in parameters or open_ended, f"{key} is no parameter of {node['_target_']}"
            default = parameters[key].default if key in parameters else inspect.Parameter.empty
            if default is inspect.Parameter.empty or (isinstance(value, str) and value.startswith(("$", "???"))):
                continue
            assert value == (list(default) if isinstance(default, tuple) else default), key


def test_every_argument_of_the_folder_data_set_can_be_set_without_a_plus() -> None:
    """README sends users there first."""
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF / "dataset/folder.yaml"))
    parameters, _ = parameters_of(node["dataset"]["_target_"])
    assert set(parameters) - {"loading"} == set(node["dataset"]) - {"_target_"}
