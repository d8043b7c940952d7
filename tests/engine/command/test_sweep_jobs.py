"""What all jobs of a sweep are given is no mistake of those that do not read it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from gate_lightning.engine import cli
from gate_lightning.engine.command import sweep_jobs
from gate_lightning.engine.command.used_keys import check_overrides, keys_of_task
from tests.support.composition import composed

#: of a sweep's jobs: their overrides
Sweep = Callable[..., list[list[str]]]


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sweep:
    """Runs a command whose trainings only look at their overrides; those that were not refused."""

    def run(*arguments: str) -> list[list[str]]:
        found = []

        def train(config: Any, overrides: list[str], *others: Any) -> dict[str, float]:
            check_overrides(overrides, keys_of_task(config), "a task")
            found.append(overrides)
            return {}

        monkeypatch.setattr("gate_lightning.engine.jobs.training.train", train)
        monkeypatch.setattr(cli, "_sweeps", {})
        folders = [f"hydra.run.dir={tmp_path}", f"hydra.sweep.dir={tmp_path}"]
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments, *folders])
        assert cli.train_main() == (0 if found else 2)
        return found

    return run


@pytest.mark.thorough
def test_a_key_that_another_job_reads_is_left_out(swept: Sweep, tmp_path: Path) -> None:
    jobs = swept("-m", "timestep=25,50", "techniques=none,auto", "auto.images=4")
    assert [("auto.images=4" in job, "techniques=auto" in job) for job in jobs] == [(False, False), (True, True)] * 2
    logs = [(tmp_path / str(number) / "train.log").read_text() for number in range(4)]
    told = "auto.images=4: read by other jobs of this sweep, not by this one"
    assert [log.count(told) for log in logs] == [1, 0] * 2


@pytest.mark.thorough
def test_a_key_that_no_job_reads_is_refused(swept: Sweep, capfd: pytest.CaptureFixture[str]) -> None:
    assert swept("-m", "techniques=none,prompt", "auto.images=4") == []
    assert swept("techniques=none", "auto.images=4") == []
    assert "auto.images=4: a task reads no auto" in capfd.readouterr().err


def test_values_of_an_experiment_s_sweep_count(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ["techniques=none", "auto.images=4"]
    sweeper = {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "params": None}
    job = OmegaConf.create(
        {"mode": RunMode.MULTIRUN, "sweeper": sweeper, "overrides": {"task": own}, "job": {"config_name": "train"}}
    )
    monkeypatch.setattr(sweep_jobs.HydraConfig, "get", staticmethod(lambda: job))
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "auto.images=4", "hydra.sweep.dir=x"])
    assert sweep_jobs.own_overrides(composed(*own), keys_of_task) == own
    job.sweeper.params = {"techniques": "none,auto"}
    assert sweep_jobs.own_overrides(composed(*own), keys_of_task) == own[:1]
    job.sweeper._target_ = "somebody.elses.Sweeper"
    assert sweep_jobs.own_overrides(composed(*own), keys_of_task) == own


def test_jobs_differ_from_the_first_in_one_value() -> None:
    jobs = list(sweep_jobs._jobs(["a=1,2", "b=[x,y]", "c=3,4", "~d"]))
    assert jobs == [["a=1", "b=[x,y]", "c=3", "~d"], ["a=2", "b=[x,y]", "c=3", "~d"], ["a=1", "b=[x,y]", "c=4", "~d"]]
