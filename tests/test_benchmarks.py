"""The benchmarks, end to end on the tiny architecture."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from tests.support.paths import BENCHMARKS


@pytest.mark.skipif(sys.platform != "linux", reason="it reads its memory from /proc")
@pytest.mark.slow
def test_the_engine_is_compared_with_the_naive_loop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    try:
        importlib.import_module("features").main(["--architecture", "tiny", "--size", "32", "--repeats", "1"])
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    ratios = [re.fullmatch(r"(.+) \d+\.\dx", line) for line in lines[-4:]]
    assert [ratio[1] for ratio in ratios if ratio] == ["fp32", "fp32 one noise", "bf16", "bf16 one noise"]
    rows = {row[:18].strip(): row[18:].split() for row in lines if row[18:].count(".") > 4}
    assert float(rows["fp32"][-1]) <= 1e-5  # the features are those of the loop
    # operations: one encoding and a cut U-Net instead of three and a whole one; with one noise one ControlNet pass less
    assert float(rows["loop"][4]) > float(rows["fp32"][4]) > float(rows["fp32 one noise"][4])


@pytest.mark.skipif(sys.platform == "win32", reason="it reads its memory by resource")
@pytest.mark.slow
def test_a_training_step_is_split_into_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    small = ["backbone=tiny", "dataset.crop_size=64", "dataset.scale=[128,64]", "head.decode.channels=16"]
    own = ["backbone.weights=random", "dataset.num_workers=0", "trainer.accelerator=cpu"]
    given = ["--steps", "1", "--validate", "--folder", str(tmp_path)]
    module = importlib.import_module("segmentation")
    monkeypatch.setitem(module.SIZES, "ade20k", (64, 96))
    try:
        module.main([*given, "experiment=gate/ade20k", *small, *own])
    finally:
        torch.set_num_threads(threads)
    text = capsys.readouterr().out
    rows = dict(re.findall(r"^([\w -]+?) +(-?\d+\.\d{3}) ", text, re.MULTILINE))
    parts = ("data", "autoencoder", "text", "ControlNet", "U-Net", "other features", "head")
    assert set(rows) == {*parts, "whole step"}
    assert sum(float(rows[name]) for name in parts) == pytest.approx(float(rows["whole step"]), abs=0.01)
    assert all(float(rows[name]) > 0 for name in ("autoencoder", "ControlNet", "U-Net", "head"))
    assert float(rows["text"]) == 0  # read once per run, in the warm-up
    assert "one batch of validation" in text
    assert f"technique.lora.weights.moderate={tmp_path}" in text


def test_a_label_scarce_split_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    given = ["--tiny", "--train", "2", "--test", "1", "--steps", "3", "--members", "2", "--folder", str(tmp_path)]
    try:
        importlib.import_module("label_scarce").main(given)
    finally:
        torch.set_num_threads(threads)
    text = capsys.readouterr().out
    assert "mean of 3" in text
    # 272 channels upsampled to two masks of 32 pixels in float32
    assert f"released: {2 * 32 * 32 * 272 * 4 / 1e9:.1f} GB" in text
    assert float(re.search(r"peak RAM: (\d+\.\d+) GiB up to the end of: evaluation", text)[1]) > 0  # type: ignore[index]
    assert list(tmp_path.iterdir()) == []


def test_made_up_cityscapes_pass_the_check_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gate_lightning.data.segmentation.cityscapes import CityscapesDataModule

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("segmentation")
    monkeypatch.setitem(module.SIZES, "cityscapes", (64, 128))
    (root,) = module.made_up_data(["dataset=cityscapes"], tmp_path)
    report = CityscapesDataModule(root.removeprefix("dataset.root=")).check("full")
    assert not report.errors
    assert module.made_up_data(["dataset=cityscapes", root], tmp_path) == []


def test_correspondences_are_measured_in_both_ways(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    small = ["--pairs", "1", "--channels", "64", "--side", "6", "--size", "90", "120", "--keypoints", "3"]
    module = importlib.import_module("correspondence")
    try:
        module.main(small)
        lines = capsys.readouterr().out.splitlines()
        ratios = re.fullmatch(r"match (\d+)x, memory (\d+)x", lines[-1])
        assert ratios and float(ratios[2]) > 5  # 64 × 90 × 120 numbers against a few maps of 90 × 120
        monkeypatch.setattr(module, "native", lambda source, target, size, points: points + 1.0)
        with pytest.raises(SystemExit, match="matches differ"):
            module.main(small)
    finally:
        torch.set_num_threads(threads)


def test_propagation_is_measured_in_both_ways(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    small = ["--frames", "1", "--channels", "16", "--rows", "12", "--columns", "20", "--last", "3", "--radius", "2"]
    module = importlib.import_module("propagation")
    try:
        module.main([*small, "--top-k", "4"])
        lines = capsys.readouterr().out.splitlines()
        ratios = re.fullmatch(r"propagate (\d+\.\d)x, memory (\d+)x", lines[-1])
        assert ratios and float(ratios[2]) >= 2
        module.main([*small, "--video", "6"])
        assert capsys.readouterr().out.splitlines()[-1].startswith("frame 5: 4 frames kept, ")
        monkeypatch.setattr(module, "ready", lambda rule, context: lambda query: context[0][1])
        with pytest.raises(SystemExit, match="labels differ"):
            module.main(small)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_launches_of_a_pass_are_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads, module = torch.get_num_threads(), importlib.import_module("launches")
    monkeypatch.setattr(module.dispatch, "_plain", module.dispatch._plain)  # both are changed, and changed back
    monkeypatch.setattr(module.bank, "_bound_by_launches", module.bank._bound_by_launches)
    try:
        module.main(["--repeats", "1"])
    finally:
        torch.set_num_threads(threads)
    found = re.findall(r"^(\w+): (\d+) kernels, (\d+) views$", capsys.readouterr().out, re.MULTILINE)
    (eager, *more), (replayed, *fewer) = found
    assert (eager, replayed) == ("eager", "replayed")
    assert all(int(one) < int(other) for one, other in zip(fewer, more, strict=True))


def test_work_of_the_host_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    try:
        importlib.import_module("host_work").main(["--batch", "2", "--size", "64", "--repeats", "1"])
    finally:
        torch.set_num_threads(threads)
    rows = capsys.readouterr().out.splitlines()[1:]
    assert len(rows) == 7
    assert all(float(row[52:]) >= 0 for row in rows)


def test_group_norms_are_compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    importlib.import_module("group_norm").main(["--repeats", "1"])
    rows = [row.split() for row in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["1x64x8x12", "2x128x9x7"]
    assert all(float(row[1]) > 0 and float(row[2]) > 0 and 0 < float(row[4]) < 5e-3 for row in rows)


def test_resizing_is_timed_in_three_ways(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = torch.get_deterministic_debug_mode()
    try:
        importlib.import_module("resizing").main(["--shape", "1", "4", "8", "6", "--repeats", "1"])
    finally:
        torch.set_deterministic_debug_mode(before)
    rows = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["torch", "exact, torch", "exact, here"]
    assert all(float(row[-1].split()[1]) < 1e-5 for row in rows)  # the gradient is torch's
