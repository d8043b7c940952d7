"""Own images: whole folders are read in every form, broken ones are named before anything else happens."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from gate_lightning.data.segmentation.folder import FolderDataModule
from gate_lightning.errors import ConfigError, DataError
from tests.support.folders import CLASSES, PALETTE, SIZES, make_folder, make_image, make_mask, write


def folder(root: Path, **arguments: Any) -> FolderDataModule:
    return FolderDataModule(str(root), **{"batch_size": 2, "crop_size": 16, **arguments})


def loaded(module: FolderDataModule, split: str = "train") -> list[np.ndarray]:
    source = module.source(split)
    return [source.load(index).mask for index in range(len(source))]


@pytest.mark.parametrize("mask_mode", ["L", "P", "RGB"])
def test_masks_of_every_form_say_the_same(tmp_path: Path, mask_mode: str) -> None:
    module = folder(make_folder(tmp_path, mask_mode=mask_mode))
    source = module.source("train")
    assert [source.sample_id(n) for n in range(4)] == [
        "images/train/001.png",
        "images/train/002.png",
        "images/train/003.png",
        "images/train/town/000.png",
    ]
    for mask, number in zip(loaded(module), (1, 2, 3, 0), strict=True):
        assert (mask == make_mask(*SIZES["train"][number], number)).all()
    assert (source.load(1).image == make_image(*SIZES["train"][2], 2)).all()


def test_card_and_labels_come_from_the_files(tmp_path: Path) -> None:
    plain = folder(make_folder(tmp_path / "plain"))
    assert plain.card.name == "plain"
    assert plain.labels.classes == CLASSES
    assert plain.labels.ignore_index == 255
    assert plain.card.prompt_fine == "a photo of sky, road, car"
    assert [branch["name"] for branch in plain.card.branches] == ["prompt", "moderate", "overtrained"]
    coloured = folder(make_folder(tmp_path / "coloured", mask_mode="RGB")).labels
    assert coloured.palette == tuple(PALETTE[name] for name in CLASSES)


def test_names_can_come_from_the_palette_file(tmp_path: Path) -> None:
    root = make_folder(tmp_path, mask_mode="RGB")
    (root / "classes.txt").unlink()
    assert folder(root).labels.classes == CLASSES


def test_training_batches(tmp_path: Path) -> None:
    module = folder(make_folder(tmp_path), seed=1)
    module.setup("fit")
    batches = list(module.train_dataloader())
    assert len(batches) == 2
    for batch in batches:
        assert batch.images.shape == (2, 3, 16, 16)
        assert batch.images.dtype == torch.float32
        assert batch.images.abs().max() <= 1
        assert batch.masks.shape == (2, 16, 16)
        assert set(batch.masks.unique().tolist()) <= {0, 1, 2, 255}
        assert set(batch.conditions.views) == {"draw0"}
        assert batch.conditions.captions is None
    assert len({name for batch in batches for name in batch.conditions.sample_ids}) == 4


def test_evaluation_resizes_images_but_not_masks(tmp_path: Path) -> None:
    module = folder(make_folder(tmp_path))
    first, second = module.val_dataloader()
    assert first.images.shape == (1, 3, 24, 16)
    assert first.masks.shape == (1, 30, 20)
    assert second.images.shape == (1, 3, 16, 21)
    assert second.masks[0].tolist() == make_mask(24, 32, 0).tolist()
    assert second.conditions.views == ("",)
    kept = folder(tmp_path, resize_short=0)
    assert [batch.images.shape[2:] for batch in kept.val_dataloader()] == [(30, 20), (24, 32)]


def test_images_of_one_size_are_evaluated_together(tmp_path: Path) -> None:
    root = make_folder(tmp_path, {"train": [(20, 20)] * 2, "val": [(20, 24)] * 5})
    assert [len(batch) for batch in folder(root, batch_size=2).val_dataloader()] == [2, 2, 1]
    assert [len(batch) for batch in folder(root, eval_batch_size=4).val_dataloader()] == [4, 1]


def test_unaugmented_images_are_the_same_in_every_epoch(tmp_path: Path) -> None:
    loader = folder(make_folder(tmp_path), augment=False).train_dataloader()
    epochs = []
    for _ in range(2):
        batches = list(loader)
        assert {batch.conditions.views for batch in batches} == {("", "")}
        pairs = [zip(batch.conditions.sample_ids, batch.images, strict=True) for batch in batches]
        epochs.append(dict(itertools.chain(*pairs)))
    assert epochs[0].keys() == epochs[1].keys()
    assert all(torch.equal(epochs[0][name], epochs[1][name]) for name in epochs[0])


@pytest.mark.parametrize(
    ("subset", "train", "val"), [(None, 4, 2), (1, 1, 1), (3, 3, 2), ({"train": 2}, 2, 2), ({"val": 1}, 4, 1)]
)
def test_a_run_may_look_at_a_part_of_the_data(tmp_path: Path, subset: Any, train: int, val: int) -> None:
    module = folder(make_folder(tmp_path, captions="files"), subset=subset)
    assert (len(module.source("train")), len(module.source("val"))) == (train, val)
    assert module.check().splits[0].count == 4


def test_a_part_of_the_data_is_spread_over_it_and_keeps_its_captions(tmp_path: Path) -> None:
    source = folder(make_folder(tmp_path, captions="files"), subset=2).source("train")
    assert [source.sample_id(n) for n in range(2)] == ["images/train/001.png", "images/train/003.png"]
    assert [source.load(n).caption for n in range(2)] == ["a road of train 1, really.", "a sky of train 3, really."]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_change_nothing(tmp_path: Path, num_workers: int) -> None:
    batches = list(folder(make_folder(tmp_path), num_workers=num_workers, seed=5).train_dataloader())
    again = list(folder(tmp_path, num_workers=0, seed=5).train_dataloader())
    for one, other in zip(batches, again, strict=True):
        assert one.conditions == other.conditions
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.masks, other.masks)


def test_captions(tmp_path: Path) -> None:
    root = make_folder(tmp_path, captions="files")
    fine = dict(caption_of(folder(root)))
    assert fine["images/train/002.png"] == "a car of train 2, really."
    shuffled = dict(caption_of(folder(root, captions="shuffled")))
    assert sorted(shuffled.values()) == sorted(fine.values())
    assert all(shuffled[name] != fine[name] for name in fine)
    assert shuffled == dict(caption_of(folder(root, captions="shuffled")))
    assert {text for _, text in caption_of(folder(root, captions="coarse"))} == {"a photo"}


def caption_of(module: FolderDataModule) -> list[tuple[str, str | None]]:
    source = module.source("train")
    samples = [source.load(index) for index in range(len(source))]
    return [(sample.sample_id, sample.caption) for sample in samples]


def test_test_split_is_optional(tmp_path: Path) -> None:
    assert not folder(make_folder(tmp_path / "a")).has_test
    module = folder(make_folder(tmp_path / "b", {"train": [(20, 20)] * 2, "val": [(20, 20)], "test": [(22, 20)] * 3}))
    assert module.has_test
    assert sum(len(batch) for batch in module.test_dataloader()) == 3
    with pytest.raises(DataError, match=r"images/test does not exist"):
        folder(tmp_path / "a").test_dataloader()


def break_pairs(root: Path, what: str) -> None:
    image, mask = root / "images/train/002.png", root / "masks/train/002.png"
    actions: dict[str, Callable[[], Any]] = {
        "no mask": mask.unlink,
        "no image": image.unlink,
        "cut image": lambda: image.write_bytes(image.read_bytes()[:60]),
        "cut mask": lambda: mask.write_bytes(mask.read_bytes()[:60]),
        "text for an image": lambda: image.write_text("hello"),
        "empty file": lambda: image.write_bytes(b""),
        "size": lambda: write(mask, make_mask(10, 20)),
        "label": lambda: write(mask, make_mask(20, 20) + 1),
        "colour mask": lambda: write(mask, make_image(20, 20)),
        "two images": lambda: shutil.copy(image, image.with_suffix(".bmp")),
        "lossy mask": lambda: (Image.open(mask).save(mask.with_suffix(".jpg")), mask.unlink()),
        "cmyk": lambda: (Image.open(image).convert("CMYK").save(image.with_suffix(".tif")), image.unlink()),
    }
    actions[what]()


BROKEN = {
    "no mask": r"images/train/002.png: image without mask; expected masks/train/",
    "no image": r"masks/train/002.png: mask without image; expected images/train/",
    "cut image": r"images/train/002.png does not decode",
    "cut mask": r"masks/train/002.png does not decode",
    "text for an image": r"images/train/002.png is no image",
    "empty file": r"images/train/002.png is no image that can be read \(0 bytes\)",
    "size": r"images/train/002.png: image is 20×20 \(width × height\), its mask .*masks/train/002.png 20×10",
    "label": r"masks/train/002.png: unknown label values: 3 in 140 pixels; 3 classes and ignored are 0 … 2, 255. If 3",
    "colour mask": r"masks/train/002.png is an RGB mask",
    "two images": r"images/train/002.bmp: 2 files of one name \(002.bmp, 002.png\)",
    "lossy mask": r"masks/train/002.jpg: a mask saved with loss",
    "cmyk": r"images/train/002.tif is CMYK",
}


@pytest.mark.parametrize("what", BROKEN)
def test_the_first_broken_pair_is_named(tmp_path: Path, what: str) -> None:
    root = make_folder(tmp_path)
    break_pairs(root, what)
    with pytest.raises(DataError, match=BROKEN[what]):
        folder(root).setup("fit")
    folder(root).setup("validate")  # the other split is whole


def test_the_first_of_several_is_named_and_the_rest_counted(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    for what in ("cut image", "label"):
        break_pairs(root, what)
    (root / "images/train/001.png").write_text("x")
    (root / "images/train/003.png").write_text("x")
    with pytest.raises(DataError, match=r"(?s)images/train/001.png is no image.*\(2 more; .*tool=check_data"):
        folder(root).setup("fit")


def test_a_mask_that_misses_the_rotation_is_explained(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(make_image(24, 32)).save(root / "images/train/town/000.png", exif=exif)
    with pytest.raises(DataError, match=r"24×32 .* 32×24; the mask does not follow the EXIF rotation"):
        folder(root).setup("fit")


def test_images_too_small_are_named_with_a_setting_that_works(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    with pytest.raises(DataError, match=r"train/001.png: 24×32 pixels are too small .* use dataset.resize_short=28"):
        folder(root, crop_size=28, resize_short=0).setup("fit")
    folder(root, crop_size=28).setup("fit")


def test_strips_are_named_before_training(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    Image.fromarray(make_image(3, 300)).save(root / "images/train/001.png")
    Image.fromarray(make_mask(3, 300, 1)).save(root / "masks/train/001.png")
    with pytest.raises(
        DataError, match=r"train/001.png: 300×3 pixels .* would be enlarged to 1600×16, .* leave it out"
    ):
        folder(root).setup("fit")


def test_missing_root_says_what_was_looked_for(tmp_path: Path) -> None:
    make_folder(tmp_path / "here")
    with pytest.raises(DataError, match=r"looked for images/\{train,val.*there.* holds the folders \['here'\]"):
        folder(tmp_path / "there")
    with pytest.raises(DataError, match="does not exist either"):
        folder(tmp_path / "not/there")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no images/: .* found \[\]"):
        folder(tmp_path / "empty")


def test_missing_split_and_empty_split(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    shutil.rmtree(root / "masks/val")
    with pytest.raises(DataError, match="masks/val does not exist; expected the masks of the val split"):
        folder(root).setup("fit")
    (root / "masks/val").mkdir()
    shutil.rmtree(root / "images/val")
    (root / "images/val").mkdir()
    with pytest.raises(DataError, match="images/val holds no images"):
        folder(root).setup("fit")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (None, "classes.txt does not exist"),
        ("a\n\nb\n", "class 1 has an empty name"),
        ("a\nb\na\n", "'a' is there twice"),
    ],
)
def test_broken_class_lists_are_refused(tmp_path: Path, text: str | None, named: str) -> None:
    path = make_folder(tmp_path) / "classes.txt"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DataError, match=named):
        folder(tmp_path)


def test_captions_to_shuffle_must_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no captions to shuffle"):
        folder(make_folder(tmp_path), captions="shuffled").setup("fit")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"mask_orientation": "up"}, "dataset.mask_orientation='up': expected one of shown, stored"),
        ({"captions": "noisy"}, "captions='noisy': expected one of fine, coarse, shuffled"),
        ({"check_level": "no"}, "dataset.check_level='no'"),
        ({"subset": 0}, "dataset.subset is 0; expected a number of images"),
        ({"subset": {"trian": 3}}, "dataset.subset is {'trian': 3}"),
        ({"subset": "all"}, "dataset.subset is all"),
        ({"crop_size": 0}, "crop_size=0"),
        ({"ratio_range": (2, 1)}, "ratio_range"),
        ({"cat_max_ratio": 2}, "cat_max_ratio is 2"),
        ({"flip": -1}, "flip=-1"),
        ({"batch_size": 0}, "dataset.batch_size=0"),
        ({"num_workers": -1}, "dataset.num_workers=-1"),
        ({"eval_batch_size": 0}, "dataset.eval_batch_size=0"),
        ({"label_map": {0: 9}}, "label_map"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        folder(make_folder(tmp_path), **arguments)


def masks_of(root: Path, split: str, value: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write every mask of a split anew."""
    for path in sorted((root / "masks" / split).rglob("*.png")):
        write(path, value(np.array(Image.open(path))).astype(np.uint8))


def two_classes(root: Path, *splits: str) -> Path:
    """Two classes; masks hold 0 and 255 in ``splits``, 0 and 1 in others."""
    (root / "classes.txt").write_text("background\nobject\n")
    for split in ("train", "val"):
        foreground = 255 if split in splits else 1
        masks_of(root, split, lambda mask, value=foreground: (mask == 1) * value)
    return root


@pytest.mark.parametrize("split", ["train", "val"])
def test_255_that_is_the_other_class_is_not_ignored_in_silence(tmp_path: Path, split: str) -> None:
    root = two_classes(make_folder(tmp_path), split)
    named = rf"{split}: its \d masks hold no class but 'background' \(0\) beside ignored pixels \(\d+\.\d%\), .*"
    with pytest.raises(DataError, match=named + r"use 'dataset\.label_map=\{0: 0, 255: 1\}'"):
        folder(root).setup("fit")


def test_the_reading_that_is_offered_works(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    expected = [mask == 1 for mask in loaded(folder(root))]
    module = folder(two_classes(root, "train", "val"), label_map={0: 0, 255: 1})
    module.setup("fit")
    assert all((mask == own).all() for mask, own in zip(loaded(module), expected, strict=True))


def test_255_beside_all_classes_stays_ignored(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    masks_of(root, "train", lambda mask: np.where(np.arange(mask.shape[1]) < 3, 255, mask))
    module = folder(root)
    module.setup("fit")
    assert (loaded(module)[0][:, :3] == 255).all()


def test_a_split_without_labels_or_with_one_class_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    masks_of(root, "val", lambda mask: np.full_like(mask, 255))
    with pytest.raises(DataError, match=r"val: every pixel of its 2 masks is ignored, .*If 255 is a class say which"):
        folder(root).setup("fit")
    masks_of(root, "val", lambda mask: np.ones_like(mask))
    with pytest.raises(DataError, match=r"val: its 2 masks hold no class but 'road' \(1\), so .*Are these the right"):
        folder(root).setup("fit")
    shutil.copytree(root / "images/val", root / "images/test")
    shutil.copytree(root / "masks/val", root / "masks/test")
    folder(root).setup("test")  # one class can be measured
    masks_of(root, "test", lambda mask: np.full_like(mask, 255))
    with pytest.raises(DataError, match="test: every pixel of its 2 masks is ignored"):
        folder(root).setup("test")


def test_the_second_class_is_looked_for_in_all_masks(tmp_path: Path) -> None:
    """Where those looked at have one class, the others are read until there is another."""
    root = make_folder(tmp_path, {"train": [(16, 16)] * 70, "val": [(16, 16)]})
    masks_of(root, "train", lambda mask: mask * 0)
    with pytest.raises(DataError, match="train: its 70 masks hold no class but"):
        folder(root).setup("fit")
    last = sorted((root / "masks/train").glob("*.png"))[-2]
    write(last, make_mask(16, 16))
    module = folder(root)
    assert module.check("quick").splits[0].pixels.tolist()[1:] == [0, 0, 0]  # it is not among those
    module.setup("fit")


def turned_folder(root: Path, turn: int, size: tuple[int, int], shown: bool) -> Path:
    """Images with an EXIF orientation; masks of the view that is shown, or of the stored pixels. Red is class 1."""
    shape = size[::-1] if turn > 4 else size
    make_folder(root, {"train": [size] * 2, "val": [size]})
    exif = Image.Exif()
    exif[0x0112] = turn
    for path in sorted((root / "images").rglob("*.png")):
        stored = np.zeros((*size, 3), np.uint8)
        stored[: size[0] // 3, : size[1] // 4] = (200, 0, 0)
        Image.fromarray(stored).save(path, exif=exif)
        view = np.array(ImageOps.exif_transpose(Image.open(path))) if shown else stored
        assert view.shape[:2] == (shape if shown else size)
        write(root / "masks" / path.relative_to(root / "images"), (view[..., 0] > 100).astype(np.uint8))
    return root


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize(("turn", "size"), [(3, (24, 32)), (2, (24, 32)), (6, (24, 24)), (7, (20, 32))])
def test_masks_follow_the_orientation_of_their_images_as_one_says(
    tmp_path: Path, turn: int, size: tuple[int, int], shown: bool
) -> None:
    root = turned_folder(tmp_path, turn, size, shown)
    module = folder(root, mask_orientation="shown" if shown else "stored")
    for split in ("train", "val"):
        sample = module.source(split).load(0)
        assert ((sample.image[..., 0] > 100) == (sample.mask == 1)).all()
    assert not any("EXIF" in warning for warning in module.check().warnings)


@pytest.mark.parametrize(("turn", "size"), [(3, (24, 32)), (6, (24, 24))])
def test_an_orientation_that_sizes_do_not_reveal_is_told(tmp_path: Path, turn: int, size: tuple[int, int]) -> None:
    warnings = folder(turned_folder(tmp_path, turn, size, True)).check().warnings
    told = [warning for warning in warnings if "EXIF" in warning]
    assert [warning.split()[:2] for warning in told] == [["train:", "2"], ["val:", "1"]]
    assert "first " + str(tmp_path / "images/train/001.png") in told[0]
    assert "dataset.mask_orientation=shown or stored" in told[0]


def test_an_orientation_of_the_mask_itself_goes_before(tmp_path: Path) -> None:
    root = turned_folder(tmp_path, 3, (24, 32), False)
    exif = Image.Exif()
    exif[0x0112] = 3
    for path in (root / "masks").rglob("*.png"):
        mask = Image.open(path).copy()
        mask.save(path, exif=exif)
    module = folder(root)
    sample = module.source("train").load(0)
    assert ((sample.image[..., 0] > 100) == (sample.mask == 1)).all()
    assert not any("EXIF" in warning for warning in module.check().warnings)


def test_accents_in_two_encodings_are_one_name(tmp_path: Path) -> None:
    root = make_folder(tmp_path, captions="table")
    (root / "images/train/001.png").rename(root / "images/train/caf\u00e9.png")
    (root / "masks/train/001.png").rename(root / "masks/train/cafe\u0301.png")
    text = (root / "captions.txt").read_text().replace("train/001", "train/cafe\u0301")
    (root / "captions.txt").write_text(text, encoding="utf-8")
    source = folder(root).source("train")
    assert [source.sample_id(index) for index in range(4)][2] == "images/train/caf\u00e9.png"
    assert source.load(2).caption == "a road of train 1, really."


def test_masks_of_kinds_that_are_not_read_are_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    path = root / "masks/train/002.png"
    Image.open(path).save(path.with_suffix(".gif"))
    path.unlink()
    report = folder(root).check()
    assert "1 left out: 1 .gif (002.gif). What is read: .png, .bmp, .tif, .tiff" in report.warnings[0]
    assert "002.png: image without mask" in report.errors[0]


def test_ignored_value_of_the_files_becomes_255(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    mask = make_mask(20, 20)
    mask[:2] = 11
    write(root / "masks/train/002.png", mask)
    assert (loaded(folder(root, ignore_index=11))[1] == np.where(mask == 11, 255, mask)).all()


@pytest.mark.parametrize(
    ("name", "ignore_index", "counts"), [("camvid", 11, (74, 18)), ("weizmann_horse", 255, (72, 24))]
)
def test_real_folders(shared_dir: Path, name: str, ignore_index: int, counts: tuple[int, int]) -> None:
    module = folder(shared_dir / "data" / name, ignore_index=ignore_index, crop_size=64)
    module.setup("fit")
    assert (len(module.source("train")), len(module.source("val"))) == counts
    batch = next(iter(module.train_dataloader()))
    assert batch.images.shape == (2, 3, 64, 64)
    assert set(batch.masks.unique().tolist()) <= {*range(len(module.labels.classes)), 255}
    evaluated = next(iter(module.val_dataloader()))
    assert min(evaluated.images.shape[2:]) == 64
    source = module.source("val")
    assert evaluated.masks.shape[1:] == source.load(0).mask.shape


def test_a_real_folder_with_the_wrong_ignored_value(shared_dir: Path) -> None:
    with pytest.raises(DataError, match=r"0001TP_006690.png: unknown label values: 11 in 7980 .*ignore_index=11"):
        folder(shared_dir / "data/camvid").setup("fit")
