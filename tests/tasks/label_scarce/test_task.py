"""The label-scarce task around its parts: what is trained on is what is evaluated, and what is refused."""

from __future__ import annotations

import logging
import math
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from gate_lightning.data.card import ClassLabels
from gate_lightning.errors import ConfigError
from gate_lightning.features.caches.disk import DiskCache
from gate_lightning.features.caches.memory import MemoryCache
from gate_lightning.pixel_classifiers.ensemble import PixelEnsemble
from gate_lightning.pixel_classifiers.store import PixelStore, group_widths
from gate_lightning.pixel_classifiers.weighted import WeightedPixels
from gate_lightning.structures import Conditions, FeatureInfo, Features, SegmentationBatch
from gate_lightning.tasks.label_scarce.features import StoreSettings, check_room
from gate_lightning.tasks.label_scarce.task import LabelScarceTask
from gate_lightning.utils.resources import check_disk, check_memory
from tests.support.pretended_gpu import GPU, pretended_gpu

SIZE = (16, 16)
INFO = {
    "plain": {"fine": FeatureInfo(3, 2), "coarse": FeatureInfo(4, 8)},
    "steered": {"fine": FeatureInfo(3, 2), "coarse": FeatureInfo(4, 8)},
    "ddpm": {"pixel": FeatureInfo(2, 1)},
}
BUCKETS = {"sd": ("plain", "steered"), "adm": ("ddpm",)}
CLASSES = ("sky", "house", "tree")


class Colours(nn.Module):
    """Maps that are functions of the images, other ones for every branch."""

    feature_info = INFO
    concatenated = ()
    description = {"kind": "colours"}  # noqa: RUF012
    backbone = SimpleNamespace(size_multiple=8)

    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        return {
            branch: {
                layer: torch.stack(
                    [
                        nn.functional.avg_pool2d(images, one.stride)[:, (channel + number) % 3] * (1 + channel) + number
                        for channel in range(one.channels)
                    ],
                    dim=1,
                )
                for layer, one in layers.items()
            }
            for number, (branch, layers) in enumerate(INFO.items())
        }


def task(members: int = 3, **settings: object) -> LabelScarceTask:
    amalgamation = WeightedPixels(group_widths(INFO, BUCKETS), members)
    return LabelScarceTask(
        Colours(),
        amalgamation,
        PixelEnsemble(amalgamation.out_channels, len(CLASSES), members),
        BUCKETS,
        partial(torch.optim.Adam, lr=1e-3),
        None,
        ClassLabels(CLASSES, ((0, 0, 0), (1, 1, 1), (2, 2, 2))),
        **settings,  # type: ignore[arg-type]
    )


def shaken(made: LabelScarceTask) -> LabelScarceTask:
    """Weights and running values that are nothing special."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in [*made.parameters(), *made.buffers()]:
            if value.is_floating_point():
                value.add_(0.1 * torch.rand(value.shape, generator=generator))
    return made.eval()


def random_images(count: int = 2) -> tuple[Tensor, Conditions]:
    images = torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return images, Conditions(tuple(f"s{number}" for number in range(count)))


def test_evaluation_sees_the_pixels_that_training_samples() -> None:
    made, (images, conditions) = shaken(task()), random_images()
    store = PixelStore(INFO, BUCKETS, SIZE, 1)
    store.put(0, made.extractor(images, conditions), row=1)
    positions = torch.arange(256)[None]
    expected = made.head(made.amalgamation(store.sample(torch.zeros_like(positions), positions)).features)
    found = made.member_logits(images, conditions, SIZE)[1]
    assert (found.flatten(2).transpose(1, 2) - expected).abs().max() < 1e-5


def test_votes_and_mean_probabilities_are_what_they_say() -> None:
    images, conditions = random_images(1)
    made = shaken(task(members=5))
    logits = made.member_logits(images, conditions, SIZE)[0]
    votes = torch.stack([(logits.argmax(dim=1) == label).sum(dim=0) for label in range(3)])
    assert torch.equal(made.label_maps(images, conditions, SIZE)[0], votes.argmax(dim=0))
    made.prediction = "mean_probability"
    assert torch.equal(made.label_maps(images, conditions, SIZE)[0], logits.softmax(dim=1).mean(dim=0).argmax(dim=0))


def test_larger_results_keep_what_was_voted() -> None:
    made, (images, conditions) = shaken(task()), random_images(1)
    labels, unsure = made.ensemble(images, conditions, (48, 32))
    assert labels.shape == unsure.shape == (1, 48, 32)
    assert torch.equal(labels[:, 1::3, ::2], made.label_maps(images, conditions, SIZE))


def test_both_conventions_and_uncertainty_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    made, (images, conditions) = shaken(task()), random_images(2)
    masks = made.label_maps(images, conditions, SIZE)
    masks[:, :4] = 255
    logged: dict[str, float] = {}
    monkeypatch.setattr(made, "log", lambda name, value, **_: logged.__setitem__(name, float(value)))
    monkeypatch.setattr(made, "log_dict", lambda values, **_: logged.update({k: float(v) for k, v in values.items()}))
    labels = made.test_step(SegmentationBatch(images, conditions, masks), 0)
    assert labels.shape == masks.shape
    made.on_test_epoch_end()
    assert logged["test/mIoU"] == 1.0  # unlabelled pixels do not count there …
    assert logged["test/mIoU_ddpm"] < 1.0  # … and enlarge unions here
    assert logged["test/uncertainty"] > 0.0
    assert set(made.per_class["test"]) == set(CLASSES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prediction": "mode"}, "majority_vote"),
        ({"max_steps_per_member": 0}, "whole number from 1"),
        ({"store_dtype": "int8"}, "float16"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task(**settings)


def test_it_knows_when_training_may_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four epochs, one batch that is the first minimum, and 51 that are none."""
    trainer = SimpleNamespace(num_training_batches=1000, datamodule=SimpleNamespace(pixels_per_batch=64))
    monkeypatch.setattr(LabelScarceTask, "trainer", trainer)
    assert task().steps_bounds == (4052, math.inf)
    assert task(max_steps_per_member=5000).steps_bounds == (4052, 5000)
    assert task(max_steps_per_member=300).steps_bounds == (300, 300)
    rule = task(start_epoch=0, patience=3).stopping
    steps = 0
    while not rule.finished:
        steps += 1
        rule.update(torch.full((3,), 0.5), 0)
    assert task(start_epoch=0, patience=3).steps_bounds[0] == steps


def test_room_says_how_much_for_what(tmp_path: object) -> None:
    check_memory({"nothing": 1.0}, None, "")
    with pytest.raises(
        ConfigError, match=r"needs 5(\.00)? GiB .*2(\.00)? GiB for maps, 3(\.00)? GiB for weights.*Lower it"
    ):
        check_memory({"maps": 2.0 * 2**30, "weights": 3.0 * 2**30}, 4.0, "Lower it")
    with pytest.raises(ConfigError, match=r"maps need .*Lower it"):
        check_disk(2.0**60, tmp_path / "not" / "there", "maps", "Lower it")  # type: ignore[operator]


def test_images_that_would_be_padded_are_refused() -> None:
    data = SimpleNamespace(images=lambda split: SimpleNamespace(dataset=range(3)), image_size=20)
    with pytest.raises(ConfigError, match=r"task\.data\.image_size=20: .*expected 16 or 24"):
        check_room(Colours(), data, StoreSettings(), 0)


def test_a_cache_whose_disk_has_no_room_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 + 3 images of 2 · (3 · 8² + 4 · 2²) + 2 · 16² = 928 values, 2 bytes each, of which one image is stored."""

    class Uncalled(Colours):
        def forward(self, images: Tensor, conditions: Conditions) -> Features:
            raise AssertionError("features were computed")

    data = SimpleNamespace(
        images=lambda split: SimpleNamespace(dataset=range(3)),
        image_size=16,
        size=16,
        members=2,
        pixels_per_batch=4,
    )
    cached = MemoryCache(DiskCache(Uncalled(), tmp_path), 1.0)
    (tmp_path / "a.png.0.safetensors").touch()
    needed = 5 * 928 * 2
    for free in (needed, needed - 1):
        disk = shutil.disk_usage(tmp_path)._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, disk=disk: disk)
        if free == needed:
            check_room(cached, data, StoreSettings(), 0)
        else:
            with pytest.raises(ConfigError, match=r"5 images of 1\.81 KiB need .* are free there.*cache\.folder"):
                check_room(cached, data, StoreSettings(), 0)


@pytest.mark.parametrize(
    ("settings", "free", "expected"),
    [
        (StoreSettings(), 70.0, "cuda:0"),
        (StoreSettings(), 1e-5, "cpu"),
        (StoreSettings(folder="somewhere"), 70.0, "cpu"),
    ],
)
def test_labelled_features_are_on_the_gpu_where_they_fit(
    settings: StoreSettings,
    free: float,
    expected: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Roomy(Colours):
        def check_room(self, images: int, values: int) -> None:
            pass

    monkeypatch.chdir(tmp_path)
    sizes = {"image_size": 16, "size": 16, "members": 2, "pixels_per_batch": 4}
    data = SimpleNamespace(images=lambda split: SimpleNamespace(dataset=range(3)), **sizes)
    with pretended_gpu(), caplog.at_level(logging.INFO):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (int(free * 2**30), 80 * 2**30))
        assert check_room(Roomy(), data, settings, 0, GPU) == torch.device(expected)
    assert ("stay on the host" in caplog.text) == (free < 1)
    # what is on the GPU takes none of the host's memory
    counted = "labelled images" in caplog.text.rpartition("memory to come")[2]
    assert counted == (expected == "cpu" and not settings.folder)
    assert check_room(Roomy(), data, settings, 0) == torch.device("cpu")


def test_large_masks_need_room_for_orders() -> None:
    """30 masks of 4096² and ten members: 22 GB of numbers of pixels beside a few MB of features."""
    data = SimpleNamespace(
        images=lambda split: SimpleNamespace(dataset=range(30)),
        image_size=16,
        size=4096,
        members=10,
        pixels_per_batch=64,
    )
    with pytest.raises(ConfigError, match=r"21\.1 GiB for the orders of pixels.*task\.data\.size"):
        check_room(Colours(), data, StoreSettings(memory_gib=8.0), 0)
