"""``tool=extract``: the same files whoever writes them, in one go or not, and features of the image's own size."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gate_lightning.backbones.base import Backbone
from gate_lightning.data.core.required_inputs import RequiredInputs
from gate_lightning.errors import CacheError, ConfigError, DataError
from gate_lightning.features.branch import Branch
from gate_lightning.features.caches.folder import read_features
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.wrappers.pooled import PooledExtractor
from gate_lightning.structures import Conditions, Features
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.prompt import Prompt
from gate_lightning.tools.extraction import extract as module
from gate_lightning.tools.extraction.extract import extract
from tests.support.paths import REPOSITORY
from tests.support.small_networks import build

FINE, COARSE = "up-level2-upsampler-out", "up-level0-upsampler-out"
SIZES = {
    "p0": (64, 64),
    "sub/p1": (64, 96),
    "p2": (70, 50),
    "sub/p3": (64, 64),
    "p4": (64, 64),
    "sub/deep/p5": (64, 64),
}


class Counted(FeatureExtractor):
    batches: list[tuple[str, ...]]
    die_after: int | None = None

    def forward(self, images: torch.Tensor, conditions: Conditions) -> Features:
        self.batches.append(conditions.sample_ids)
        if self.die_after is not None and len(self.batches) > self.die_after:
            raise KeyboardInterrupt
        return super().forward(images, conditions)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build("tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        blocks = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width]).save(path)
    return root


def extractor(backbone: Backbone, **settings: Any) -> Counted:
    branches = [Branch("plain", 50, (COARSE, FINE), prompt="a photo"), Branch("late", 300, (FINE,), prompt="red")]
    made = Counted(backbone, branches, **settings)
    made.batches = []
    return made


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(backbone: Backbone, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes in one go."""
    output = tmp_path_factory.mktemp("features")
    extract(extractor(backbone), folder, output, batch_size=2, device="cpu")
    return content(output)


def test_every_image_has_a_file_of_its_name(whole: dict[str, bytes]) -> None:
    assert sorted(whole) == sorted(["manifest.json", *(f"{name}.safetensors" for name in SIZES)])


def test_features_are_those_of_the_extractor(backbone: Backbone, folder: Path, tmp_path: Path) -> None:
    extract(extractor(backbone), folder / "sub/p1.png", tmp_path, device="cpu", dtype="float32")
    image = torch.from_numpy(np.array(Image.open(folder / "sub/p1.png"))).permute(2, 0, 1)[None].float() / 127.5 - 1
    expected = extractor(backbone)(image, Conditions(("p1.png",)))
    found = read_features(tmp_path / "p1.safetensors")
    assert list(found) == ["plain", "late"]
    assert list(found["plain"]) == [COARSE, FINE]
    for branch, maps in expected.items():
        for layer, value in maps.items():
            torch.testing.assert_close(found[branch][layer], value[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batches_before", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_a_resumed_extraction_writes_the_same(
    backbone: Backbone, folder: Path, tmp_path: Path, whole: dict[str, bytes], batches_before: int
) -> None:
    stopped = extractor(backbone)
    stopped.die_after = batches_before
    with pytest.raises(KeyboardInterrupt):
        extract(stopped, folder, tmp_path, batch_size=2, device="cpu")
    there = len(content(tmp_path)) - 1
    resumed = extractor(backbone)
    report = extract(resumed, folder, tmp_path, batch_size=2, device="cpu")
    assert content(tmp_path) == whole
    assert f"features of {len(SIZES) - there} images written" in report
    assert len(resumed.batches) == 4 - batches_before


def test_one_missing_file_is_made_in_its_batch(
    backbone: Backbone, folder: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    extract(extractor(backbone), folder, tmp_path, batch_size=2, device="cpu")
    damaged = tmp_path / "p4.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    again = extractor(backbone)
    extract(again, folder, tmp_path, batch_size=2, device="cpu")
    assert again.batches == [("p0.png", "p4.png")]
    assert content(tmp_path) == whole


@pytest.mark.thorough
def test_a_changed_image_is_read_again(backbone: Backbone, folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name, source in (("a", "p0"), ("b", "p4")):
        (images / f"{name}.png").write_bytes((folder / f"{source}.png").read_bytes())
    extract(extractor(backbone), images, tmp_path / "out", batch_size=1, device="cpu")
    (images / "b.png").write_bytes((folder / "sub/p3.png").read_bytes())
    again = extractor(backbone)
    extract(again, images, tmp_path / "out", batch_size=1, device="cpu")
    assert again.batches == [("b.png",)]


def _as_rank(rank: int, backbone: Backbone, folder: Path, output: Path) -> None:
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": "2"})
    extract(extractor(backbone), folder, output, batch_size=2, device="cpu")


@pytest.mark.thorough
def test_two_processes_write_what_one_writes(
    backbone: Backbone, folder: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    context = multiprocessing.get_context("fork")  # seconds faster than a fresh interpreter; there is one thread
    processes = [context.Process(target=_as_rank, args=(rank, backbone, folder, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert content(tmp_path) == whole


@pytest.mark.slow
def test_two_processes_of_the_command_line(folder: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "eval.py",
        "tool=extract",
        f"input={folder}",
        "techniques=none",
        "backbone.weights=random",
    ]
    for number in (1, 2):
        output = [f"output={tmp_path / str(number)}", f"tool.processes={number}", f"hydra.run.dir={tmp_path / 'log'}"]
        subprocess.run([*command, *output], cwd=REPOSITORY, check=True, timeout=300)
    assert content(tmp_path / "1") == content(tmp_path / "2")
    failing = [
        *command,
        "timestep=7",
        f"output={tmp_path / '1'}",
        "tool.processes=2",
        f"hydra.run.dir={tmp_path / 'log'}",
    ]
    failed = subprocess.run(failing, cwd=REPOSITORY, check=False, timeout=300, capture_output=True, text=True)
    assert failed.returncode == 2
    assert "timestep: 50 → 7" in failed.stderr


def test_images_of_any_size_are_cut_back(backbone: Backbone, folder: Path, tmp_path: Path) -> None:
    extract(extractor(backbone), folder / "p2.png", tmp_path, device="cpu")  # 70 × 50 pixels
    maps = read_features(tmp_path / "p2.safetensors")["plain"]
    strides = {layer: info.stride for layer, info in extractor(backbone).feature_info["plain"].items()}
    assert {layer: tuple(value.shape[1:]) for layer, value in maps.items()} == {
        layer: (-(-70 // stride), -(-50 // stride)) for layer, stride in strides.items()
    }


@pytest.mark.parametrize(("resize", "expected"), [("square", (32, 32)), ("short", (32, 48))])
def test_resized_images(
    backbone: Backbone, folder: Path, tmp_path: Path, resize: str, expected: tuple[int, int]
) -> None:
    extract(extractor(backbone), folder / "sub/p1.png", tmp_path, resize=resize, size=128, device="cpu")
    stride = extractor(backbone).feature_info["late"][FINE].stride
    size = tuple(side * 4 // stride for side in expected)
    assert read_features(tmp_path / "p1.safetensors")["late"][FINE].shape[1:] == size


def test_square_resizing_is_that_of_the_field(backbone: Backbone, folder: Path, tmp_path: Path) -> None:
    squared = tmp_path / "squared"
    squared.mkdir()
    Image.open(folder / "p2.png").resize((64, 64)).save(squared / "p2.png")  # Pillow's default: bicubic
    extract(extractor(backbone), folder / "p2.png", tmp_path / "a", resize="square", size=64, device="cpu")
    extract(extractor(backbone), squared, tmp_path / "b", device="cpu")
    one, other = (read_features(tmp_path / name / "p2.safetensors") for name in "ab")
    assert torch.equal(one["late"][FINE], other["late"][FINE])


def test_pooling_averages(backbone: Backbone, folder: Path, tmp_path: Path) -> None:
    for pooling in (1, 4):
        output = tmp_path / str(pooling)
        pooled = PooledExtractor(extractor(backbone), pooling)
        extract(pooled, folder / "p0.png", output, dtype="float32", device="cpu")
    plain, pooled = (read_features(tmp_path / name / "p0.safetensors")["plain"][FINE] for name in "14")
    channels, height, width = plain.shape
    blocks = plain.reshape(channels, height // 4, 4, width // 4, 4).mean((2, 4))
    torch.testing.assert_close(pooled, blocks)


@pytest.mark.thorough
def test_patterns_and_captions(backbone: Backbone, folder: Path, tmp_path: Path) -> None:
    made = extractor(backbone)
    extract(made, folder / "sub" / "**" / "*.png", tmp_path / "out", batch_size=1, device="cpu")
    assert [ids for (ids,) in made.batches] == ["deep/p5.png", "p1.png", "p3.png"]
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes((folder / "p0.png").read_bytes())
    told = FeatureExtractor(backbone, [Branch("told", 50, (FINE,), (Prompt(None),))])
    with pytest.raises(DataError, match="caption"):
        extract(told, tmp_path / "images", tmp_path / "told", device="cpu")
    (tmp_path / "images/captions.txt").write_text("a.png\ta red house\n")
    extract(told, tmp_path / "images", tmp_path / "told", device="cpu")
    fixed = FeatureExtractor(backbone, [Branch("told", 50, (FINE,), (Prompt("a red house"),))])
    extract(fixed, tmp_path / "images", tmp_path / "fixed", device="cpu")
    one, other = (read_features(tmp_path / name / "a.safetensors")["told"][FINE] for name in ("told", "fixed"))
    assert torch.equal(one, other)


def test_control_images_of_a_folder(backbone: Backbone, folder: Path, tmp_path: Path) -> None:
    blank = tmp_path / "edges/p2.png"
    blank.parent.mkdir()
    Image.new("RGB", (50, 70)).save(blank)
    steered = FeatureExtractor(backbone, [Branch("c", 50, (FINE,), (ControlNet(name="canny"),))])
    for name, required_inputs in (("own", None), ("given", RequiredInputs({"canny": str(blank.parent)}))):
        extract(steered, folder / "p2.png", tmp_path / name, device="cpu", required_inputs=required_inputs)
    own, given = (read_features(tmp_path / name / "p2.safetensors")["c"][FINE] for name in ("own", "given"))
    assert own.shape == given.shape
    assert not torch.equal(own, given)


@pytest.fixture(scope="module")
def maps(backbone: Backbone, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Of one image and branch, from the default layout."""
    output = tmp_path_factory.mktemp("default")
    extract(extractor(backbone), folder / "sub", output, device="cpu")
    return read_features(output / "deep/p5.safetensors")["plain"]


@pytest.mark.parametrize("layout", ["npy_by_layer", "npy_by_image", "npy_joined"])
@pytest.mark.slow
def test_released_layouts(
    backbone: Backbone, folder: Path, tmp_path: Path, layout: str, maps: dict[str, torch.Tensor]
) -> None:
    extract(extractor(backbone), folder / "sub", tmp_path, layout=layout, device="cpu")
    place = {"npy_by_layer": f"plain/{FINE}/deep/p5.npy", "npy_by_image": f"plain/deep/p5/{FINE}.npy"}
    found = np.load(tmp_path / place.get(layout, "plain/deep/p5.npy"))
    expected = maps[FINE].numpy()
    if layout == "npy_joined":
        ratio = expected.shape[1] // maps[COARSE].shape[1]
        coarse = maps[COARSE].numpy().repeat(ratio, axis=1).repeat(ratio, axis=2)
        expected = np.concatenate([coarse, expected])
    np.testing.assert_array_equal(found, expected)
    before = content(tmp_path)
    next(path for path in (tmp_path / "plain").rglob("*.npy")).write_bytes(b"")
    again = extractor(backbone)
    extract(again, folder / "sub", tmp_path, layout=layout, device="cpu")
    assert len(again.batches) == 1
    assert content(tmp_path) == before


def test_one_branch_needs_no_folder_of_its_own(backbone: Backbone, folder: Path, tmp_path: Path) -> None:
    plain = FeatureExtractor(backbone, [Branch("plain", 50, (FINE,))])
    extract(plain, folder / "p0.png", tmp_path, layout="npy_by_layer", device="cpu")
    assert sorted(content(tmp_path)) == [".records/p0.json", "manifest.json", f"{FINE}/p0.npy"]


@pytest.mark.thorough
def test_the_size_is_told_before(
    backbone: Backbone, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger=module.__name__):
        extract(extractor(backbone), folder, tmp_path, batch_size=2, device="cpu")
    written = sum(
        value.nbytes
        for name in SIZES
        for maps in read_features(tmp_path / f"{name}.safetensors").values()
        for value in maps.values()
    )
    assert f"6 images, 2 branches, 3 layers: {module.human_size(written)} in float16" in caplog.text


def test_an_output_of_another_description_is_refused(backbone: Backbone, folder: Path, tmp_path: Path) -> None:
    extract(extractor(backbone), folder / "p0.png", tmp_path, device="cpu")
    for change, message in (
        ({"resize": "square", "size": 64}, "resize: 'none' → 'square'"),
        ({"dtype": "float32"}, "stored_as: 'float16' → 'float32'"),
        ({"layout": "npy_joined"}, "layout: '.absent.' → 'npy_joined'"),
    ):
        with pytest.raises(CacheError, match=message):
            extract(extractor(backbone), folder / "p0.png", tmp_path, device="cpu", **change)
    with pytest.raises(CacheError, match=r"extractor\.seed: 0 → 1"):
        extract(extractor(backbone, seed=1), folder / "p0.png", tmp_path, device="cpu")
    with pytest.raises(CacheError, match=r"extractor\.pooling: '.absent.' → 2"):
        extract(PooledExtractor(extractor(backbone), 2), folder / "p0.png", tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize": "crop"}, "none, short, square"),
        ({"resize": "square", "size": 0}, "size=0: expected a whole number from 1"),
        ({"batch_size": 0}, r"batch_size \(tool.batch_size\)=0"),
        ({"layout": "pt"}, "npy_joined"),
        ({"layout": "npy_joined", "dtype": "bfloat16"}, "float16, float32"),
    ],
)
def test_settings_that_cannot_work(
    backbone: Backbone, folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        extract(extractor(backbone), folder, tmp_path, device="cpu", **change)


def test_images_that_cannot_work_are_named(backbone: Backbone, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        extract(extractor(backbone), tmp_path / "none", tmp_path / "out", device="cpu")
    with pytest.raises(DataError, match="no images"):
        extract(extractor(backbone), folder / "*.jpg", tmp_path / "out", device="cpu")
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match=r"small.png: an image of .* too small"):
        extract(extractor(backbone), tmp_path / "small.png", tmp_path / "out", device="cpu")


def test_strips_are_named_before_anything_is_read(backbone: Backbone, folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(folder, images)
    Image.new("RGB", (300, 3)).save(images / "z.png")
    with pytest.raises(DataError, match=r"z.png: 300×3 pixels .* enlarged to 3200×32"):
        extract(extractor(backbone), images, tmp_path / "out", device="cpu", resize="short", size=32)
    assert not (tmp_path / "out").exists()


def test_attention_weights_cannot_be_cut_back(backbone: Backbone, folder: Path, tmp_path: Path) -> None:
    layer = next(name for name, spec in backbone.layers.items() if spec.kind == "attention")
    maps = FeatureExtractor(backbone, [Branch("maps", 50, (layer,))])
    extract(maps, folder / "p0.png", tmp_path / "fits", device="cpu")
    assert read_features(tmp_path / "fits/p0.safetensors")["maps"][layer].ndim == 3
    with pytest.raises(DataError, match=r"p2.png: 70 × 50 pixels .*resize=square"):
        extract(maps, folder / "p2.png", tmp_path / "padded", device="cpu")
