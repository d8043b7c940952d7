"""Makes the figures of README and documentation, with the embedded model alone.

    .venv/bin/python docs/tools/figures.py                    # trains what it draws; about ten minutes on two cores
    .venv/bin/python docs/tools/figures.py --run <run folder> --sweep <sweep folder>      # draws runs that are there
    .venv/bin/python docs/tools/figures.py --app     # the page of tool=app alone

The sweep is the command below, the run ``python train.py``. docs/images/data_flow.svg is drawn by hand.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import gate_lightning as gl
from gate_lightning.data.samples import SegmentationSample
from gate_lightning.engine.jobs.trained_run import TrainedRun
from gate_lightning.ops.pca import principal_components, to_unit_range
from gate_lightning.tools.report.report import write_report
from gate_lightning.visualization.grid import image_grid
from gate_lightning.visualization.overlay import error_map, legend_entries
from gate_lightning.visualization.palette import colorize

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGES = REPOSITORY / "docs/images"
OUTPUTS = REPOSITORY / "outputs/documentation"
TRAINING = ("train.py",)
SWEEP = (
    *("train.py", "-m", "techniques=none", "head=linear", "loss=cross_entropy", "callbacks=quiet", "logger=csv"),
    "layers=up-level1-upsampler-out,up-level2-repeat1-vit-out,up-level2-upsampler-out,up-level3-repeat1-vit-out",
    *("timestep=25,50,100,200,400", "trainer.max_steps=60", "trainer.val_check_interval=60", "dataset.test=4"),
)
#: test scenes with several objects
SHOWN = (2, 9, 24, 36)
#: width and height of the browser's window
REPORT_SIZE = (1000, 1250)
APP_SIZE = (1280, 1095)
#: layer whose features are drawn: 16 × 16 positions of a 64 px image
LAYER = "up-level2-upsampler-out"


def main() -> None:
    """Draw everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a run of the default job")
    parser.add_argument("--sweep", type=Path, help="folder of the sweep")
    parser.add_argument("--app", action="store_true", help="draw the page of tool=app alone")
    given = parser.parse_args()
    write("app", app_page())
    if given.app:
        return
    run = given.run or started(TRAINING, "hydra.run.dir", OUTPUTS / "run")
    sweep = given.sweep or started(SWEEP, "hydra.sweep.dir", OUTPUTS / "sweep")
    loaded = gl.load_run(run)
    source = loaded.components.datamodule.source("test")
    samples = [source.load(index) for index in SHOWN]
    write("predictions", predictions(loaded, samples))
    write("steering", steering(samples[:3]))
    write("confusion", np.asarray(Image.open(run / "images/confusion_test.png").convert("RGB")))
    write("report", report(run))
    write("heat_map", np.asarray(Image.open(sweep / "comparison_grid.png").convert("RGB")))


def started(command: tuple[str, ...], key: str, folder: Path) -> Path:
    """Folder of a run or a sweep, after it has been made."""
    subprocess.run([sys.executable, *command, f"{key}={folder}"], cwd=REPOSITORY, check=True)
    return folder


def write(name: str, image: NDArray[np.uint8]) -> None:
    """Write a PNG of at most 256 colours, which is a third of the size."""
    IMAGES.mkdir(exist_ok=True)
    path = IMAGES / f"{name}.png"
    Image.fromarray(image).quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(REPOSITORY)}: {path.stat().st_size / 1000:.0f} kB, {image.shape[1]} × {image.shape[0]}")


def report(run: Path) -> NDArray[np.uint8]:
    """Upper part of the run's HTML report, as Chromium shows it."""
    with tempfile.TemporaryDirectory() as folder:
        return page_image(write_report([run], Path(folder)).as_uri(), REPORT_SIZE)


def app_page() -> NDArray[np.uint8]:
    """First screen of the page of ``tool=app``."""
    command = (sys.executable, "eval.py", "tool=app", "tool.port=0", "hydra.run.dir=outputs/documentation/app")
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as page:
        try:
            assert page.stdout is not None
            lines = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in page.stdout)
            address = next(found.group() for found in lines if found)
            return page_image(address, APP_SIZE)
        finally:
            page.terminate()


def page_image(address: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A page as Chromium shows it in a window of (width, height) pixels."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("images of pages need Chromium: apt install chromium")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.png"
        options = ("--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=8000")
        shot = (f"--screenshot={file}", f"--window-size={','.join(map(str, size))}", address)
        subprocess.run([browser, *options, *shot], check=True, capture_output=True)
        return np.asarray(Image.open(file).convert("RGB"))


def predictions(run: TrainedRun, samples: list[SegmentationSample]) -> NDArray[np.uint8]:
    """Two scenes a line, each with truth, prediction and errors."""
    labels = run.components.labels
    found = [run.predict(sample.image, sample.caption) for sample in samples]
    cells = [
        [
            sample.image,
            colorize(sample.mask, labels.palette, labels.ignore_index),
            colorize(prediction, labels.palette),
            error_map(sample.image, prediction, sample.mask, labels.ignore_index),
        ]
        for sample, prediction in zip(samples, found, strict=True)
    ]
    lines = [left + right for left, right in zip(cells[::2], cells[1::2], strict=True)]
    titles = 2 * ["image", "truth", "prediction", "errors"]
    return image_grid(lines, titles, legend=legend_entries(found, labels.classes, labels.palette), tile_height=128)


def steering(samples: list[SegmentationSample]) -> NDArray[np.uint8]:
    """Principal components of plain and steered features, of one basis for all branches and images."""
    adapter = gl.LoRA("moderate", weights="asset:tiny/lora/moderate.safetensors")
    edges = gl.ControlNet("canny", low=60, high=110, blur_sigma=1.3)
    techniques = {
        "plain": (),
        "prompt": (gl.Prompt(),),
        "ControlNet": (edges,),
        "LoRA": (adapter,),
        "all three": (gl.Prompt(), edges, adapter),
    }
    branches = [gl.Branch(name, 50, (LAYER,), used, prompt="a photo") for name, used in techniques.items()]
    images = torch.stack([torch.from_numpy(sample.image).permute(2, 0, 1) / 127.5 - 1 for sample in samples])
    conditions = gl.Conditions(
        tuple(sample.sample_id for sample in samples), captions=tuple(sample.caption for sample in samples)
    )
    features = gl.FeatureExtractor(gl.load_backbone("tiny"), branches, noise="shared")(images, conditions)
    maps = [features[name][LAYER] for name in techniques]
    project = principal_components(maps)
    columns = [
        (255 * colour).byte().permute(0, 2, 3, 1).numpy() for colour in to_unit_range([project(m) for m in maps])
    ]
    lines = [[sample.image, *(column[row] for column in columns)] for row, sample in enumerate(samples)]
    return image_grid(lines, ["image", *techniques], tile_height=128)


if __name__ == "__main__":
    main()
