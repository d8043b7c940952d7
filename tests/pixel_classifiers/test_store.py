"""Interpolated pixels against upsampling whole maps and indexing them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gate_lightning.errors import CacheError, ConfigError
from gate_lightning.pixel_classifiers.store import PixelStore, bilinear_taps, map_shapes
from gate_lightning.structures import FeatureInfo, Features
from tests.support.pretended_gpu import GPU, pretended_gpu

SIZE = (24, 32)
INFO = {
    "plain": {"fine": FeatureInfo(3, 4), "coarse": FeatureInfo(5, 8)},
    "steered": {"coarse": FeatureInfo(5, 8), "odd": FeatureInfo(3, 5)},
    "ddpm": {"pixel": FeatureInfo(4, 1), "half": FeatureInfo(2, 2)},
}
BUCKETS = {"sd": ("plain", "steered"), "adm": ("ddpm",)}


def features(images: int, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return {
        branch: {
            layer: torch.randn(
                images, one.channels, -(-SIZE[0] // one.stride), -(-SIZE[1] // one.stride), generator=generator
            )
            for layer, one in layers.items()
        }
        for branch, layers in INFO.items()
    }


def filled(dtype: str = "float32", folder: Path | None = None, images: int = 3) -> tuple[PixelStore, Features]:
    made = features(images)
    store = PixelStore(INFO, BUCKETS, SIZE, images, dtype, folder)
    for image in range(images):
        store.put(image, made, row=image)
    return store, made


def dense(made: Features, branch: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """(images, pixels, channels): the released way."""
    maps = [
        F.interpolate(value.to(dtype).float(), SIZE, mode="bilinear", align_corners=False)
        for value in made[branch].values()
    ]
    return torch.cat(maps, dim=1).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_sampled_pixels_equal_those_of_upsampled_maps(dtype: str) -> None:
    store, made = filled(dtype)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(3, (4, 50), generator=generator)
    positions = torch.randint(SIZE[0] * SIZE[1], (4, 50), generator=generator)
    found = store.sample(images, positions)
    assert {group: tuple(values.shape) for group, values in found.items()} == {
        "sd": (4, 50, 2, 8),
        "adm": (4, 50, 1, 6),
    }
    rounded = {"float32": torch.float32, "float16": torch.float16}[dtype]
    for group, branches in BUCKETS.items():
        for entry, branch in enumerate(branches):
            expected = dense(made, branch, rounded)[images, positions]
            assert (found[group][:, :, entry] - expected).abs().max() <= 1e-6


def test_all_pixels_of_an_image_are_its_upsampled_maps() -> None:
    store, made = filled()
    positions = torch.arange(SIZE[0] * SIZE[1])
    whole = store.sample(torch.ones_like(positions), positions)["sd"]
    assert (whole[:, 1] - dense(made, "steered")[1]).abs().max() <= 1e-6


@pytest.mark.parametrize(("source", "target"), [(1, 7), (5, 24), (24, 24), (48, 24)])
def test_taps_are_those_of_interpolate(source: int, target: int) -> None:
    line = torch.linspace(-1, 1, source) ** 3
    lower, upper, weight = bilinear_taps(source, target)
    expected = F.interpolate(line[None, None, :, None], (target, 1), mode="bilinear", align_corners=False).flatten()
    assert (torch.lerp(line[lower], line[upper], weight) - expected).abs().max() <= 1e-6


def test_the_file_of_a_store_gives_the_same_and_leaves_nothing(tmp_path: Path) -> None:
    memory, _ = filled("float16")
    disk, _ = filled("float16", tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []
    images, positions = torch.tensor([0, 2, 2]), torch.tensor([0, 5, SIZE[0] * SIZE[1] - 1])
    for group, values in memory.sample(images, positions).items():
        assert torch.equal(values, disk.sample(images, positions)[group])


def test_a_store_on_a_gpu_gives_the_same_without_a_copy_or_a_wait() -> None:
    host, made = filled("float16")
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(3, (4, 50), generator=generator)
    positions = torch.randint(SIZE[0] * SIZE[1], (4, 50), generator=generator)
    expected = host.sample(images, positions)
    with pretended_gpu() as record:
        store = PixelStore(INFO, BUCKETS, SIZE, 3, "float16", device=GPU)
        on_gpu = {name: {layer: one.to(GPU) for layer, one in maps.items()} for name, maps in made.items()}
        for image in range(3):
            store.put(image, on_gpu, row=image)
        assert store.nbytes == host.nbytes
        there = images.to(GPU), positions.to(GPU)
        store.sample(*there)  # the positions of the taps go there once
        record.clear()
        found = store.sample(*there)
        assert (record.copies.total(), record.waits.total()) == (0, 0), record
        for group, values in found.items():
            assert values.device == GPU
            assert torch.equal(values.cpu(), expected[group])


def test_a_file_is_on_the_host(tmp_path: Path) -> None:
    store = PixelStore(INFO, BUCKETS, SIZE, 1, folder=tmp_path, device=torch.device("cuda", 0))
    assert store.device == torch.device("cpu")


def test_size_is_known_before_anything_is_made() -> None:
    store, _ = filled("float16")
    values = sum(value[0].numel() for layers in features(1).values() for value in layers.values())
    assert store.nbytes == 3 * 2 * values


def test_a_group_may_leave_branches_out() -> None:
    made = features(1)
    store = PixelStore(INFO, {"one": ("steered",)}, SIZE, 1, "float32")
    store.put(0, made)
    positions = torch.arange(10)
    found = store.sample(torch.zeros_like(positions), positions)["one"]
    assert (found[:, 0] - dense(made, "steered")[0, :10]).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("backbone_groups", "message"),
    [({"all": ("plain", "ddpm")}, "equally many channels; all has plain: 8, ddpm: 6"), ({"x": ("none",)}, "'x'")],
)
def test_groups_that_do_not_fit_are_refused(backbone_groups: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PixelStore(INFO, backbone_groups, SIZE, 1)


def test_what_is_no_map_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no map of features"):
        map_shapes({"a": {"attention": FeatureInfo(8, 0)}}, SIZE)


def test_features_of_another_branch_are_refused() -> None:
    made = features(1)
    made["plain"]["fine"] = torch.zeros(1, 3, 3, 3)
    with pytest.raises(CacheError, match="another branch"):
        PixelStore(INFO, BUCKETS, SIZE, 1).put(0, made)


def test_values_beyond_half_precision_are_refused() -> None:
    made = features(1)
    made["plain"]["fine"] *= 1e6
    with pytest.raises(CacheError, match="cannot hold"):
        PixelStore(INFO, BUCKETS, SIZE, 1).put(0, made)
