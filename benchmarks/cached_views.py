"""What training on K stored views costs in mIoU and saves in time, against a new view in every epoch (K = new).

    python benchmarks/cached_views.py [--views 0,1,2,4,8] [--seeds 0,1,2] [--output folder] [overrides of train.py …]
    python benchmarks/cached_views.py trainer.max_steps=500 techniques=all
    python benchmarks/cached_views.py dataset=folder dataset.root=<CamVid> dataset.ignore_index=11 techniques=none

Each row is a run of train.py in a process of its own with an empty cache, so the first K epochs compute features.
Images a second are the median of the run. `--output` keeps the run folders and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SETTINGS = ("logger=csv", "callbacks.predictions=null", "callbacks.feature_pca=null", "callbacks.confusion=null")
Row = dict[str, float]


def measure(views: int, seed: int, folder: Path, overrides: list[str]) -> Row:
    """One run; read again if it is there."""
    result = folder / "benchmark.json"
    if result.is_file():
        return json.loads(result.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    cache = folder / "cache"
    chosen = "" if any(item.startswith("dataset=") for item in overrides) else "dataset.augment=true"
    command = [sys.executable, "train.py", *SETTINGS, *([chosen] if chosen else []), *overrides, f"seed={seed}"]
    command += [f"hydra.run.dir={folder}", f"cache.augmented_views={views}"]
    command += [f"cache.folder={cache}"] if views else []
    started = time.perf_counter()
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    metrics = json.loads((folder / "metrics.json").read_text())
    size = sum(path.stat().st_size for path in cache.rglob("*.safetensors"))
    row = {
        "mIoU": 100 * metrics.get("test/mIoU", metrics["val/mIoU"]),
        "seconds": seconds,
        "pace": _pace(folder / "metrics.csv"),
        "megabytes": size / 1e6,
    }
    shutil.rmtree(cache, ignore_errors=True)
    result.write_text(json.dumps(row))
    return row


def _pace(path: Path) -> float:
    """Images a second, the median of what was logged after the first values."""
    with path.open() as file:
        found = [float(row["train/images_per_second"] or 0) for row in csv.DictReader(file)]
    kept = [value for value in found if value]
    return statistics.median(kept[1:] or kept)


def _text(values: list[float], digits: int) -> str:
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def main(arguments: list[str] | None = None) -> dict[int, list[Row]]:
    """Measure, print a table, return the rows by K."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", default="0,1,2,4,8", help="numbers of views; 0: a new one in every epoch")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--output", type=Path, help="folder that keeps the runs")
    known, overrides = parser.parse_known_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (known.output or Path(temporary)).resolve()
        rows = {
            views: [
                measure(views, seed, folder / f"views{views}_seed{seed}", overrides)
                for seed in map(int, known.seeds.split(","))
            ]
            for views in map(int, known.views.split(","))
        }
    print("| K | mIoU | seconds of the run | images a second | MB on disk |")
    print("|---|---|---|---|---|")
    for views, measured in rows.items():
        columns = {name: [row[name] for row in measured] for name in measured[0]}
        cells = [_text(columns[name], digits) for name, digits in (("mIoU", 1), ("seconds", 0))]
        cells += [_text(columns["pace"], 0), f"{statistics.mean(columns['megabytes']):.1f}"]
        print(f"| {views or 'new'} | {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    main()
