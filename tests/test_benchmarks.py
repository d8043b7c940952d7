"""The benchmark of the feature engine, end to end on the tiny architecture."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.skipif(sys.platform != "linux", reason="it reads its memory from /proc")
def test_the_engine_is_compared_with_the_naive_loop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
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
