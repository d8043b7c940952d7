from __future__ import annotations

from pathlib import Path

import pytest

from gate_lightning.tools.report.charts import MOST_POINTS, Chart, Line, curves_of, ticks
from gate_lightning.tools.report.words import shown


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (3, 498, [100, 200, 300, 400]), (-0.021, 0.013, [-0.02, -0.01, 0, 0.01])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_geometry_goes_from_corner_to_corner() -> None:
    chart = Chart("t", "", (Line("a", (0, 10), (1.0, 3.0)),))
    assert chart.path(chart.lines[0]) == "58.0,230.0 508.0,10.0"


def test_equal_values_are_a_line_in_the_middle() -> None:
    chart = Chart("t", "", (Line("a", (0, 10), (2.0, 2.0)),))
    assert chart.y(2.0) == pytest.approx((230 + 10) / 2)


def test_curves_are_grouped_and_those_of_one_point_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(
        "step,train/loss,val/loss,val/mIoU,train/lr,weights/stride4/a,cost/x,other,once\n"
        "0,2,,,0.1,0.5,1,1,3\n5,1,1.5,0.25,0.05,0.25,2,nan,\n9,0.5,1.25,0.5,0.01,0.5,3,2,\n"
    )
    charts = {chart.title: chart for chart in curves_of(path)}
    assert list(charts) == ["scores", "loss", "learning rate", "weights of the branches, stride4", "other"]
    assert charts["scores"].unit == "%"
    assert charts["scores"].lines == (Line("val/mIoU", (5, 9), (25, 50)),)
    assert [line.name for line in charts["loss"].lines] == ["train/loss", "val/loss"]
    assert charts["other"].lines[0].steps == (0, 9)


def test_long_curves_are_thinned_and_say_so(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,a\n" + "".join(f"{step},{step}\n" for step in range(3 * MOST_POINTS + 1)))
    (chart,) = curves_of(path)
    assert chart.every == 4
    assert chart.lines[0].steps[-1] == 3 * MOST_POINTS
    assert len(chart.lines[0].steps) <= MOST_POINTS + 1


def test_shares_are_percent_and_others_are_not() -> None:
    assert shown("val/mIoU", 0.6779) == "67.8 %"
    assert shown("test/mIoU_ddpm", 0.5, 0.0123) == "50.0 ± 1.2 %"
    assert shown("val/loss", 0.56789) == "0.5679"
    assert shown("val/mIoU", 0.011, signed=True) == "+1.1"
    assert shown("val/mIoU", None) == "–"


def test_the_monitored_curve_comes_first_and_a_definition_of_pck_is_one_chart(tmp_path: Path) -> None:
    keys = [f"val/PCK_{a}_{t}_per-{m}_{c}" for a in ("0.05", "0.10") for t in ("bbox", "img", "8px", "square")
            for m in ("image", "point") for c in ("le", "lt")]  # fmt: skip
    path = tmp_path / "metrics.csv"
    rows = "".join(f"{step},{','.join(['0.25'] * len(keys))},2\n" for step in (1, 2))
    path.write_text(f"step,{','.join(keys)},train/loss\n{rows}")
    charts = curves_of(path, "val/PCK_0.10_img_per-point_le")
    assert [chart.title for chart in charts[:2]] == ["val/PCK img_per-point_le", "loss"]
    assert [line.name for line in charts[0].lines] == ["val/PCK_0.10_img_per-point_le", "val/PCK_0.05_img_per-point_le"]
    assert charts[0].unit == "%" and charts[0].lines[0].values == (25, 25)
    assert len(charts) == 2 + 12


def test_the_monitored_loss_comes_before_scores(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss,val/mIoU,val/loss\n1,2,0.1,3\n2,1,0.2,2\n")
    assert [chart.title for chart in curves_of(path)] == ["scores", "loss"]
    (loss, _) = curves_of(path, "val/loss")
    assert [line.name for line in loss.lines] == ["val/loss", "train/loss"]
