"""The fuzzer of benchmarks/, on few inputs of quick formats."""

from __future__ import annotations

import importlib
import sys

import pytest

from tests.support.paths import BENCHMARKS

QUICK = "image.png,image.tif,mask-P,mask-npy,captions.jsonl,captions.csv,classes,palette,split,lora,checkpoint-pt"


@pytest.mark.skipif(sys.platform != "linux", reason="it forks, and reads its memory from /proc")
@pytest.mark.slow
def test_no_mutated_file_raises_anything_but_errors_of_ours(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    status = importlib.import_module("fuzz").main(["--inputs", "120", "--seed", "3", "--formats", QUICK])
    printed = capfd.readouterr().out
    assert printed.splitlines()[-1] == "inputs 120 unhandled 0", printed
    assert status == 0
    outcomes = [line.split() for line in printed.splitlines()[:-1]]
    assert sum(int(words[2]) for words in outcomes) > 10, "hardly a mutation leaves a file readable"
    assert sum(int(words[4]) for words in outcomes) > 40, "hardly a mutation breaks a file"


@pytest.mark.skipif(sys.platform != "linux", reason="it forks, and reads its memory from /proc")
def test_a_reader_that_raises_something_else_is_found(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    fuzz, formats = importlib.import_module("fuzz"), importlib.import_module("fuzz_formats")
    naive = formats.Format(
        "naive",
        1,
        lambda f: (f / "a.txt").write_text("1 2\n"),
        lambda f: [int(n) for n in (f / "a.txt").read_text().split()],
    )
    monkeypatch.setattr(fuzz.fuzz_formats, "formats", lambda: [naive])
    assert fuzz.main(["--inputs", "30"]) == 1
    assert "ValueError" in capfd.readouterr().out
