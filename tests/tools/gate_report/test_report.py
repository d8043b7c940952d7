"""Measures of content shift against gains, on run folders made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gate_lightning.errors import ConfigError, DataError
from gate_lightning.tools.gate_report.report import gate_report
from gate_lightning.utils.text import read_csv

LAYERS = ("fine", "coarse")
STEERING: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "prompt": [{"technique": "prompt", "text": None}],
    "controlnet": [{"technique": "controlnet", "scale": 1.0}],
    "lora": [{"technique": "lora", "adapter": "moderate"}],
}
#: metric of a run without technique by timestep, and what techniques add
PLAIN = {50: 0.30, 200: 0.20}
GAINS = {"prompt": {50: 0.01, 200: 0.02}, "controlnet": {50: 0.05, 200: 0.06}, "lora": {50: -0.01, 200: -0.02}}


def branch(name: str, timestep: int, layers: Sequence[str] = LAYERS) -> dict[str, Any]:
    return {"name": name, "techniques": STEERING[name], "ensemble": 1, "timestep": timestep, "layers": list(layers)}


def write_run(
    folder: Path,
    branches: list[dict[str, Any]],
    value: float,
    seed: int = 0,
    status: str = "done",
    more: Sequence[str] = (),
) -> None:
    folder.mkdir(parents=True)
    files: dict[str, Any] = {
        "status": {"status": status},
        "metrics": {"val/mIoU": value, "test/mIoU": value},
        "overrides": [
            f"techniques={branches[0]['name']}",
            f"timestep={branches[0]['timestep']}",
            f"seed={seed}",
            *more,
        ],
        "frozen": {"backbone": {"digest": "x"}, "branches": branches},
        "settings": {"monitor": "test/mIoU"},
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def write_sweep(folder: Path, seeds: int = 2, names: Sequence[str] = tuple(STEERING)) -> Path:
    """Runs of all techniques, timesteps and seeds; a seed moves plain and steered runs alike."""
    number = 0
    for name in names:
        for timestep, plain in PLAIN.items():
            for seed in range(seeds):
                value = plain + 0.07 * seed + GAINS.get(name, {}).get(timestep, 0.0)
                write_run(folder / str(number), [branch(name, timestep)], value, seed)
                number += 1
    return folder


def line(
    measure: str, candidate: str, timestep: Any, layer: Any, value: float | None, better: bool = True
) -> dict[str, Any]:
    names = ("measure", "candidate", "timestep", "layer", "value", "higher_is_better")
    return dict(zip(names, (measure, candidate, timestep, layer, value, better), strict=True))


def write_shift(folder: Path, timesteps: Sequence[int] = (50, 200), layers: Sequence[str] = LAYERS) -> Path:
    """A ranking with measures whose correlation with the gains is known."""
    lines = []
    for name in STEERING:
        for t in timesteps:
            gain = GAINS.get(name, {}).get(t, 0.0)
            for place, layer in enumerate(layers):
                # the mean over layers is the gain; plain features differ by timestep, which is taken off
                lines.append(line("follows", name, t, layer, t + gain + (0.2 if place else -0.2)))
                lines.append(line("less_is_better", name, t, layer, 5 - gain, better=False))
                lines.append(line("turned", name, t, layer, -gain))
                lines.append(line("all_alike", name, t, layer, 1.0))
                lines.append(line("half", name, t, layer, gain if t == 50 else None))
            lines.append(line("by_timestep", name, t, None, gain))
        lines.append(line("one_figure", name, None, None, sum(GAINS.get(name, {50: 0.0}).values())))
        lines += [
            line("strengths", name, 0.5, None, 1.0),
            line("strengths", name, "all", "all", GAINS.get(name, {50: 0})[50]),
        ]
    candidates = {
        name: {**branch(name, 50), "kind": "candidate" if name != "none" else "plain", "plain": "none"}
        for name in STEERING
    }
    candidates["prompt (shuffled)"] = {**branch("prompt", 50), "kind": "shuffled", "plain": "none"}
    folder.mkdir(parents=True)
    (folder / "content_shift.json").write_text(json.dumps({"candidates": candidates, "lines": lines}))
    return folder


@pytest.fixture
def shift(tmp_path: Path) -> Path:
    return write_shift(tmp_path / "shift")


@pytest.mark.thorough
def test_known_correlations_are_found(tmp_path: Path, shift: Path) -> None:
    text = gate_report(str(write_sweep(tmp_path / "sweep")), str(shift), str(tmp_path / "out"))
    rows = {row["measure"]: row for row in read_csv(tmp_path / "out/gate_report.csv")}
    for measure, expected in (("follows", 1.0), ("less_is_better", 1.0), ("turned", -1.0), ("by_timestep", 1.0)):
        assert float(rows[measure]["correlation"]) == pytest.approx(expected), measure
        assert float(rows[measure]["low"]) == float(rows[measure]["high"]) == pytest.approx(expected)
        assert float(rows[measure]["within"]) == pytest.approx(expected)
        assert (rows[measure]["points"], rows[measure]["groups"]) == ("6", "2")
    assert rows["all_alike"]["correlation"] == rows["all_alike"]["low"] == ""
    # its three values stand for two timesteps each: ranks in twos against 1 … 6
    assert 0.9 < float(rows["one_figure"]["correlation"]) < 1
    assert float(rows["one_figure"]["within"]) == 1.0
    assert float(rows["strengths"]["within"]) == 1.0
    assert (rows["half"]["points"], rows["half"]["groups"]) == ("3", "1")
    # the best first, those without a number last
    assert [*rows][-1] == "all_alike"
    assert [*rows][-2] == "turned"
    assert "follows" in text and "+1.00" in text and "[-1.00, -1.00]" in text


def test_points_are_gains_over_plain_runs_of_equal_seed_and_timestep(tmp_path: Path, shift: Path) -> None:
    gate_report([str(write_sweep(tmp_path / "sweep"))], str(shift), str(tmp_path / "out"))
    points = read_csv(tmp_path / "out/gate_report_points.csv")
    assert len(points) == 6
    for row in points:
        gain = GAINS[row["technique"]][int(row["timestep"])]
        assert float(row["gain"]) == pytest.approx(gain)
        assert row["seeds"] == "2"
        assert float(row["follows"]) == pytest.approx(gain)
        assert float(row["turned"]) == pytest.approx(-gain)
        assert row["layers"] == "fine coarse"
    content = json.loads((tmp_path / "out/gate_report.json").read_text())
    assert content["metric"] == "test/mIoU"
    assert content["correlations"]["all_alike"]["value"] is None
    assert len(content["points"]) == 6
    drawn = sorted(path.stem for path in (tmp_path / "out/images").iterdir())
    assert "gate_report_follows" in drawn
    assert Image.open(tmp_path / "out/images/gate_report_follows.png").width > 300


@pytest.mark.thorough
def test_other_settings_are_points_of_their_own(tmp_path: Path, shift: Path) -> None:
    number = 0
    for head, factor in (("head=linear", 1.0), ("head=fpn", 2.0)):
        for name in STEERING:
            gain = factor * GAINS.get(name, {50: 0.0})[50]
            write_run(tmp_path / f"sweep/{number}", [branch(name, 50)], 0.3 * factor + gain, more=[head])
            number += 1
    gate_report(str(tmp_path / "sweep"), str(shift), str(tmp_path / "out"))
    points = read_csv(tmp_path / "out/gate_report_points.csv")
    assert sorted(row["settings"] for row in points) == ["head=fpn"] * 3 + ["head=linear"] * 3
    assert float(points[3]["gain"]) == pytest.approx(2 * float(points[0]["gain"]))


@pytest.mark.thorough
def test_runs_that_say_nothing_are_left_out_and_told(tmp_path: Path, shift: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    write_run(sweep / "90", [branch("prompt", 50), branch("lora", 50)], 0.9)
    write_run(sweep / "91", [branch("prompt", 50)], 0.9, seed=7, status="failed")
    text = gate_report(str(sweep), str(shift), str(tmp_path / "out"))
    assert "2 runs left out: " in text
    told = json.loads((tmp_path / "out/gate_report.json").read_text())["left_out"]
    assert [one.split(": ", 1)[1] for one in told] == ["it reads several branches, which are no candidate", "failed"]


def test_sweeps_that_cannot_answer_are_refused(tmp_path: Path, shift: Path) -> None:
    out = str(tmp_path / "out")
    alike = write_sweep(tmp_path / "alike", names=["prompt"])
    with pytest.raises(ConfigError, match=r"do not differ in techniques: they read prompt\. .*python train\.py -m"):
        gate_report(str(alike), str(shift), out)
    steered = write_sweep(tmp_path / "steered", names=["prompt", "lora"])
    with pytest.raises(ConfigError, match=r"no plain run among lora, prompt: gains are differences to techniques=none"):
        gate_report(str(steered), str(shift), out)
    write_run(steered / "70", [branch("none", 50)], 0.3)
    with pytest.raises(
        ConfigError, match=r"no plain run beside prompt at t = 50 of layers fine, coarse, .*4 of 4 have none"
    ):
        gate_report(str(steered), str(shift), out)
    doubled = write_sweep(tmp_path / "doubled")
    write_run(doubled / "80", [branch("prompt", 50)], 0.3)
    with pytest.raises(ConfigError, match=r"80 is a second run of equal techniques"):
        gate_report(str(doubled), str(shift), out)
    with pytest.raises(ConfigError, match=r"nowhere does not exist; give run folders or a sweep folder: sweep="):
        gate_report(str(tmp_path / "nowhere"), str(shift), out)
    with pytest.raises(
        ConfigError, match=r"tool\.metric=val/miou: no run has it; did you mean val/mIoU\? the runs have test/"
    ):
        gate_report(str(tmp_path), str(shift), str(tmp_path / "out"), metric="val/miou")
    with pytest.raises(ConfigError, match=r"shift=null: expected a run folder"):
        gate_report(str(alike), None, out)  # type: ignore[arg-type]
    (alike / "0/frozen.json").unlink()
    with pytest.raises(DataError, match=r"frozen.json does not exist: .* is no run on frozen features"):
        gate_report(str(alike), str(shift), out)


def test_rankings_of_something_else_are_refused(tmp_path: Path) -> None:
    sweep, out = str(write_sweep(tmp_path / "sweep")), str(tmp_path / "out")
    other = write_shift(tmp_path / "other", timesteps=(50, 100))
    with pytest.raises(
        ConfigError, match=r"has no measures of timesteps 200 of the sweep: .*task\.timesteps=\[50,200\]"
    ):
        gate_report(sweep, str(other), out)
    other = write_shift(tmp_path / "layers", layers=("fine",))
    with pytest.raises(ConfigError, match=r'has no measures of layers coarse of the sweep: .*"layers=\[coarse,fine\]"'):
        gate_report(sweep, str(other), out)
    content = json.loads((other / "content_shift.json").read_text())
    del content["candidates"]["lora"]
    (other / "content_shift.json").write_text(json.dumps(content))
    with pytest.raises(
        ConfigError, match=r"ranked none, prompt, controlnet, .*and not lora of the sweep with its settings"
    ):
        gate_report(sweep, str(other), out)
    (other / "content_shift.json").write_text('{"lines": []}')
    with pytest.raises(DataError, match=r"content_shift.json is damaged"):
        gate_report(sweep, str(other), out)
    with pytest.raises(
        ConfigError, match=r"has no content_shift.json; expected the run folder of a ranking: python eval"
    ):
        gate_report(sweep, sweep, out)
    with pytest.raises(ConfigError, match=r"tool.level=1.5: expected a share between 0 and 1"):
        gate_report(sweep, sweep, out, level=1.5)
