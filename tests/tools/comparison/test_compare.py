"""The table over runs: grouping, pairing by seed, failed runs, and messages."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import stdev

import pytest

from gate_lightning.errors import ConfigError
from gate_lightning.tools.comparison.compare import compare, find_runs, group_runs


def make_run(folder: Path, overrides: list[str], value: float | None, message: str = "") -> None:
    folder.mkdir(parents=True)
    (folder / "overrides.json").write_text(json.dumps(overrides))
    status = {"status": "done"} if value is not None else {"status": "failed", "message": message}
    (folder / "status.json").write_text(json.dumps(status))
    if value is not None:
        (folder / "metrics.json").write_text(json.dumps({"val/mIoU": value, "val/aAcc": 2 * value}))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    values = {("none", 0): 0.20, ("none", 1): 0.30, ("all", 0): 0.26, ("all", 1): 0.34}
    for number, ((technique, seed), value) in enumerate(values.items()):
        make_run(tmp_path / str(number), [f"techniques={technique}", f"seed={seed}"], value)
    make_run(tmp_path / "10", ["techniques=lora", "seed=0"], None, "WeightsError: no LoRA")
    return tmp_path


def test_seeds_are_one_row_and_differences_pair_equal_seeds(sweep: Path) -> None:
    rows = {row.label: row for row in group_runs(find_runs([sweep]), "val/mIoU")}
    assert rows["techniques=all"].values == {"0": 0.26, "1": 0.34}
    assert rows["techniques=all"].differences == pytest.approx((0.06, 0.04))
    assert rows["techniques=none"].differences == (0.0, 0.0)


def test_best_first_and_failed_last(sweep: Path) -> None:
    assert [row.label for row in group_runs(find_runs([sweep]), "val/mIoU")] == [
        "techniques=all",
        "techniques=none",
        "techniques=lora",
    ]


def test_text_and_files(sweep: Path, tmp_path: Path) -> None:
    text = compare(runs=str(sweep), output=str(tmp_path / "out"))
    head, best, plain, failed, why = text.splitlines()[2:]
    assert head.split() == ["techniques", "n", "val/mIoU", "difference"]  # no run was tested
    assert best.split("  ")[0] == "all" and f"30.0 ± {100 * stdev([0.26, 0.34]):.1f}" in best and "+5.0 ± 1.4" in best
    assert plain.startswith("none") and failed.split() == ["lora", "0", "–", "–"]
    assert "failed: WeightsError: no LoRA" in why
    with (tmp_path / "out" / "comparison.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 5
    assert {row["status"] for row in table} == {"done", "failed"}
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 1000


def test_both_splits_are_side_by_side_under_the_settings_that_differ(tmp_path: Path) -> None:
    for number, (timestep, techniques) in enumerate((t, n) for t in (25, 50) for n in ("none", "[{name: a b}]")):
        make_run(
            tmp_path / str(number), [f"timestep={timestep}", f"techniques={techniques}", "layers=mid"], 0.1 * number
        )
        (tmp_path / str(number) / "metrics.json").write_text(
            json.dumps({"val/mIoU": 0.1 * number, "test/mIoU": 0.2 * number})
        )
    lines = compare(str(tmp_path), str(tmp_path / "out")).splitlines()
    assert lines[2].split() == ["timestep", "techniques", "n", "val/mIoU", "test/mIoU", "difference"]
    assert [part.strip() for part in lines[3].split("  ") if part] == [
        "50",
        "[{name: a b}]",
        "1",
        "30.0",
        "60.0",
        "+10.0",
    ]
    by_test = compare(str(tmp_path), str(tmp_path / "out"), metric="test/mIoU").splitlines()
    assert by_test[2].split() == ["timestep", "techniques", "n", "test/mIoU", "val/mIoU", "difference"]
    with (tmp_path / "out" / "comparison_summary.csv").open() as file:
        first = next(csv.DictReader(file))
    assert (float(first["test/mIoU mean"]), float(first["val/mIoU mean"])) == pytest.approx((0.6, 0.3))


def test_summary_has_the_interval_of_the_differences(sweep: Path, tmp_path: Path) -> None:
    compare(runs=str(sweep), output=str(tmp_path / "out"))
    with (tmp_path / "out" / "comparison_summary.csv").open() as file:
        (row,) = (row for row in csv.DictReader(file) if row["label"] == "techniques=all")
    # differences 0.06 and 0.04; Student's t of one degree of freedom: 12.706
    ends = (0.05 - 12.706 * 0.01, 0.05 + 12.706 * 0.01)
    assert (float(row["95 % interval from"]), float(row["to"])) == pytest.approx(ends, abs=1e-5)


def test_each_row_is_compared_with_plain_features_of_its_other_settings(tmp_path: Path) -> None:
    values = {("25", "none"): 0.1, ("50", "none"): 0.3, ("25", "all"): 0.2, ("50", "all"): 0.35, ("75", "all"): 0.5}
    for number, ((timestep, techniques), value) in enumerate(values.items()):
        make_run(tmp_path / str(number), [f"timestep={timestep}", f"techniques={techniques}"], value)
    rows = {row.label: row for row in group_runs(find_runs([tmp_path]), "val/mIoU")}
    assert rows["timestep=25 techniques=all"].differences == pytest.approx((0.1,))
    assert rows["timestep=50 techniques=all"].differences == pytest.approx((0.05,))
    assert rows["timestep=50 techniques=all"].baseline == "timestep=50 techniques=none"
    assert rows["timestep=75 techniques=all"].differences == ()  # there are no plain features of that timestep
    assert "plain features of the same other settings" in compare(str(tmp_path), str(tmp_path / "out"))


def test_a_sweep_over_seeds_alone_does_not_repeat_its_settings(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path / str(seed), ["techniques=prompt", "trainer.max_steps=5", f"seed={seed}"], 0.1)
    lines = compare(str(tmp_path), str(tmp_path / "out")).splitlines()
    assert lines[3].split() == ["settings", "of", "all", "3", "10.0", "±", "0.0"]


def record(folder: Path, **settings: str) -> None:
    differences = [{"key": key.replace("__", "."), "value": value} for key, value in settings.items()]
    (folder / "settings.json").write_text(json.dumps({"differences": differences}))


def test_runs_of_equal_overrides_and_other_settings_are_not_one_row(tmp_path: Path) -> None:
    for number, layers in enumerate(("mid", "mid", "dift")):  # the file of the experiment was changed before the third
        folder = tmp_path / str(number)
        make_run(folder, ["experiment=mine", "techniques=none", f"seed={number}"], 0.1 * (number + 1))
        record(folder, layers=layers, head__seed=str(number), callbacks__cost="null")
    rows = {row.label: sorted(row.values) for row in group_runs(find_runs([tmp_path]), "val/mIoU")}
    assert rows == {"layers=mid": ["0", "1"], "layers=dift": ["2"]}


def test_a_setting_at_its_default_is_told_from_others_recorded(tmp_path: Path) -> None:
    for number in range(2):
        make_run(tmp_path / str(number), [], 0.1)
    (tmp_path / "1" / "settings.json").write_text(
        json.dumps({"differences": [{"key": "timestep", "value": 25, "default": 50}]})
    )
    assert {row.label for row in group_runs(find_runs([tmp_path]), "val/mIoU")} == {"timestep=50", "timestep=25"}


def test_many_settings_are_told_by_the_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name, ["techniques=none"], 0.1)
        record(tmp_path / name, **{f"k{number}": name for number in range(5)})
    assert {row.label for row in group_runs(find_runs([tmp_path]), "val/mIoU")} == {"settings=a", "settings=b"}


def test_experiments_are_told_apart_by_name(tmp_path: Path) -> None:
    for name in ("gate", "baseline"):
        make_run(tmp_path / name, [f"experiment={name}", "timestep=50"], 0.1)
    assert {row.label for row in group_runs(find_runs([tmp_path]), "val/mIoU")} == {
        "experiment=gate",
        "experiment=baseline",
    }


def test_rows_that_are_all_plain_have_no_differences(tmp_path: Path) -> None:
    for number in range(3):
        make_run(tmp_path / str(number), ["techniques=none", f"timestep={number}"], 0.1 * (number + 1))
    lines = compare(str(tmp_path), str(tmp_path / "out")).splitlines()
    assert "differences" not in lines[1] and lines[2].split() == ["timestep", "n", "val/mIoU"]


def test_the_pace_of_training_is_a_column_where_it_was_logged(sweep: Path, tmp_path: Path) -> None:
    log = "step,train/images_per_second,val/mIoU\n10,4.0,\n20,8.0,\n20,,0.1\n30,9.0,\n"
    (sweep / "0" / "metrics.csv").write_text(log)
    compare(runs=str(sweep), output=str(tmp_path / "out"))
    with (tmp_path / "out" / "comparison.csv").open() as file:
        paces = [row["train/images_per_second"] for row in csv.DictReader(file)]
    assert paces == ["8.0", "", "", "", ""]


def test_labels_leave_out_what_all_runs_share(tmp_path: Path) -> None:
    for number, technique in enumerate(["none", "all"]):
        make_run(tmp_path / str(number), [f"techniques={technique}", "trainer.max_steps=5", "seed=0"], 0.1 + number)
    rows = {row.label: row for row in group_runs(find_runs([tmp_path]), "val/mIoU")}
    assert set(rows) == {"techniques=none", "techniques=all"}
    assert rows["techniques=all"].differences == (1.0,)


def test_runs_in_numeric_order(sweep: Path) -> None:
    assert [run.folder.name for run in find_runs([sweep])] == ["0", "1", "2", "3", "10"]


def test_unknown_metric_names_the_known_ones(sweep: Path) -> None:
    with pytest.raises(ConfigError, match=r"val/mAP.*val/aAcc"):
        group_runs(find_runs([sweep]), "val/mAP")


def test_unknown_baseline_names_the_rows(sweep: Path) -> None:
    with pytest.raises(ConfigError, match="techniques=all"):
        group_runs(find_runs([sweep]), "val/mIoU", "techniques=most")


@pytest.mark.parametrize(("place", "words"), [("missing", "does not exist"), (".", "holds no run")])
def test_no_runs(tmp_path: Path, place: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find_runs([tmp_path / place])


NO_JSON = ("", "{", "\xff", "[" * 100_000)
DAMAGED = {
    "status.json": (*NO_JSON, "[1]", "{}", '{"status": "well"}', '{"status": "done", "message": 3}'),
    "metrics.json": (*NO_JSON, '{"val/mIoU": "x"}', '{"val/mIoU": NaN}', '{"a": [1]}', '{"a": 1e999}', '{"a": true}'),
    "overrides.json": (*NO_JSON, "{}", "[1]", '[["a=1"]]', '{"a": 1}'),
    "metrics.csv": ("", "step,train/images_per_second\n1,fast\n", "step,train/images_per_second\n1\n", "a,a\n1,2\n"),
}


@pytest.mark.parametrize(("name", "content"), [(name, text) for name, texts in DAMAGED.items() for text in texts])
@pytest.mark.slow
def test_a_damaged_run_is_named_and_the_others_are_compared(
    name: str, content: str, sweep: Path, tmp_path: Path
) -> None:
    whole = {row.label: row.values for row in group_runs(find_runs([sweep]), "val/mIoU")}
    make_run(sweep / "11", ["techniques=none", "seed=2"], 0.5)
    (sweep / "11" / name).write_text(content, encoding="latin-1")
    text = compare(runs=str(sweep), output=str(tmp_path / "out"))
    assert {row.label: row.values for row in group_runs(find_runs([sweep]), "val/mIoU")} == {**whole, "11": {}}
    (line,) = (line for line in text.splitlines() if "broken: " in line)
    assert str(sweep / "11" / name) in line
    with (tmp_path / "out" / "comparison.csv").open() as file:
        (row,) = (row for row in csv.DictReader(file) if row["status"] == "broken")
    assert str(sweep / "11" / name) in row["message"]


def test_a_metric_without_a_value_is_left_out(sweep: Path) -> None:
    (sweep / "0" / "metrics.json").write_text('{"val/mIoU": null, "val/aAcc": 0.5}')
    assert find_runs([sweep / "0"])[0].metrics == {"val/aAcc": 0.5}


def test_old_metrics_of_a_run_that_was_gone_on_with_are_not_its_result(tmp_path: Path) -> None:
    """It had finished, was resumed for more steps, and stopped: its file is of the steps before."""
    for number, steps in enumerate((100, 200)):
        for layer in ("mid", "us9"):
            folder = tmp_path / f"{number}{layer}"
            folder.mkdir()
            (folder / "overrides.json").write_text(json.dumps([f"layers={layer}", f"timestep={steps}"]))
            (folder / "metrics.json").write_text(json.dumps({"val/mIoU": 0.5}))
            state = "interrupted" if folder.name == "1us9" else "done"
            (folder / "status.json").write_text(json.dumps({"status": state, "message": "stopped"}))
    text = compare(str(tmp_path), str(tmp_path / "out"))
    assert "interrupted: stopped" in text
    with (tmp_path / "out/comparison.csv").open() as file:
        assert [row["val/mIoU"] for row in csv.DictReader(file)] == ["0.5", "0.5", "0.5", ""]
    with (tmp_path / "out/comparison_grid.csv").open() as file:
        assert sorted(cell for row in csv.reader(file) for cell in row[1:]).count("0.5") == 3


def test_runs_of_equal_settings_and_seed_are_told_of(tmp_path: Path) -> None:
    for number, value in enumerate((0.1, 0.2, 0.3)):
        make_run(tmp_path / str(number), ["seed=0"], value)
    text = compare(str(tmp_path), str(tmp_path / "out"))
    assert text.splitlines()[3].split() == ["defaults", "1", "30.0"]
    assert f"3 finished runs have seed 0 and these settings; the last one counts ({tmp_path / '2'})" in text


PCK = "PCK_0.10_bbox_per-image_le"


def make_measured(folder: Path, monitor: str | None, metrics: dict[str, float], number: int = 0) -> Path:
    make_run(folder, [f"timestep={number}"], 0.5)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    if monitor is not None:
        (folder / "settings.json").write_text(json.dumps({"monitor": monitor}))
    return folder


@pytest.mark.parametrize(
    ("monitors", "metrics", "chosen"),
    [
        ([f"val/{PCK}"], [{f"val/{PCK}": 0.3, f"test/{PCK}": 0.4, "val/mIoU": 0.2}], f"val/{PCK}"),
        ([f"val/{PCK}"], [{f"test/{PCK}": 0.4, "val/mIoU": 0.2}], f"test/{PCK}"),
        (["test/mIoU_ddpm"], [{"val/mIoU_ddpm": 0.4}], "val/mIoU_ddpm"),
        ([None], [{"val/mIoU": 0.4, "val/aAcc": 0.5}], "val/mIoU"),
        (["val/error", "val/mIoU"], [{}, {"val/mIoU": 0.4}], "val/mIoU"),
    ],
)
def test_without_a_metric_runs_are_compared_by_what_they_monitored(
    monitors: list[str | None], metrics: list[dict[str, float]], chosen: str, tmp_path: Path
) -> None:
    for number, (monitor, found) in enumerate(zip(monitors, metrics, strict=True)):
        make_measured(tmp_path / "sweep" / str(number), monitor, found, number)
    text = compare(str(tmp_path / "sweep"), str(tmp_path / "out"))
    assert text.startswith(f"{chosen} of {len(monitors)} runs")


@pytest.mark.parametrize(("monitor", "missing"), [(None, "val/mIoU"), (f"val/{PCK}", f"val/{PCK}")])
def test_runs_without_what_they_monitored_in_any_split_are_refused(
    monitor: str | None, missing: str, tmp_path: Path
) -> None:
    folder = make_measured(tmp_path / "0", monitor, {"test/aAcc": 0.5})
    with pytest.raises(ConfigError, match=rf"no run has the metric {missing}; they have \['test/aAcc'\]"):
        compare(str(folder), str(tmp_path / "out"))


def test_damaged_settings_do_not_keep_a_run_out_of_the_table(tmp_path: Path) -> None:
    folder = make_measured(tmp_path / "0", None, {"val/mIoU": 0.5})
    for content in (*NO_JSON, '{"monitor": 3}'):
        (folder / "settings.json").write_text(content, encoding="latin-1")
        assert compare(str(folder), str(tmp_path / "out")).startswith("val/mIoU of 1 runs")


def test_a_baseline_without_a_finished_run_is_refused(sweep: Path) -> None:
    with pytest.raises(ConfigError, match=r"techniques=lora has no finished run with val/mIoU; .*techniques=all"):
        group_runs(find_runs([sweep]), "val/mIoU", "techniques=lora")
