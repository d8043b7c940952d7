"""Control images of images that a run has not seen: `TrainedRun.predict`, and ``eval.py run=… control_images=…``."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gate_lightning.data.files.images import read_image
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.jobs.trained_run import TrainedRun, load_run
from gate_lightning.engine.jobs.training import train
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import Conditions
from tests.support.composition import SMALL, composed
from tests.support.folders import make_folder, make_image, write

SIZE = (70, 90)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose ControlNet got its images from a folder beside the data set."""
    root = tmp_path_factory.mktemp("control")
    make_folder(root / "data", {"train": [(64, 64), (64, 64)], "val": [(64, 64), (64, 64)]})
    shutil.copytree(root / "data/images", root / "depth")
    given = [item for item in SMALL if item.split("=")[0] not in ("dataset.train", "dataset.val", "dataset.test")]
    given += ["dataset=folder", f"dataset.root={root / 'data'}", "dataset.batch_size=2", "dataset.crop_size=64"]
    given += ["techniques=controlnet", "technique.controlnet.image=depth"]
    given += [f"technique.controlnet.folder={root / 'depth'}", "trainer.max_steps=2"]
    train(composed(*given), given, root / "run")
    return root / "run"


@pytest.fixture(scope="module")
def run(trained: Path) -> TrainedRun:
    return load_run(trained)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    write(tmp_path / "depth/a.png", make_image(*SIZE, seed=7))
    return write(tmp_path / "images/a.png", make_image(*SIZE, seed=3))


def labelled(run: Path, *overrides: str) -> None:
    given = [f"run={run}", *overrides]
    evaluate(composed(*given, name="eval"), given, run)


@pytest.mark.thorough
def test_the_interface_and_the_command_predict_the_same(
    trained: Path, run: TrainedRun, image: Path, tmp_path: Path
) -> None:
    depth = tmp_path / "depth/a.png"
    labelled(
        *(trained, f"input={image.parent}", f"output={tmp_path / 'out'}"),
        f"control_images={{depth: {depth.parent}}}",
    )
    mask = np.asarray(Image.open(tmp_path / "out/masks/a.png"))
    assert mask.shape == SIZE
    for given in (depth, str(depth), Image.open(depth), read_image(depth)):
        np.testing.assert_array_equal(run.predict(image, control_images={"depth": given}), mask)


def test_the_control_image_arrives_resized_with_its_image(
    run: TrainedRun, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(images: Tensor, conditions: Conditions, size: tuple[int, int]) -> Tensor:
        assert images.shape == (1, 3, 64, 82)
        torch.testing.assert_close(conditions.control_images["depth"] * 2 - 1, images)
        return torch.full((1, *size), 3)

    monkeypatch.setattr(run.task, "label_maps", look)
    assert (run.predict(image, control_images={"depth": image}) == 3).all()


def test_what_is_missing_or_does_not_fit_is_named(run: TrainedRun, image: Path) -> None:
    with pytest.raises(DataError, match=r"need control images depth of 'a\.png'; give .*control_images=\{'depth'"):
        run.predict(image)
    with pytest.raises(DataError, match=r"depth control image given has 9×8 pixels .*'a\.png' has 90×70"):
        run.predict(image, control_images={"depth": np.zeros((8, 9, 3), np.uint8)})
    with pytest.raises(ConfigError, match=r"has 'dept', but this run reads depth"):
        run.predict(image, control_images={"dept": image})
    with pytest.raises(ConfigError, match=r"control image 'depth' is float64 \(70, 90\); expected a file"):
        run.predict(image, control_images={"depth": np.zeros(SIZE)})
    for wrong, expected in (({"control_images": [image]}, "names and images"), ({"caption": ["a"]}, "a text")):
        with pytest.raises(ConfigError, match=f"expected {expected}"):
            run.predict(image, **wrong)


@pytest.mark.thorough
def test_the_command_names_them_too(trained: Path, image: Path, tmp_path: Path) -> None:
    inputs = (f"input={image.parent}", f"output={tmp_path / 'out'}")
    with pytest.raises(DataError, match=r"no depth control image for 'a\.png'.*control_images=\{depth: <folder>\}"):
        labelled(trained, *inputs)
    with pytest.raises(ConfigError, match=r"expected folders by name, for example \{depth: my_depth/\}"):
        labelled(trained, *inputs, f"control_images={tmp_path / 'depth'}")
    with pytest.raises(ConfigError, match=r"belongs to run=<run folder>; .*technique\.controlnet\.folder"):
        evaluate(composed("tool=extract", "control_images={depth: x}", name="eval"), [], tmp_path)


@pytest.mark.thorough
def test_a_run_can_be_measured_where_its_control_images_were_moved(trained: Path, tmp_path: Path) -> None:
    source = trained.parent / "depth"
    labelled(trained, f"output={tmp_path / 'before'}")
    shutil.copytree(source, tmp_path / "moved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gate_lightning.data.core.required_inputs.list_files", only_below(tmp_path / "moved"))
        labelled(trained, f"output={tmp_path / 'after'}", f"control_images={{depth: {tmp_path / 'moved'}}}")
    before, after = ((tmp_path / name / "metrics_val.json").read_text() for name in ("before", "after"))
    assert before == after


def only_below(folder: Path) -> object:
    from gate_lightning.data.files.listing import Listing, list_files

    def looked(root: Path) -> Listing:
        assert root == folder
        return list_files(root)

    return looked
