"""HTML reports of a run, of a sweep or of several runs, made from their files: ``eval.py tool=report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gate_lightning.errors import ConfigError
from gate_lightning.tools.report.page import write_page
from gate_lightning.tools.report.run_page import REPORT, is_run, run_context
from gate_lightning.tools.report.sweep_page import sweep_context
from gate_lightning.utils.units import human_size

__all__ = ["REPORT", "report", "write_report"]


def report(
    runs: str | Sequence[str] | None, target: str | None = None, metric: str | None = None, baseline: str | None = None
) -> str:
    """Write the report of a run, a sweep or several runs.

    Args:
        runs: a run folder, a folder that contains run folders (a sweep), or several of these.
        target: folder of ``report.html``; None is ``runs`` itself, if it is one.
        metric: of several runs: what they are compared by; None is what they monitored, or the same of the other split.
        baseline: of several runs: label of the row that differences refer to; None is plain features, if there.

    Returns:
        Path and size of the file.

    Raises:
        ConfigError: no run, several without a target, a metric or a baseline that there is not, or no jinja2.
        DataError: a file of the run is damaged.
    """
    if not runs:
        raise ConfigError("nothing to report on: give run=<run or sweep folder>, or run=[<run>,<run>]")
    places = [runs] if isinstance(runs, str | Path) else list(runs)
    if len(places) > 1 and target is None:
        raise ConfigError("a report of several folders needs a place: output=<folder>")
    path = write_report(places, Path(target or places[0]), metric, baseline)
    return f"report: {path} ({human_size(path.stat().st_size)})"


def write_report(
    places: Sequence[str | Path], target: Path, metric: str | None = None, baseline: str | None = None
) -> Path:
    """Write ``report.html`` into ``target``, and give its path back; see `report`."""
    file = target / REPORT
    if len(places) == 1 and is_run(Path(places[0])):
        write_page("run.html", file, run_context(Path(places[0])))
    else:
        write_page("sweep.html", file, sweep_context([str(place) for place in places], file, metric, baseline))
    return file
