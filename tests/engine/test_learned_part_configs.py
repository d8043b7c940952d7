"""Every configuration of a learned part builds, and what it builds runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from gate_lightning.structures import FeatureInfo

CONF = Path(__file__).resolve().parents[2] / "conf"
LAYERS = {"fine": FeatureInfo(16, 4), "middle": FeatureInfo(24, 8), "coarse": FeatureInfo(32, 16)}


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def load(group: str, name: str):
    return OmegaConf.load(CONF / group / f"{name}.yaml")


def build(node, **given):
    made = instantiate(node, _convert_="all")
    assert isinstance(made, partial)
    return made(**given)


@pytest.mark.parametrize("name", names("amalgamation"))
def test_amalgamations(name):
    amalgamation = build(load("amalgamation", name), feature_info={"a": LAYERS, "b": LAYERS}, concatenated=())
    features = {
        branch: {layer: torch.randn(1, i.channels, 32 // i.stride, 32 // i.stride) for layer, i in LAYERS.items()}
        for branch in "ab"
    }
    assert tuple(level.shape[1] for level in amalgamation(features).levels) == amalgamation.out_channels


@pytest.mark.parametrize("part", ["decode", "auxiliary"])
@pytest.mark.parametrize("name", names("head"))
def test_heads(name, part):
    # below a key, as in the composed configuration, so that relative interpolations are tried as well
    node = OmegaConf.create({"head": load("head", name)}).head[part]
    if node is None:
        assert part == "auxiliary"
        return
    head = build(node, in_channels=(16, 24, 32), strides=(4, 8, 16), num_classes=3)
    levels = [torch.randn(2, info.channels, 32 // info.stride, 32 // info.stride) for info in LAYERS.values()]
    assert head(levels).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("name", names("loss"))
def test_losses(name):
    loss = build(load("loss", name), ignore_index=2)
    assert loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.int64)).item() > 0
    assert loss(torch.zeros(1, 2, 4, 4), torch.full((1, 4, 4), 2)).item() == 0


@pytest.mark.parametrize("name", names("optimizer"))
def test_optimizers(name):
    optimizer = build(load("optimizer", name), params=[torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0]["lr"] > 0


@pytest.mark.parametrize("name", names("scheduler"))
def test_schedulers(name):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build(load("scheduler", name), optimizer=optimizer, total_steps=10)
    assert scheduler.get_last_lr() == [1.0]
    assert "per optimiser step" in (CONF / "scheduler" / f"{name}.yaml").read_text()
