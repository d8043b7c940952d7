"""The six sets of ddpm-segmentation: facts, layout, and every way in which a folder can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from gate_lightning.data.label_scarce.ddpm_segmentation import (
    SETS,
    SIDE,
    DDPMSegmentationDataModule,
    card,
    class_labels,
    published_set,
)
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.tools.check_data import check_data
from tests.support.composition import composed
from tests.support.label_scarce import COUNTS, VALUES, make_scarce, regions, write_pair
from tests.support.paths import CONF

HORSES = {"key": "horse_21", "train": 4, "test": 3}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_scarce(tmp_path / "sets")


def module(root: Path, **settings: object) -> DDPMSegmentationDataModule:
    return DDPMSegmentationDataModule(str(root), **{**HORSES, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("key", sorted(SETS))
def test_facts_of_every_set(key: str) -> None:
    found, labels = published_set(key), class_labels(key)
    ignored_background = key == "bedroom_28"
    assert labels.num_classes == VALUES[key] - ignored_background
    assert (found.train, found.test) == COUNTS[key]
    # the papers' rule: the large classifier from 30 values on
    assert found.variant == ("large" if VALUES[key] >= 30 else "small")
    assert len(set(labels.palette)) == labels.num_classes
    assert ("background" in labels.classes) == (key not in ("bedroom_28", "ade_bedroom_30"))
    assert (CONF / f"backbone/{found.backbone}.yaml").is_file()
    assert [branch["name"] for branch in card(key).branches][:2] == ["prompt", "controlnet"]


@pytest.mark.parametrize(
    ("key", "experiment"), [("horse_21", "experiment/_base/gate_horse21"), ("bedroom_28", "experiment/gate/bedroom28")]
)
def test_the_recipe_is_that_of_the_experiment_without_the_second_backbone(key: str, experiment: str) -> None:
    """Bedroom-28 is read without denoising, and with one LoRA (GATE's README)."""
    written = yaml.safe_load((CONF / f"{experiment}.yaml").read_text())["techniques"]
    told = [{k: v for k, v in branch.items() if k != "name"} for branch in written if "backbone" not in branch]
    assert [{k: v for k, v in branch.items() if k != "name"} for branch in card(key).branches] == told


@pytest.mark.slow
def test_every_set_has_a_name_on_the_command_line() -> None:
    files = {path.stem: yaml.safe_load(path.read_text()) for path in CONF.glob("dataset/*.yaml")}
    ours = {name: node for name, node in files.items() if "_ddpm_segmentation" in node.get("defaults", ())}
    assert {node["dataset"]["key"] for node in ours.values()} == set(SETS)
    for name, node in ours.items():
        key = node["dataset"]["key"]
        assert name == key.removesuffix(key.split("_")[-1]).rstrip("_") + key.split("_")[-1]
        config = composed(f"dataset={name}")
        module = DDPMSegmentationDataModule
        assert config.dataset._target_ == f"{module.__module__}.{module.__name__}"
        assert config.task._target_ == "gate_lightning.tasks.label_scarce.task.LabelScarceTask"
        assert config.task.data.size == SIDE == 256


def test_names_keep_their_odd_spelling() -> None:
    bedroom = class_labels("bedroom_28")
    assert bedroom.classes[12] == "picture / mirrow"  # value 13
    assert bedroom.classes[27] == "table staff"
    assert bedroom.palette[0] == (0xEE, 0xE5, 0x66)
    assert len(card("bedroom_28").branches) == 3
    horse = class_labels("horse_21")
    assert horse.classes[20] == "leg protection"
    assert horse.palette[20] == (0xFF, 0x2F, 0x80)
    assert card("horse_21").prompt_simple == "a horse"
    assert [branch["name"] for branch in card("horse_21").branches] == [
        "prompt",
        "controlnet",
        "moderate",
        "overtrained",
    ]
    assert class_labels("ade_bedroom_30").classes[0] == "wall"


def test_images_and_masks_lie_side_by_side(root: Path) -> None:
    data = module(root)
    source = data.source("train")
    assert len(source) == 4
    assert len(data.source("test")) == len(data.source("val")) == 3
    sample = source.load(1)
    assert sample.sample_id == "real/train/img_001.png"
    assert sample.image.shape == (32, 32, 3)
    np.testing.assert_array_equal(sample.mask, regions(21, 32, 1))


def test_zero_is_ignored_in_bedrooms(tmp_path: Path) -> None:
    root = make_scarce(tmp_path, "bedroom_28", 2, 2)
    values = np.arange(29, dtype=np.int64).repeat(16)[: 20 * 20].reshape(20, 20)
    write_pair(root / "bedroom_28/real/train", "img_000", values)
    mask = module(root, key="bedroom_28", train=2, test=2).source("train").load(0).mask
    np.testing.assert_array_equal(mask, np.where(values == 0, 255, values - 1))


def test_the_first_images_are_taken(root: Path) -> None:
    data = module(root, train=2, test=0)
    assert [data.source("train").sample_id(i) for i in range(2)] == [f"real/train/img_00{i}.png" for i in range(2)]
    assert len(data.source("train")) == 2
    assert len(data.source("test")) == 3  # 0: all there are


def test_fewer_images_than_published_or_asked_for(root: Path) -> None:
    with pytest.raises(DataError, match=r"real/train holds 4 images with masks, 30 are asked .* dataset.train=4"):
        module(root, train=None).source("train")
    with pytest.raises(DataError, match=r"real/test holds 3 images with masks, 9 are asked for"):
        module(root, test=9).source("test")
    assert len(module(root, test=9).check().errors) == 1


def test_annotated_generated_images(root: Path) -> None:
    for number in range(2):
        write_pair(root / "horse_21/ddpm", f"made_{number}", regions(21, 32, number))
    source = module(root, train_folder="ddpm", train=0).source("train")
    assert [source.sample_id(index) for index in range(len(source))] == ["ddpm/made_0.png", "ddpm/made_1.png"]


def test_a_missing_mask_or_image_is_named(root: Path) -> None:
    folder = root / "horse_21/real/train"
    (folder / "img_002.npy").unlink()
    with pytest.raises(DataError, match=r"img_002\.png: image without mask"):
        module(root, train=0).source("train")
    (folder / "img_002.png").unlink()
    (folder / "img_003.png").unlink()
    with pytest.raises(DataError, match=r"img_003\.npy: mask without image"):
        module(root, train=0).source("train")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((32, 32), 21), "unknown label values: 21 in 1024 pixels; 21 classes and ignored are 0 … 20, 255"),
        (np.full((32, 32), -1), "unknown label values: -1"),
        (np.full((32, 32), 1.5), r"holds fractions \(float64\)"),
        (np.full((32, 32), np.inf), "holds fractions"),
        (np.full((32, 32), 2**40), "holds values from"),
        (np.zeros((32, 32, 3), dtype=np.uint8), r"holds uint8 \(32, 32, 3\); expected whole numbers of shape"),
        (np.full((32, 32), "a"), "holds <U1"),
    ],
)
def test_masks_that_mean_nothing_are_named(root: Path, values: np.ndarray, message: str) -> None:
    path = root / "horse_21/real/test/img_001.npy"
    np.save(path, values)
    with pytest.raises(DataError, match=message) as caught:
        module(root).source("test")
    assert str(path) in str(caught.value)


def test_damaged_arrays(root: Path) -> None:
    path = root / "horse_21/real/test/img_001.npy"
    whole = path.read_bytes()
    for content in (whole[:-8], whole[:20], b"", b"not an array"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"img_001\.npy is no array that can be read"):
            module(root).source("test")


def test_whole_numbers_of_any_kind_are_labels(root: Path) -> None:
    path = root / "horse_21/real/test/img_001.npy"
    values = np.load(path)
    for kind in (np.int64, np.uint16, np.float32):
        np.save(path, values.astype(kind))
        np.testing.assert_array_equal(module(root).source("test").load(1).mask, values)


def test_a_mask_of_another_size_but_equal_shape_is_fine(root: Path) -> None:
    folder = root / "horse_21/real/train"
    Image.open(folder / "img_000.png").resize((64, 64)).save(folder / "img_000.png")
    source = module(root).source("train")
    assert source.sizes(0) == ((64, 64), (32, 32))
    np.save(folder / "img_000.npy", np.zeros((32, 16), dtype=np.uint8))
    with pytest.raises(DataError, match=r"its mask .* 16×32"):
        module(root).source("train")


def test_a_wrong_folder(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"looked for cat_15/\{real/train,real/test\} of ddpm-segmentation"):
        module(root, key="cat_15")
    with pytest.raises(DataError, match="does not exist"):
        module(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"dataset\.key='horse': did you mean horse_21"):
        published_set("horse")
    with pytest.raises(ConfigError, match=r"dataset\.train=-1"):
        module(root, train=-1)


def test_the_tool_checks_such_a_folder(root: Path) -> None:
    report = check_data(module(root))
    assert [(split.split, split.count) for split in report.splits] == [("train", 4), ("test", 3)]
    assert "leg protection" in str(report)


def test_it_serves_ordinary_segmentation(root: Path) -> None:
    data = module(root, batch_size=2)
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (2, 3, 256, 256)
    assert batch.masks is not None
    assert batch.masks.shape == (2, 256, 256)
    assert sum(len(batch) for batch in data.test_dataloader()) == 3
