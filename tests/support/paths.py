"""Folders of this repository."""

from pathlib import Path

__all__ = ["BENCHMARKS", "CONF", "GOLDEN", "REPOSITORY"]

REPOSITORY = Path(__file__).resolve().parents[2]
BENCHMARKS = REPOSITORY / "benchmarks"
CONF = REPOSITORY / "conf"
#: reference outputs, see its README.md
GOLDEN = REPOSITORY / "tests" / "golden"
