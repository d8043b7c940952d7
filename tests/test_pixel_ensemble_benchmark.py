"""The benchmark of the ensemble, small: its ways agree, and it says so."""

from __future__ import annotations

import importlib

import pytest
import torch

from tests.support.paths import BENCHMARKS

SMALL = ["--channels", "6", "--classes", "3", "--members", "3", "--steps", "140", "--epoch", "8", "--patience", "10"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("pixel_ensemble")


@pytest.mark.thorough
def test_the_ways_stop_at_the_same_steps_with_the_same_predictions(script, capsys):
    script.main([*SMALL, "--pixels", "8", "--pool", "64"])
    lines = capsys.readouterr().out.splitlines()
    steps = [line.split("steps ")[1] for line in lines[:3]]
    assert [line.split()[0] for line in lines[:3]] == ["together", "alone", "modules"]
    assert steps[0] == steps[1] == steps[2]
    assert "140" not in steps[0]  # they stop by the rule
    assert all("same steps True, same predictions 1.000000" in line for line in lines[3:5])
    assert [line.split(":")[0] for line in lines[5:]] == ["alone / together", "modules / together"]


@pytest.mark.thorough
def test_a_difference_ends_it_with_an_error(script, monkeypatch):
    original = script.as_modules

    def other_start(ensemble, member):
        network = original(ensemble, member)
        torch.nn.init.normal_(network[0].weight)
        return network

    monkeypatch.setattr(script, "as_modules", other_start)
    with pytest.raises(SystemExit, match="modules and together differ"):
        script.main([*SMALL, "--pixels", "8", "--pool", "64"])
