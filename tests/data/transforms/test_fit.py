"""The benchmarks' pipeline against mmcv's and mmsegmentation's own operations, with equal random parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from gate_lightning.data.samples import SegmentationSample, collate_masks
from gate_lightning.data.transforms.basic import Pad, PhotometricDistortion, RandomCrop, RandomFlip
from gate_lightning.data.transforms.fit import Fit
from gate_lightning.errors import ConfigError
from gate_lightning.utils.seeding import data_generator
from tests.support.benchmarks import blocks

mmcv_transforms = pytest.importorskip("mmcv.transforms")
mmseg_transforms = pytest.importorskip("mmseg.datasets.transforms.transforms")


def sample(height: int = 90, width: int = 130, seed: int = 0) -> SegmentationSample:
    image = cv2.resize(data_generator(seed).integers(0, 256, (9, 13, 3), dtype=np.uint8), (width, height))
    mask = blocks(height, width, 0, 5, seed)
    mask[mask == 5] = 255
    return SegmentationSample("s", image, mask=mask)


def as_results(given: SegmentationSample) -> dict[str, Any]:
    """What mmsegmentation's transforms pass on; it keeps images as BGR."""
    image = given.image[..., ::-1].copy()
    shape = image.shape[:2]
    return {
        "img": image,
        "gt_seg_map": given.mask,
        "seg_fields": ["gt_seg_map"],
        "img_shape": shape,
        "ori_shape": shape,
    }


def assert_equal(ours: SegmentationSample, theirs: dict[str, Any]) -> None:
    np.testing.assert_array_equal(ours.image, theirs["img"][..., ::-1])
    np.testing.assert_array_equal(ours.mask, theirs["gt_seg_map"])


@pytest.mark.parametrize(("height", "width"), [(683, 512), (300, 2500), (1024, 2048), (97, 31), (480, 640)])
@pytest.mark.parametrize("ratio", [1.0, 0.5372, 1.9999])
def test_sizes_are_mmcvs(height: int, width: int, ratio: float) -> None:
    from mmcv.image import rescale_size

    scale = (2048, 512)
    theirs = rescale_size((width, height), tuple(int(side * ratio) for side in scale))
    assert Fit(scale).size(height, width, ratio) == theirs[::-1]


@pytest.mark.parametrize("share", [0.0, 0.31, 0.77, 0.999])
def test_random_resize_is_mmcvs(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    class Draw:
        def uniform(self, low: float, high: float) -> float:
            return low + (high - low) * share

    monkeypatch.setattr(np.random, "random_sample", lambda: share)
    theirs = mmcv_transforms.RandomResize(
        scale=(256, 64), ratio_range=(0.5, 2.0), resize_type=mmcv_transforms.Resize, keep_ratio=True
    )
    assert_equal(Fit((256, 64), True, (0.5, 2.0))(sample(), Draw()), theirs.transform(as_results(sample())))  # type: ignore[arg-type]


def test_evaluation_keeps_the_mask() -> None:
    fitted = Fit((256, 64))(sample(), data_generator(0))
    assert fitted.image.shape == (64, 92, 3)
    assert fitted.mask is not None
    assert fitted.mask.shape == (90, 130)


@pytest.mark.parametrize("seed", range(8))
def test_class_balanced_crops_are_mmsegs(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = sample(seed=seed)
    given.mask[:, :100] = 1  # type: ignore[index] # so that many draws are refused
    rng = data_generator(seed)
    monkeypatch.setattr(np.random, "randint", lambda low, high: int(rng.integers(low, high)))
    theirs = mmseg_transforms.RandomCrop((32, 48), cat_max_ratio=0.75).transform(as_results(given))
    assert_equal(RandomCrop((32, 48), 0.75)(given, data_generator(seed)), theirs)


class Scripted:
    """Random numbers of mmsegmentation's PhotoMetricDistortion, taken from ours."""

    def __init__(self, seed: int) -> None:
        rng = data_generator(seed)
        does = rng.random(4) < 0.5
        first = bool(rng.random() < 0.5)
        shift, contrast, saturation = rng.uniform(-32, 32), rng.uniform(0.5, 1.5), rng.uniform(0.5, 1.5)
        turn = int(rng.integers(-18, 19))
        middle = [(does[2], saturation), (does[3], turn)]
        steps = [(does[1], contrast), *middle] if first else [*middle, (does[1], contrast)]
        self.numbers: Iterator[Any] = iter(
            [*_when(does[0], shift), int(first), *(number for step in steps for number in _when(*step))]
        )

    def randint(self, *_: int) -> int:
        return int(next(self.numbers))

    def uniform(self, *_: float) -> float:
        return float(next(self.numbers))


def _when(does: bool, number: float) -> list[Any]:
    return [1, number] if does else [0]


@pytest.mark.parametrize("seed", range(12))
def test_photometric_distortion_is_mmsegs(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmseg_transforms, "random", Scripted(seed))
    theirs = mmseg_transforms.PhotoMetricDistortion().transform(as_results(sample()))
    assert_equal(PhotometricDistortion()(sample(), data_generator(seed)), theirs)


def test_flip_pad_and_normalisation_are_mmsegs() -> None:
    from mmcv.image import imflip
    from mmengine.structures import PixelData
    from mmseg.models import SegDataPreProcessor
    from mmseg.structures import SegDataSample

    given = sample(40, 50)
    ours = collate_masks([Pad((48, 64))(RandomFlip(1.0)(given, data_generator(0)), data_generator(0))])
    image = torch.from_numpy(imflip(given.image[..., ::-1]).copy()).permute(2, 0, 1)
    truth = SegDataSample(gt_sem_seg=PixelData(data=torch.from_numpy(imflip(given.mask).copy())[None]))
    half = [127.5] * 3
    process = SegDataPreProcessor(mean=half, std=half, bgr_to_rgb=True, size=(48, 64), pad_val=0, seg_pad_val=255)
    theirs = process({"inputs": [image], "data_samples": [truth]}, training=True)
    torch.testing.assert_close(ours.images[..., :40, :50], theirs["inputs"][..., :40, :50], rtol=0, atol=1e-6)
    # 8-bit padding cannot be the mean colour 127.5
    assert (ours.images - theirs["inputs"]).abs().max() <= 0.5 / 127.5 + 1e-6
    assert ours.masks is not None
    torch.testing.assert_close(ours.masks[0], theirs["data_samples"][0].gt_sem_seg.data[0].long())


@pytest.mark.parametrize("scale", [(64,), (64, 0), (64.0, 32), (1, 2, 3)])
def test_boxes_are_two_positive_numbers(scale: Any) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.scale"):
        Fit(scale)


@pytest.mark.parametrize("ratio_range", [(0, 1), (2, 1), (1,)])
def test_ranges_grow(ratio_range: Any) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.ratio_range"):
        Fit((64, 32), True, ratio_range)
