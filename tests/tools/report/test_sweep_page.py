from __future__ import annotations

from pathlib import Path

import pytest

from gate_lightning.errors import ConfigError
from gate_lightning.tools.report.report import report
from tests.support.report_pages import Parsed
from tests.support.run_folders import EVIL, make_run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    values = {
        ("none", 25): (0.20, 0.30, 0.25),
        ("none", 50): (0.22, 0.28, 0.24),
        ("all", 25): (0.26, 0.34, 0.33),
        ("all", 50): (0.3, 0.3, 0.3),
    }
    number = 0
    for (technique, timestep), seeds in values.items():
        for seed, value in enumerate(seeds):
            overrides = (f"techniques={technique}", f"timestep={timestep}", f"seed={seed}")
            make_run(tmp_path / "sweep #1" / str(number), value=value, overrides=overrides)
            number += 1
    make_run(tmp_path / "sweep #1" / "12", "failed", overrides=("techniques=lora", "timestep=25", "seed=0"))
    return tmp_path / "sweep #1"


def test_rows_differences_and_heat_map(sweep: Path) -> None:
    report(str(sweep), baseline="techniques=none timestep=25")
    page = Parsed(sweep / "report.html")
    assert page.sections == ["rows", "heat", "differences", "runs"]
    assert "25.0 ± 5.0 %" in page.texts
    # differences of all@25: 0.06, 0.04, 0.08; t of two degrees of freedom 4.303: 0.06 ± 4.303 * 0.02 / sqrt(3)
    assert "+6.0 ± 2.0" in page.texts
    assert "+1.0 … +11.0" in page.texts
    assert "31.0 %" in page.texts
    assert page.texts.count("baseline") == 1
    assert any(EVIL in text for text in page.texts)
    assert len(page.all("script")) == 1


def test_runs_are_linked_by_relative_path(sweep: Path) -> None:
    report(str(sweep / "3"))
    report(str(sweep))
    links = [str(link["href"]) for link in Parsed(sweep / "report.html").all("a")]
    assert "3/report.html" in links
    assert "4" in links
    report([str(sweep / "3"), str(sweep / "4")], target=str(sweep.parent / "out"))
    links = [str(link["href"]) for link in Parsed(sweep.parent / "out" / "report.html").all("a")]
    assert "../sweep %231/3/report.html" in links


def test_several_folders_need_a_place(sweep: Path) -> None:
    with pytest.raises(ConfigError, match="output=<folder>"):
        report([str(sweep / "3"), str(sweep / "4")])


def test_an_unknown_metric_is_refused(sweep: Path) -> None:
    with pytest.raises(ConfigError, match="val/nothing"):
        report(str(sweep), metric="val/nothing")


def test_a_sweep_without_results_has_a_report(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "failed")
    report(str(tmp_path))
    assert Parsed(tmp_path / "report.html").sections == ["rows", "runs"]


def test_the_suggested_baseline_has_values_and_is_not_the_best(tmp_path: Path) -> None:
    for number, (timestep, status) in enumerate([(25, "done"), (50, "done"), (75, "done"), (100, "failed")]):
        make_run(tmp_path / str(number), status, 0.1 * number + 0.2, (f"timestep={timestep}",))
    report(str(tmp_path))
    (command,) = (text for text in Parsed(tmp_path / "report.html").texts if "tool.baseline" in text)
    assert command.endswith("\"tool.baseline='timestep=50'\"")  # 75 is the best, of 100 nothing is known
    report(str(tmp_path), baseline="timestep=50")
    assert "-20.0" not in Parsed(tmp_path / "report.html").texts
    assert {"+10.0", "-10.0", "baseline"} <= set(Parsed(tmp_path / "report.html").texts)
    with pytest.raises(ConfigError, match="timestep=100 has no finished run"):
        report(str(tmp_path), baseline="timestep=100")


def test_without_a_second_row_that_has_values_no_baseline_is_suggested(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "done", 0.5, ("timestep=25",))
    make_run(tmp_path / "1", "failed", 0.5, ("timestep=50",))
    report(str(tmp_path))
    assert not any("tool.baseline" in text for text in Parsed(tmp_path / "report.html").texts)


def test_a_sweep_without_the_monitored_metric_is_compared_by_that_of_the_other_split(tmp_path: Path) -> None:
    for number in range(2):
        folder = make_run(
            tmp_path / str(number), overrides=(f"timestep={number}",), monitor="val/PCK_0.10_bbox_per-image_le"
        )
        (folder / "metrics.json").write_text(f'{{"test/PCK_0.10_bbox_per-image_le": 0.{number + 1}25}}')
    report(str(tmp_path))
    page = Parsed(tmp_path / "report.html")
    assert "test/PCK_0.10_bbox_per-image_le" in page.texts
    assert "22.5 %" in page.texts
    assert any("Percentage of correct keypoints" in text for text in page.texts)
