"""The command lines: messages instead of tracebacks, sweeps with a failed run, and what a sweep refuses."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import HydraException

from gate_lightning.engine import cli
from gate_lightning.errors import ConfigError, Interrupted
from tests.support.composition import SMALL
from tests.support.paths import REPOSITORY

#: what takes seconds to import, and only a run or a tool needs
HEAVY = ("torch", "lightning", "diffusers", "transformers", "peft", "torchmetrics", "matplotlib", "wandb", "mmseg")


def imported_by(code: str) -> set[str]:
    """The heavy packages that a fresh Python has imported after ``code``, which may exit."""
    script = f"""
import sys
try:
    {code}
except SystemExit:
    pass
print(*set({HEAVY}).intersection(sys.modules), "end", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    *found, end = done.stderr.split()
    assert end == "end"
    return set(found)


def call(monkeypatch: pytest.MonkeyPatch, main: object, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    monkeypatch.setattr(cli, "_sweeps", {})
    return main()  # type: ignore[operator]


def test_unknown_key_is_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, cli.train_main, "datset=scenes") == 2
    error = capfd.readouterr().err
    assert "Could not override 'datset'" in error
    assert "Did you mean dataset?" in error
    assert "Traceback" not in error


def test_a_tool_that_is_taken_for_a_task_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, cli.eval_main, "task=gate_report", "sweep=x") == 2
    assert "gate_report is a tool: python eval.py tool=gate_report" in capfd.readouterr().err


@pytest.mark.thorough
def test_the_folder_of_a_training_run_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, cli.train_main, "output=x") == 2
    error = capfd.readouterr().err
    assert "hydra.run.dir=<folder>" in error and "Did you mean output" not in error


def test_a_path_that_hydra_cannot_parse_is_shown_quoted(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, cli.eval_main, "tool=check_data", "dataset=folder", "dataset.root=/my data/a=b") == 2
    assert "quote it: \"dataset.root='/my data/a=b'\"" in capfd.readouterr().err


@pytest.mark.slow
def test_our_own_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code = call(monkeypatch, cli.train_main, *SMALL, "techniques=magic", f"hydra.run.dir={tmp_path}")
    error = capfd.readouterr().err
    assert code == 2
    assert "'magic'" in error
    assert "Traceback" not in error
    assert '"failed"' in (tmp_path / "status.json").read_text()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["auto=null", "techniques=auto"], "auto=null"),
        (["head=3", "seed=4"], "head=3"),
        (["-m", "trainer=cpu,null"], "trainer=null"),
    ],
)
def test_a_group_that_is_given_no_choice_is_named(
    words: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folders = [f"hydra.run.dir={tmp_path}", f"hydra.sweep.dir={tmp_path}"]
    monkeypatch.setattr("gate_lightning.engine.jobs.training.train", lambda *_: {})
    assert call(monkeypatch, cli.train_main, *words, *folders) == 2
    told = f"{named}: a group takes one of its choices, not null or a number; --help {named.split('=')[0]} lists them"
    assert told in capfd.readouterr().err


def test_an_error_of_ours_that_has_a_cause_says_what_it_says(capfd: pytest.CaptureFixture[str]) -> None:
    """A protocol of several splits knows more than the split that was stopped."""

    def job() -> None:
        try:
            raise Interrupted("stopped, resume=split0")
        except Interrupted as error:
            raise Interrupted(f"{error}, or all splits: resume=protocol") from error

    assert cli._guarded(job) == 130
    assert "or all splits: resume=protocol" in capfd.readouterr().err


def test_what_hydra_wraps_is_said_without_hydra(capfd: pytest.CaptureFixture[str]) -> None:
    def job() -> None:
        raise HydraException("Error in call to target") from ConfigError("too small")

    assert cli._guarded(job) == 2
    assert capfd.readouterr().err == "\nConfigError: too small\n"


def test_a_sweep_stopped_before_its_first_run_has_no_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "train.log").write_text("")
    cli._tell_of_sweep(tmp_path, "val/mIoU")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0"]
    assert not caplog.records


@pytest.mark.thorough
def test_a_sweep_with_a_failed_run_ends_with_a_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = call(
        monkeypatch,
        cli.train_main,
        "-m",
        *SMALL,
        "techniques=magic,none",
        "trainer.max_steps=2",
        f"hydra.sweep.dir={tmp_path}",
    )
    assert code != 0
    with (tmp_path / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["failed", "done"]
    assert "magic" in rows[0]["message"]
    assert float(rows[1]["val/mIoU"]) >= 0


@pytest.mark.slow
def test_a_sweep_of_evaluations_without_training_ends_with_a_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = (*("dataset=scene_pairs", "dataset.test=2", "dataset.size=32", "logger=none"), "callbacks.report=null")
    given = (*given, "backbone.weights=random", "trainer.accelerator=cpu", "amalgamation=concat")
    swept = ("techniques=none,magic", "timestep=25,50", f"hydra.sweep.dir={tmp_path}")
    assert call(monkeypatch, cli.eval_main, "-m", *given, *swept) == 2
    with (tmp_path / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["done", "done", "failed", "failed"]
    printed = capfd.readouterr()
    said = (printed.out + printed.err).splitlines()
    assert sum("done in " in line and "test/PCK_0.10_" in line for line in said) == 2
    assert any(f"techniques=none timestep=50 ({tmp_path / '1' / 'eval.log'})" in line for line in said)
    assert any("test/PCK_0.10_bbox_per-image_le of 4 runs" in line for line in said)


@pytest.mark.slow
def test_a_sweep_of_a_tool_makes_no_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = ("tool=layers", "backbone.weights=random", "backbone.in_channels=3,4", f"hydra.sweep.dir={tmp_path}")
    call(monkeypatch, cli.eval_main, "-m", *tool)
    assert not list(tmp_path.rglob("comparison*")) and not list(tmp_path.rglob("status.json"))


@pytest.mark.parametrize("main", ["train_main", "eval_main"])
def test_help_imports_nothing_heavy(main: str) -> None:
    code = (
        f"import sys; sys.argv = ['train.py', '--help']; from gate_lightning.engine.cli import {main} as main; main()"
    )
    assert imported_by(code) == set()


@pytest.mark.thorough
def test_importing_the_package_imports_nothing_heavy() -> None:
    assert imported_by("import gate_lightning") == set()
    assert "torch" in imported_by("from gate_lightning import Conditions")


@pytest.mark.slow
def test_a_tool_without_run_needs_no_lightning() -> None:
    code = "from gate_lightning.engine.jobs import evaluation, tools; import gate_lightning.tools.layers.table"
    assert not imported_by(code) & {"lightning", "torchmetrics", "mmseg", "matplotlib"}


@pytest.mark.slow
def test_features_in_python_need_no_lightning() -> None:
    code = "from gate_lightning import Branch, FeatureExtractor, load_backbone, read_images; load_backbone('tiny')"
    assert not imported_by(code) & {"lightning", "torchmetrics", "mmseg", "matplotlib", "rich", "wandb"}


@pytest.mark.parametrize("main", [cli.train_main, cli.eval_main])
def test_old_names_are_refused_before_composing(
    main: object, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.hydra, "main", lambda **_: lambda job: lambda: pytest.fail("went on to compose"))
    assert call(monkeypatch, main, "-m", "++feature_cache=1,2", "control=plain") == 2
    error = capfd.readouterr().err
    assert "++feature_cache=1,2: feature_cache is now cache.memory_gib" in error
    assert "control=plain: control is now ablation" in error
    assert "Traceback" not in error
