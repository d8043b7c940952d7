"""What takes several runs of train.py: two processes against one, and the table of stored views."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.support.paths import BENCHMARKS

SMALL = ("backbone.weights=random", "techniques=none", "dataset.train=32", "dataset.val=16", "dataset.test=16")


@pytest.mark.slow
@pytest.mark.parametrize("views", [0, 13], ids=["new views", "stored views"])
def test_fifty_steps_end_in_the_same_metrics(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], views: int
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    cache = (f"cache.augmented_views={views}", "cache.folder=${hydra:run.dir}/cache") if views else ()
    one, two = importlib.import_module("two_processes").main(["--steps", "50", "--batch", "8", *SMALL, *cache])
    assert two.metrics == pytest.approx(one.metrics, abs=1e-3)
    assert one.metrics["val/mIoU"] > 0.01
    assert len(two.peak_gib) == 2
    assert all(0.1 < peak < 4 for peak in (*one.peak_gib, *two.peak_gib))
    assert "memory at most" in capsys.readouterr().out


@pytest.mark.slow
def test_the_table_of_stored_views(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    steps = ("trainer.max_steps=8", "trainer.val_check_interval=8", "trainer.log_every_n_steps=2")
    arguments = ["--views", "0,1", "--seeds", "0", "--output", str(tmp_path), *SMALL, *steps, "trainer.accelerator=cpu"]
    main = importlib.import_module("cached_views").main
    rows = main(arguments)
    assert rows[0][0]["megabytes"] == 0
    assert rows[1][0]["megabytes"] > 1
    assert capsys.readouterr().out.count("|\n") == 4
    assert main(arguments) == rows  # read, not measured again
