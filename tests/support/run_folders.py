"""A run folder with everything a report reads, made up, with names that are no harmless text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gate_lightning.utils.files import write_csv
from gate_lightning.visualization.examples import write_examples
from gate_lightning.visualization.predictions import PredictedImage

__all__ = ["CLASSES", "EVIL", "IMAGE", "make_run"]

EVIL = "<script>document.title='owned'</script>"
CLASSES = ("sky", EVIL, "a \"quoted\" & 'b'")
PALETTE = ((10, 20, 200), (20, 180, 30), (220, 210, 40))
IMAGE = "odd/ü <img src=x onerror=alert(1)> \"'&#`{{ 7*7 }}.png"


def put(folder: Path, name: str, value: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value))


def make_run(
    folder: Path, status: str = "done", value: float = 0.5, overrides: tuple[str, ...] = (), **more: Any
) -> Path:
    """The folder of a run of segmentation. ``more`` replaces what ``settings.json`` says."""
    put(folder, "status.json", {"status": status, "message": "" if status == "done" else f"step 3: {EVIL}"})
    (folder / "config.yaml").write_text(f"task: {{_target_: x}}\nnote: {EVIL!r}\n")
    put(folder, "overrides.json", [f"+note={EVIL}", *overrides])
    changed = [{"key": "seed", "value": 1, "default": 0}, {"key": "note", "value": EVIL}]
    told = {"task": "SegmentationTask", "dataset": "scenes", "monitor": "val/mIoU", "mode": "max", "seed": 1}
    put(folder, "settings.json", told | {"differences": changed} | more)
    put(folder, "metrics.json", {"val/mIoU": value, "val/aAcc": 0.75, "test/mIoU": value - 0.1, "test/loss": 1.5})
    put(
        folder,
        "cost.json",
        {"seconds_per_step": 0.25, "trained_seconds": 90.0, "trained_steps": 300, "memory_peak_gib": 1.5},
    )
    packages = {"torch": "2.0"}
    put(
        folder,
        "environment.json",
        {"version": "0.2.0", "command": ["train.py", EVIL], "packages": packages, "commit": "abc"},
    )
    branch = {
        "name": "prompt",
        "timestep": 50,
        "layers": ["up"],
        "techniques": [{"technique": "prompt"}],
        "prompt": EVIL,
    }
    weights = {"name": "tiny", "revision": "", "digest": "d" * 64, "adapters": {"moderate": "e" * 64}}
    put(folder, "frozen.json", {"backbone": weights, "branches": [branch]})
    columns = ["step", "train/loss", "val/mIoU", "weights/stride4/<b>prompt", "test/mIoU"]
    rows: list[list[Any]] = [[step, 3 - 0.1 * step, "", 0.5, ""] for step in range(10)]
    rows[4][2], rows[9][2] = 0.25, 0.5
    write_csv(folder / "metrics.csv", columns, [*rows, [10, "", 0.9, "", value - 0.1]])
    scores = [
        [name, 0.1 * number + 0.3, "nan" if number == 1 else 0.9 - 0.2 * number, 0.33]
        for number, name in enumerate(CLASSES)
    ]
    counts = [[name, *(10 if one == name else number for one in CLASSES)] for number, name in enumerate(CLASSES)]
    for split in ("val", "test"):
        write_csv(folder / f"classes_{split}.csv", ["class", "IoU", "Acc", "share"], scores)
        write_csv(folder / f"confusion_{split}.csv", ["truth", *CLASSES], counts)
        write_csv(
            folder / f"images_{split}.csv",
            ["image", "mIoU", "aAcc", "labelled"],
            [[IMAGE, 0.1, 0.2, 9], ["b", 0.3, 0.4, 9]],
        )
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8), rng.integers(0, 3, (2, 24, 32))
    shown = [PredictedImage(name, pixels, labels[0], labels[1], miou=0.125) for name in (IMAGE, "b")]
    for kind in ("first", "worst"):
        write_examples(folder / "examples" / "test" / kind, shown, CLASSES, PALETTE, 255)
    (folder / "images").mkdir(exist_ok=True)
    for name in ("confusion_test", "feature_pca"):
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
    return folder
