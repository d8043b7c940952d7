"""Several processes of one command: their number, their one folder, and jobs of sweeps that have several."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from gate_lightning.engine import cli
from gate_lightning.engine.checks.trainer_settings import devices_of
from gate_lightning.engine.command import launch
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.errors import ConfigError, GateError, Interrupted
from tests.support.composition import composed
from tests.support.paths import REPOSITORY

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}
SLURM = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that nothing else has started."""
    for name in (*TORCHRUN, *SLURM):
        monkeypatch.delenv(name, raising=False)


def among(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("devices", "count"),
    [(1, 1), (3, 3), ("3", 3), ([0, 2], 2), ("0,2", 2), ("1,", 1), ("auto", 1), (-1, 1), (None, 1)],
)
def test_devices_are_counted_as_lightning_does(devices: Any, count: int) -> None:
    assert launch.device_count({"devices": devices, "accelerator": "cpu"}) == count
    assert launch.device_count({"devices": devices, "accelerator": "cpu", "num_nodes": 2}) == 2 * count


@pytest.mark.parametrize(
    ("override", "told"),
    [
        *((f"devices={value}", "expected how many devices, 1 or more, auto") for value in ("0", "[]", "-2", "1.5")),
        *((f"devices={value}", "expected how many devices, 1 or more, auto") for value in ("true", "two", "[0,0]")),
        ("accelerator=gpus", "did you mean gpu[?] expected one of auto, cpu, gpu"),
        ("accelerator=1", "expected one of auto, cpu, gpu"),
        ("+num_nodes=0", "expected a whole number from 1"),
        ("+strategy=dpp", "did you mean ddp[?] expected one of auto"),
    ],
)
def test_a_trainer_that_there_cannot_be_is_refused_before_anything_is_loaded(override: str, told: str) -> None:
    key, sign, value = override.partition("=")
    with pytest.raises(ConfigError, match=rf"^trainer\.{key.lstrip('+')}=.*: {told}"):
        runs.resolve(composed(f"{'+' * key.startswith('+')}trainer.{key.lstrip('+')}{sign}{value}"))


@pytest.mark.parametrize("devices", [1, 3, "3", "0,2", "1,", [0, 2], "auto", -1, "-1"])
def test_ways_to_name_devices_are_taken(devices: Any) -> None:
    found = devices_of({"devices": devices})
    assert found == {"3": 3, "0,2": [0, 2], "1,": [1], "auto": 0, "-1": -1}.get(str(devices), devices)


@pytest.mark.parametrize(
    ("gpus", "overrides", "told"),
    [
        (0, ["trainer=gpu"], "finds no GPU here; on the CPU: trainer=cpu"),
        (0, ["trainer.devices=[0]"], r"devices=\[0\] on a CPU"),
        (4, ["trainer=cpu", "trainer.devices=-1"], "devices=-1 on a CPU"),
        (2, ["trainer=gpu", "trainer.devices=3"], "there are 2 GPUs here, numbers 0 to 1"),
        (1, ["trainer.devices=[1]"], "there is 1 GPU here, number 0"),
        (0, ["trainer.devices=3"], None),
        (1, ["trainer=cpu", "trainer.devices=3"], None),
        (2, ["trainer=gpu", "trainer.devices=[1]"], None),
        (2, ["trainer=ddp"], None),
    ],
)
def test_devices_that_are_not_here_are_refused(
    gpus: int, overrides: list[str], told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    trainer = composed(*overrides).trainer
    with nullcontext() if told is None else pytest.raises(ConfigError, match=told):
        launch.check_here(trainer)
    among(monkeypatch, TORCHRUN)  # which may show every process one GPU
    launch.check_here(trainer)


def test_a_run_looks_for_its_devices_before_it_loads_anything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("gate_lightning.engine.jobs.training.Components", None)  # not to be called
    monkeypatch.setattr(sys, "argv", ["train.py", "trainer=gpu", f"hydra.run.dir={tmp_path}"])
    assert cli.train_main() == 2
    assert "trainer.accelerator=gpu: torch finds no GPU here" in capfd.readouterr().err


def test_all_devices_are_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert launch.device_count({"devices": "auto", "accelerator": "gpu"}) == 8
    assert launch.device_count(composed("trainer=ddp").trainer) == 8
    assert launch.device_count(composed().trainer) == 1


def test_devices_of_a_process_are_named_among_the_visible_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    named = {"auto": ["0", "1", "2"], 2: ["0", "1"], "2": ["0", "1"], "0,2": ["0", "2"]}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for devices, names in named.items():
        assert launch.visible_devices({"devices": devices}) == names
    assert launch.visible_devices({"devices": [2, 1]}) == ["2", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-a,7")
    assert launch.visible_devices({"devices": [2, 1]}) == ["7", "GPU-a"]


@pytest.mark.parametrize("variables", [TORCHRUN, SLURM], ids=["torchrun", "srun"])
def test_processes_that_would_each_train_by_themselves_are_refused(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch.check_started({"devices": 1})
    among(monkeypatch, dict(list(variables.items())[:1]))  # an allocation, or Lightning's own processes
    launch.check_started({"devices": 1})
    among(monkeypatch, variables)
    assert launch.started() == (1, 4)
    with pytest.raises(ConfigError, match=r"=4\) started 4 processes, and trainer\.devices=1 makes 1") as refused:
        launch.check_started({"devices": 1})
    wanted = (
        "devices=4 ++trainer.strategy=ddp,"
        if variables is TORCHRUN
        else "devices=2 ++trainer.strategy=ddp ++trainer.num"
    )
    assert wanted in str(refused.value)
    launch.check_started({"devices": 4})
    launch.check_started({"devices": 2, "num_nodes": 2})


def test_the_first_process_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.agreed(lambda: "own") == "own"
    said: dict[str, str] = {}

    class Store:
        def set(self, key: str, value: str) -> None:
            said[key] = value

        def get(self, key: str) -> bytes:
            return said[key].encode()

    monkeypatch.setattr(launch, "_store", lambda rank, size: Store())

    def ask(rank: int, question: int, answer: str) -> str:
        among(monkeypatch, {**TORCHRUN, "RANK": str(rank)})
        monkeypatch.setattr(launch, "_numbers", iter([question]))
        return launch.agreed(lambda: answer or str(1 / 0))

    assert (ask(0, 0, "first"), ask(1, 0, "second"), ask(0, 1, "third"), ask(3, 1, "")) == (
        *("first",) * 2,
        *("third",) * 2,
    )
    with pytest.raises(ZeroDivisionError):
        ask(0, 2, "")
    with pytest.raises(ConfigError, match="the first process of this job could not"):
        ask(1, 2, "second")


def test_every_process_s_own_clock_names_no_folder(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["seed=1", "hydra.run.dir=outputs/${now:%H-%M-%S}"]
    launch.refuse_own_times(given)
    among(monkeypatch, TORCHRUN)
    launch.refuse_own_times(["hydra.run.dir=outputs/run"])
    monkeypatch.setattr(sys, "argv", ["train.py", *given])
    assert cli.train_main() == 2
    assert "would read its own clock" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("main", "given"),
    [
        ("train", ["seed=1"]),
        pytest.param("train", ["-m", "seed=1,2"], marks=pytest.mark.thorough),
        ("eval", ["task=content_shift"]),
    ],
)
def test_a_refused_start_leaves_no_run_folder(
    main: str, given: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Store:
        def set(self, key: str, value: str) -> None:
            assert Path(value).is_dir()  # the first process has made it

    among(monkeypatch, {**TORCHRUN, "RANK": "0"})
    monkeypatch.setattr(launch, "_store", lambda rank, size: Store())
    monkeypatch.setattr(cli, "_sweeps", {})
    monkeypatch.setattr(sys, "argv", [f"{main}.py", *given, f"paths.outputs={tmp_path}", f"paths.multirun={tmp_path}"])
    assert getattr(cli, f"{main}_main")() == 2
    assert "started 4 processes, and trainer.devices=1 makes 1" in capfd.readouterr().err
    if "-m" not in given:
        assert not list(tmp_path.iterdir())
    else:  # what Hydra says of the sweep
        (day,) = tmp_path.iterdir()
        assert [path.name for path in day.rglob("*") if path.parent != day] == ["multirun.yaml"]


@pytest.mark.parametrize("named", [False, True], ids=["by date", "named"])
def test_an_evaluation_leaves_no_empty_folder_that_nobody_named(
    named: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "mine"
    own = [f"hydra.run.dir={where}"] if named else []
    monkeypatch.setattr(sys, "argv", ["eval.py", f"run={tmp_path / 'none'}", f"paths.outputs={tmp_path}/outputs", *own])
    assert cli.eval_main() == 2
    assert "is no run folder" in capfd.readouterr().err
    assert where.is_dir() == named
    assert not list(tmp_path.glob("outputs/*"))


@pytest.mark.slow
@pytest.mark.parametrize("by", ["torchrun", "srun"])
def test_two_processes_get_one_folder(by: str, tmp_path: Path) -> None:
    module = "gate_lightning.engine.command.configuration"
    code = f"from {module} import _run_folder as f; print(f(None, r'{tmp_path}/' + NAME))"
    outside = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    children = []
    for rank in (1, 0):
        own = {"TORCHELASTIC_RUN_ID": "none", "RANK": str(rank), "WORLD_SIZE": "2"}
        if by == "srun":
            own = {"SLURM_PROCID": str(rank), "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
        command = [sys.executable, "-c", code.replace("NAME", f"'at-{rank}'")]
        environment = {**os.environ, **outside, **own}
        children.append(subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True))
    found = [child.communicate(timeout=200)[0].strip() for child in children]
    assert found == [str(tmp_path / "at-0")] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["at-0"]


def _free_port() -> int:
    from lightning.fabric.plugins.environments.lightning import find_free_network_port

    return find_free_network_port()


# jobs of sweeps ---------------------------------------------------------------------------------------------------


class Child:
    """A command that is over at once."""

    commands: ClassVar[list[list[str]]] = []

    def __init__(self, command: list[str]) -> None:
        self.commands.append(command)
        self.returncode = 0

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def poll(self) -> int:
        return 0


@pytest.mark.thorough
@pytest.mark.parametrize("main", ["train", "eval"])
def test_a_job_with_processes_of_its_own_is_a_command_of_its_own(
    main: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli, "_sweeps", {})
    monkeypatch.setattr(Child, "commands", [])
    monkeypatch.setattr(launch.subprocess, "Popen", Child)
    sweep = tmp_path / "my sweep"
    given = ["trainer.accelerator=cpu", "techniques=none,[prompt,lora]", "hydra.job.chdir=false", "+x='a b'"]
    given += ["trainer.devices=1,2", f"hydra.sweep.dir='{sweep}'"]
    monkeypatch.setattr("gate_lightning.engine.jobs.training.train", lambda *_: {})
    monkeypatch.setattr("gate_lightning.engine.jobs.evaluation.evaluate", lambda *_: {})
    monkeypatch.setattr(sys, "argv", [f"{main}.py", "-m", *given])
    assert getattr(cli, f"{main}_main")() == 0
    assert len(Child.commands) == 2  # of four
    for command, techniques, number in zip(Child.commands, ("none", ["prompt", "lora"]), (1, 3), strict=True):
        assert command[0] == sys.executable
        words = OverridesParser.create().parse_overrides([word for word in command[1:] if "=" in word])
        values = {word.key_or_group: word.value() for word in words}
        assert "-m" not in command[3:]  # behind the interpreter's own
        assert (values["techniques"], values["trainer.devices"], str(values["x"])) == (techniques, 2, "a b")
        assert str(values["hydra.run.dir"]) == str(sweep / str(number))
        assert "hydra.sweep.dir" not in values and values["hydra.job.chdir"] is False


@pytest.mark.thorough
def test_a_command_of_its_own_gets_what_its_job_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "_sweeps", {})
    monkeypatch.setattr(Child, "commands", [])
    monkeypatch.setattr(launch.subprocess, "Popen", Child)
    given = ["techniques=none,auto", "auto.images=4", "trainer.accelerator=cpu", "trainer.devices=2"]
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *given, f"hydra.sweep.dir={tmp_path}"])
    assert cli.train_main() == 0
    assert ["auto.images=4" in command for command in Child.commands] == [False, True]


def test_other_launchers_start_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    job = OmegaConf.create(
        {"mode": RunMode.MULTIRUN, "launcher": {"_target_": "x.Ray"}, "runtime": {"choices": {"hydra/launcher": "ray"}}}
    )
    monkeypatch.setattr(launch.HydraConfig, "get", staticmethod(lambda: job))
    assert not launch.runs_apart({"devices": 1})
    with pytest.raises(ConfigError, match=r"with ray use trainer\.devices=1"):
        launch.runs_apart({"devices": 2})
    among(monkeypatch, TORCHRUN)
    assert not launch.runs_apart({"devices": 4})


def run_apart(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> dict[str, float]:
    begin = f"import json, os, sys; from pathlib import Path; folder = Path({str(folder)!r}); "
    monkeypatch.setattr(launch, "_command", lambda *_: [sys.executable, "-c", begin + code])
    return launch.run_apart(folder, [])


def test_what_a_command_of_its_own_ends_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write = "(folder / 'status.json').write_text(json.dumps({'status': %r, 'message': 'told'})); sys.exit(%d)"
    metrics = "(folder / 'metrics.json').write_text('{\"val/mIoU\": 0.5}')"
    assert run_apart(monkeypatch, tmp_path, metrics) == {"val/mIoU": 0.5}
    with pytest.raises(GateError, match=r"^told$"):
        run_apart(monkeypatch, tmp_path, write % ("failed", 2))
    with pytest.raises(Interrupted, match=r"^told$") as stopped:
        run_apart(monkeypatch, tmp_path, write % ("interrupted", 130))
    assert stopped.value.signal == signal.SIGINT
    (tmp_path / "status.json").write_text(json.dumps({"status": "running"}))
    with pytest.raises(GateError, match="status -9"):
        run_apart(monkeypatch, tmp_path, "os.kill(os.getpid(), 9)")
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "failed"


def test_a_signal_is_passed_on_and_stops_the_sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gate_lightning.utils.signals import stopping

    code = "import signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    with stopping(), pytest.raises(Interrupted) as stopped:
        run_apart(monkeypatch, tmp_path, code)
    assert stopped.value.signal == signal.SIGTERM
