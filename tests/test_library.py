"""The public API as the documentation shows it: every code block runs, on the embedded backbone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gate_lightning
from gate_lightning.errors import ConfigError, DataError
from tests.support.paths import REPOSITORY


def blocks(name: str) -> list[str]:
    """Python code blocks of a page."""
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the images that the documentation speaks of."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    (tmp_path / "my_images/sub").mkdir(parents=True)
    for name in ("image.jpg", "wide.jpg", "my_images/sub/image.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_ten_lines_of_the_readme(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = blocks("README.md")[0]
    assert example == blocks("docs/library.md")[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    exec(compile(example, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["plain", "steered"]
    assert all("'up-level1-upsampler-out': (1, " in line for line in lines)


@pytest.mark.thorough
def test_all_blocks_of_the_page(here: Path) -> None:
    space: dict[str, object] = {}
    for number, block in enumerate(blocks("docs/library.md")):
        exec(compile(block, f"docs/library.md, block {number}", "exec"), space)
    assert (here / "features/sub/image.safetensors").is_file()


def test_every_public_name_is_there_and_documented() -> None:
    page = (REPOSITORY / "docs/library.md").read_text(encoding="utf-8")
    for name in gate_lightning.__all__:
        assert getattr(gate_lightning, name) is not None
        assert name in dir(gate_lightning)
        assert name == "__version__" or f"`{name}" in page
    with pytest.raises(AttributeError, match="FeatureExtracter"):
        _ = gate_lightning.FeatureExtracter


def test_old_names_say_the_new_ones() -> None:
    for old, new in (("read_pictures", "read_images"), ("FusedExtractor", "MultiBackboneExtractor")):
        with pytest.raises(AttributeError, match=f"no attribute '{old}'; it is called {new} now"):
            getattr(gate_lightning, old)


def test_importing_the_package_imports_no_torch() -> None:
    script = "import sys, gate_lightning; print(sorted({'torch', 'hydra', 'diffusers', 'numpy'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert result.stdout.strip() == "[]"


def test_backbones_by_name() -> None:
    backbone = gate_lightning.load_backbone("tiny", weights="random", seed=5)
    assert backbone.identity.name
    with pytest.raises(ConfigError, match=r"no backbone 'sd51'; expected one of .*sd15"):
        gate_lightning.load_backbone("sd51")
    with pytest.raises(ConfigError, match=r"no setting wieghts; it has .*weights"):
        gate_lightning.load_backbone("tiny", wieghts="x")


@pytest.mark.parametrize(
    "settings",
    [
        {"controlnets": 3},
        {"controlnets": [1]},
        {"controlnets": {"a": {"b": 1}}},
        {"size_conditions": 3, "weights": "random", "architecture": "sdxl"},
        {"dtype": ["float32"]},
        {"weights": object()},
        {"_target_": "os.system"},
    ],
)
def test_settings_of_other_types_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        gate_lightning.load_backbone("sdxl" if "size_conditions" in settings else "tiny", **settings)


def test_a_backbone_takes_new_keys_of_its_mappings() -> None:
    given = {"depth": "asset:tiny/controlnet"}
    backbone = gate_lightning.load_backbone("tiny", weights="random", controlnets=given)
    backbone.require_controlnet("depth")
    branch = gate_lightning.Branch("x", 50, "dift", (gate_lightning.ControlNet("depth"),))
    assert gate_lightning.FeatureExtractor(backbone, [branch]).feature_info["x"]


def test_squares_by_pils_filter_as_the_released_code_reads_them(here: Path) -> None:
    images, _ = gate_lightning.read_images("wide.jpg", size=32, interpolation="bicubic")
    released = np.asarray(Image.open("wide.jpg").resize((32, 32)).convert("RGB"))  # its two lines
    assert np.array_equal(((images[0].permute(1, 2, 0) + 1) * 127.5).round().numpy(), released)
    assert not torch.equal(images, gate_lightning.read_images("wide.jpg", size=32)[0])
    with pytest.raises(ConfigError, match=r"interpolation='bicubc': did you mean bicubic"):
        gate_lightning.read_images("wide.jpg", size=32, interpolation="bicubc")  # type: ignore[arg-type]


def test_reading_images(here: Path) -> None:
    Image.new("RGB", (16, 8), (255, 0, 0)).save(here / "red.png")
    images, conditions = gate_lightning.read_images("red.png")
    assert images.shape == (1, 3, 8, 16)
    assert [float(value) for value in images[0, :, 0, 0]] == [1.0, -1.0, -1.0]
    assert conditions.sample_ids == ("red.png",)
    both, told = gate_lightning.read_images(["red.png", "wide.jpg"], size=(8, 24), captions=["a", ""])
    assert both.shape == (2, 3, 8, 24)
    assert told.captions == ("a", "")
    with pytest.raises(DataError, match="give read_images a size"):
        gate_lightning.read_images(["red.png", "wide.jpg"])
    with pytest.raises(DataError, match="captions for all or none"):
        gate_lightning.read_images("red.png", captions=["a", "b"])


def test_reading_control_images(here: Path) -> None:
    Image.new("RGB", (96, 80), (255, 0, 51)).save(here / "depth.png")
    given = {"depth": ["depth.png", "depth.png"]}
    images, conditions = gate_lightning.read_images(["image.jpg", "wide.jpg"], size=(8, 16), control_images=given)
    depth = conditions.control_images["depth"]
    assert depth.shape == images.shape == (2, 3, 8, 16)
    assert depth[1, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])
    with pytest.raises(DataError, match="'depth': 1 files for 2 images; give one for each"):
        gate_lightning.read_images(["image.jpg", "wide.jpg"], control_images={"depth": "depth.png"})
    Image.new("RGB", (16, 8)).save(here / "depth.png")
    with pytest.raises(DataError, match=r"depth\.png has 16×8 pixels .*'image\.jpg' has 96×80"):
        gate_lightning.read_images("image.jpg", control_images={"depth": "depth.png"})
