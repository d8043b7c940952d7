"""Configurations that tests compose are those of the command line."""

from __future__ import annotations

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from gate_lightning.engine.command import configuration
from tests.support.composition import SMALL, composed

LINES = (
    ("train", *SMALL),
    ("train", "task=video", "task.propagation.last=2"),
    (
        "train",
        "+new=1",
        "callbacks.checkpoint=null",
        "+backbone.controlnets.depth=x",
        "technique.lora.weights={moderate: a}",
        "~local",
        "optimizer.lr=1e-3",
        "optimizer=sgd",
        "optimizer.lr=0.5",
        "+dataset.root='/a b/c=d'",
        "layers=[mid,us6]",
    ),
    ("eval", "tool=extract", "tool.device=cpu"),
)


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, *line in LINES], ids=lambda one: one[0])
def test_they_are_what_hydra_composes(name: str, line: list[str]) -> None:
    wanted = OmegaConf.to_yaml(configuration.composed(*line, name=name))
    for _ in range(2):  # nothing of the first is left in the second
        found = composed(*line, name=name)
        assert OmegaConf.to_yaml(found) == wanted
        found.seed, found.another = 77, 1


@pytest.mark.parametrize("line", ["datset=scenes", "trainer.max_steps=1,2", "seed=["])
def test_what_hydra_refuses_is_refused_in_its_words(line: str) -> None:
    with pytest.raises(HydraException) as wanted:
        configuration.composed(line)
    with pytest.raises(HydraException) as found:
        composed(line)
    assert str(found.value) == str(wanted.value) and type(found.value) is type(wanted.value)
