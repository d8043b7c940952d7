"""Reports by the command line: of what is in a folder, without building anything it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from gate_lightning.engine import cli
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.parts import components
from gate_lightning.errors import ConfigError
from tests.support.composition import composed
from tests.support.run_folders import make_run


def test_tool_builds_nothing_that_a_run_folder_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "config.yaml").write_text(
        "task: {_target_: subprocess.run, args: [touch, owned]}\nnote: ${oc.env:HOME}\n"
    )
    monkeypatch.setattr(components, "built", None)
    given = ["tool=report", f"run={folder}"]
    evaluate(composed(*given, name="eval"), given, tmp_path / "unused")
    page = (folder / "report.html").read_text()
    assert "${oc.env:HOME}" in page
    assert not (tmp_path / "unused").exists()


def test_tool_writes_where_it_is_told(tmp_path: Path) -> None:
    for number in (0, 1):
        make_run(tmp_path / "runs" / str(number), overrides=(f"seed={number}",))
    given = ["tool=report", f"run={tmp_path / 'runs'}", f"output={tmp_path / 'out'}", "tool.metric=test/mIoU"]
    evaluate(composed(*given, name="eval"), given, tmp_path)
    assert "test/mIoU" in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(ConfigError, match="run="):
        evaluate(composed("tool=report", name="eval"), ["tool=report"], tmp_path)


@pytest.mark.parametrize(
    ("given", "written"), [((), True), (("callbacks.report=null",), False), (("callbacks=quiet",), False)]
)
def test_a_sweep_ends_with_a_report(tmp_path: Path, given: tuple[str, ...], written: bool) -> None:
    make_run(tmp_path / "0")
    cli._tell_of_sweep(tmp_path, composed("logger=csv", *given))
    assert (tmp_path / "comparison.csv").is_file()
    assert (tmp_path / "report.html").is_file() == written
