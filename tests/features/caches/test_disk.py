"""Features on disk: equal, whole or not there, refused where the settings are others."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import CacheError, ConfigError
from gate_lightning.features.branch import Branch
from gate_lightning.features.caches.disk import DiskCache
from gate_lightning.features.caches.folder import FeatureFolder, read_features
from gate_lightning.features.caches.memory import MemoryCache
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.structures import MIRRORED, Conditions, Features
from gate_lightning.utils import files
from gate_lightning.utils.dtypes import DTYPES
from tests.support.marks import thorough_but
from tests.support.small_networks import build, random_images

CONDITIONS = Conditions(sample_ids=("a.png", "sub/b.png"))


class Counted(FeatureExtractor):
    calls = 0

    def forward(self, images: torch.Tensor, conditions: Conditions) -> Features:
        self.calls += 1
        return super().forward(images, conditions)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build("tiny")


def extractor(backbone: Backbone, timestep: int = 50) -> Counted:
    layers = ("up-level1-upsampler-out", "up-level0-repeat0-res-out")
    return Counted(backbone, [Branch("plain", timestep, layers, prompt="a photo"), Branch("late", 300, layers[:1])])


def same(one: Features, other: Features) -> bool:
    assert {key: list(value) for key, value in one.items()} == {key: list(value) for key, value in other.items()}
    return all(torch.equal(value, other[branch][layer]) for branch in one for layer, value in one[branch].items())


def stored(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.thorough
def test_read_again_by_another_process(backbone: Backbone, tmp_path: Path) -> None:
    made = extractor(backbone)
    first = DiskCache(made, tmp_path)(random_images(2), CONDITIONS)
    again = extractor(backbone)
    second = DiskCache(again, tmp_path)(random_images(2).flip(0), Conditions(("sub/b.png", "a.png")))
    assert again.calls == 0
    assert same(first, {b: {name: value.flip(0) for name, value in m.items()} for b, m in second.items()})
    plain = FeatureExtractor.forward(made, random_images(2), CONDITIONS)
    assert same(first, {b: {name: value.half().float() for name, value in m.items()} for b, m in plain.items()})


def test_files_are_of_native_size_and_half_precision(backbone: Backbone, tmp_path: Path) -> None:
    made = extractor(backbone)
    features = DiskCache(made, tmp_path)(random_images(2), CONDITIONS)
    names = [path.relative_to(tmp_path).as_posix() for path in stored(tmp_path)]
    assert [name.split(".png")[0] for name in names] == ["a", "sub/b"]
    alone = read_features(stored(tmp_path)[1])
    assert {value.dtype for maps in alone.values() for value in maps.values()} == {torch.float16}
    assert same(alone, {b: {name: value[1].half() for name, value in m.items()} for b, m in features.items()})


@pytest.mark.parametrize(
    "change",
    [
        {"sample_ids": ("a.png", "c.png")},
        {"windows": ((0, 0), (0, 8))},
        {"captions": ("x", "y")},
        {"categories": ("x", "y")},
        {"control_images": {"depth": torch.zeros(2, 3, 64, 96)}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_features_is_another_file(backbone: Backbone, tmp_path: Path, change: dict[str, object]) -> None:
    made = extractor(backbone)
    cache = DiskCache(made, tmp_path)
    cache(random_images(2), CONDITIONS)
    changed = replace(CONDITIONS, **change)
    cache(random_images(2), changed)
    cache(random_images(2), changed)
    assert made.calls == 2
    assert len(stored(tmp_path)) == (3 if set(change) <= {"sample_ids", "windows"} else 4)


def test_another_image_under_the_same_name(backbone: Backbone, tmp_path: Path) -> None:
    made = extractor(backbone)
    cache = DiskCache(made, tmp_path)
    first, second = cache(random_images(2), CONDITIONS), cache(-random_images(2), CONDITIONS)
    assert made.calls == 2
    assert not same(first, second)


@pytest.mark.parametrize("change", [{"views": ("epoch1", "")}, {"noise": torch.zeros(2, 4, 16, 24)}])
def test_what_does_not_come_again_is_not_kept(backbone: Backbone, tmp_path: Path, change: dict[str, object]) -> None:
    DiskCache(extractor(backbone), tmp_path)(random_images(2), replace(CONDITIONS, **change))
    assert not stored(tmp_path)


def test_mirrored_images_come_again(backbone: Backbone, tmp_path: Path) -> None:
    made, seen = extractor(backbone), replace(CONDITIONS, views=("", MIRRORED))
    first = DiskCache(made, tmp_path)(random_images(2), seen)
    cache = MemoryCache(DiskCache(made, tmp_path), 1.0)
    assert same(first, cache(random_images(2), seen)) and same(first, cache(random_images(2), seen))
    assert made.calls == 1
    assert sorted(path.relative_to(tmp_path).parts[0] for path in stored(tmp_path))[1] == MIRRORED


def test_memory_in_front_of_the_disk(backbone: Backbone, tmp_path: Path) -> None:
    first = DiskCache(extractor(backbone), tmp_path)(random_images(2), CONDITIONS)
    made = extractor(backbone)
    cache = MemoryCache(DiskCache(made, tmp_path), 1.0)
    assert same(first, cache(random_images(2), CONDITIONS))
    for path in stored(tmp_path):
        path.unlink()
    assert same(first, cache(random_images(2), CONDITIONS))
    assert made.calls == 0
    assert cache.description == made.description


def test_another_description_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    DiskCache(extractor(backbone), tmp_path)(random_images(2), CONDITIONS)
    with pytest.raises(CacheError, match=r"(?s)branches\[0\].timestep: 50 → 51.*another folder"):
        DiskCache(extractor(backbone, timestep=51), tmp_path)
    with pytest.raises(CacheError, match="stored_as: 'float16' → 'float32'"):
        DiskCache(extractor(backbone), tmp_path, dtype="float32")
    with pytest.raises(CacheError, match=r"preprocessing.size: '\(absent\)' → 64"):
        DiskCache(extractor(backbone), tmp_path, preprocessing={"size": 64})
    DiskCache(extractor(backbone), tmp_path)


@pytest.mark.parametrize("value", [torch.zeros(3), {"mean": torch.zeros(3)}, [{1, 2}]], ids=["tensor", "nested", "set"])
def test_a_setting_that_no_manifest_can_hold_is_named(value: object, backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^preprocessing\['mean'\]=.*: expected texts, numbers"):
        DiskCache(extractor(backbone), tmp_path / "new", preprocessing={"size": 64, "mean": value})
    assert not (tmp_path / "new").exists()


def test_a_folder_without_features_belongs_to_nobody(backbone: Backbone, tmp_path: Path) -> None:
    DiskCache(extractor(backbone), tmp_path)
    DiskCache(extractor(backbone, timestep=51), tmp_path)(random_images(2), CONDITIONS)
    with pytest.raises(CacheError, match="timestep: 51 → 50"):
        DiskCache(extractor(backbone), tmp_path)


def test_a_damaged_manifest_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    DiskCache(extractor(backbone), tmp_path)(random_images(2), CONDITIONS)
    manifest = tmp_path / "manifest.json"
    content = json.loads(manifest.read_text())
    for broken in ("", "{", "[]", json.dumps({**content, "digest": "0"})):
        manifest.write_text(broken)
        with pytest.raises(CacheError, match=r"is damaged|its digest is not"):
            DiskCache(extractor(backbone), tmp_path)


@pytest.mark.parametrize(
    "damage", thorough_but(("truncated", "flipped bit"), ("truncated", "flipped bit", "empty", "web page", "renamed"))
)
def test_a_damaged_file_is_made_again_with_a_warning(
    backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    first = DiskCache(extractor(backbone), tmp_path)(random_images(2), CONDITIONS)
    path, other = stored(tmp_path)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-100] ^= 4
    path.write_bytes(
        {
            "truncated": content[:-1],
            "flipped bit": bytes(flipped),
            "empty": b"",
            "web page": b"<!doctype html><html></html>",
            "renamed": other.read_bytes(),
        }[damage]
    )
    made = extractor(backbone)
    with caplog.at_level(logging.WARNING):
        assert same(first, DiskCache(made, tmp_path)(random_images(2), CONDITIONS))
    assert made.calls == 1
    assert path.read_bytes() == content
    # a whole file of another image is no damage; it is simply not this one
    assert (path.name in caplog.text) == (damage != "renamed")


def test_a_damaged_file_is_refused_by_its_reader(backbone: Backbone, tmp_path: Path) -> None:
    DiskCache(extractor(backbone), tmp_path)(random_images(2), CONDITIONS)
    path = stored(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CacheError, match="damaged"):
        read_features(path)
    with pytest.raises(CacheError, match="does not exist"):
        read_features(tmp_path / "none.safetensors")


VIEWS = replace(CONDITIONS, views=("draw0", "draw1"), training=True)


def test_training_views_are_kept_where_they_come_again(backbone: Backbone, tmp_path: Path) -> None:
    made = extractor(backbone)
    first = DiskCache(made, tmp_path, views=4)(random_images(2), VIEWS)
    cache = DiskCache(made, tmp_path, views=4)
    assert same(first, cache(random_images(2), VIEWS))
    assert made.calls == 1
    assert [path.relative_to(tmp_path).parts[0] for path in stored(tmp_path)] == ["draw0", "draw1"]
    for further in (replace(VIEWS, training=False), replace(VIEWS, noise=torch.zeros(2, 4, 16, 24))):
        cache(random_images(2), further)
    cache(-random_images(2), VIEWS)  # the image has changed
    assert made.calls == 4
    assert len(stored(tmp_path)) == 4


def test_views_without_room_on_the_disk_are_refused_before_they_are_written(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DiskCache(extractor(backbone), tmp_path, "float32", views=3)(random_images(2), VIEWS)
    kept = read_features(stored(tmp_path)[0])
    each = sum(value.nbytes for layers in kept.values() for value in layers.values())
    free = shutil.disk_usage(tmp_path)._replace(free=each)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    further = replace(VIEWS, views=("draw2", "draw2"))
    with pytest.raises(ConfigError, match=r"2 augmented views of .* need .* are free there.*features\.pooling=2"):
        DiskCache(extractor(backbone), tmp_path, "float32", views=4)(random_images(2), further)
    assert len(stored(tmp_path)) == 2
    DiskCache(extractor(backbone), tmp_path, "float32", views=3)(random_images(2), further)  # one is still to come
    assert len(stored(tmp_path)) == 4


def test_a_full_disk_leaves_nothing_half_written(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DiskCache(extractor(backbone), tmp_path)
    synced: list[int] = []

    def full(number: int) -> None:
        synced.append(number)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        with pytest.raises(CacheError, match=r"sub/b.*disk is full \(0\.\d MB"):
            cache(random_images(2), CONDITIONS)
    assert sorted(path.name.split(".")[0] for path in tmp_path.rglob("*") if path.is_file()) == ["a", "manifest"]
    made = extractor(backbone)
    DiskCache(made, tmp_path)(random_images(2), CONDITIONS)
    assert made.calls == 1
    assert len(stored(tmp_path)) == 2


def test_leftovers_of_killed_writers_are_cleaned(backbone: Backbone, tmp_path: Path) -> None:
    DiskCache(extractor(backbone), tmp_path)
    host = socket.gethostname()
    dead = tmp_path / "sub" / f".{host}.{2**22 + 7}.0123.part"
    alive, elsewhere = (tmp_path / f".{name}.0123.part" for name in (f"{host}.{os.getpid()}", "far.away.12"))
    old, foreign = tmp_path / ".far.away.13.0123.part", tmp_path / ".mine.part"
    dead.parent.mkdir()
    for path in (dead, alive, elsewhere, old, foreign):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    DiskCache(extractor(backbone), tmp_path)
    assert [path.exists() for path in (dead, alive, elsewhere, old, foreign)] == [False, True, True, False, True]


def test_values_beyond_the_dtype_are_refused(tmp_path: Path) -> None:
    features = {"plain": {"layer": torch.full((1, 2, 2), 1e5)}}
    with pytest.raises(CacheError, match=r"plain/layer of a .* float16 cannot hold \(largest 100000\)"):
        FeatureFolder(tmp_path / "half", {}).write("a", "key", features)
    for dtype in ("bfloat16", "float32"):
        folder = FeatureFolder(tmp_path / dtype, {}, dtype)
        folder.write("a", "key", features)
        assert folder.holds("a", "key")
        assert not folder.holds("a", "other key")
        assert read_features(folder.path("a"))["plain"]["layer"].dtype == DTYPES[dtype]


def test_equal_features_are_equal_files(tmp_path: Path) -> None:
    features = {name: {layer: torch.randn(2, 3, 3) for layer in "abcdef"} for name in ("x", "y")}
    contents = set()
    for attempt in range(4):
        folder = FeatureFolder(tmp_path / str(attempt), {"seed": 1})
        folder.write("p", "key", features)
        contents.add(folder.path("p").read_bytes())
    assert len(contents) == 1


def test_names_stay_inside_the_folder(backbone: Backbone, tmp_path: Path) -> None:
    names = ("../../out.png", "/abs/" + "x" * 400 + ".png")
    DiskCache(extractor(backbone), tmp_path / "cache")(random_images(2), Conditions(names))
    assert len(stored(tmp_path / "cache")) == 2


def test_unknown_dtype_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="float16, bfloat16, float32"):
        DiskCache(extractor(backbone), tmp_path, dtype="int8")


def test_nothing_frozen_is_saved(backbone: Backbone, tmp_path: Path) -> None:
    assert not DiskCache(extractor(backbone), tmp_path).state_dict()
