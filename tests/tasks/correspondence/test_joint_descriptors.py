"""Descriptors that depend on a pair, padded squares, and two backbones: as in SD+DINO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gate_lightning.amalgamation.joint_pca import JointPCA
from gate_lightning.data.correspondence.batches import PaddedSquare
from gate_lightning.data.correspondence.own_pairs import OwnPairsDataModule
from gate_lightning.data.samples import Sample
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.jobs.training import train
from gate_lightning.errors import ConfigError
from gate_lightning.features.descriptors import descriptor_grids, image_features, joint_grids
from gate_lightning.heads.descriptors import ConvDescriptors
from gate_lightning.ops.correspondence.read_outs import ReadOut
from gate_lightning.structures import Conditions, FeatureInfo, Features
from gate_lightning.tasks.correspondence.image_views import mirror_images
from gate_lightning.tasks.correspondence.semantic import SemanticCorrespondence
from tests.support.composition import composed

INFO = {"one": {"place": FeatureInfo(3, 4)}}
SIZES = ((30, 50), (90, 40))


class Places(torch.nn.Module):
    """Features that tell where a position is in the part of the image that is shown: their best match is exact."""

    concatenated = ()
    description: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, shown: list[tuple[int, int]]) -> None:
        super().__init__()
        self.feature_info, self.shown = INFO, shown

    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        maps = []
        for row, (height, width) in enumerate(self.shown):
            y, x = ((torch.arange(side // 4) + 0.5) * 4 for side in images[row].shape[-2:])
            down, across = torch.meshgrid(y / height, x / width, indexing="ij")
            maps.append(torch.stack([across, down, torch.ones_like(down)]))
        return {"one": {"place": torch.stack(maps)}}


def test_points_of_padded_squares_are_exact() -> None:
    """The place relative to the image is found again, to the nearest pixel, in an image of another shape."""
    resize = PaddedSquare(64)
    shown = [resize.shown(*size) for size in SIZES]
    assert shown == [(38, 64), (64, 28)]
    square = resize(Sample("a", np.full((30, 50, 3), 200, np.uint8)), np.random.default_rng(0)).image
    assert square.shape == (64, 64, 3)
    assert (square[:38] == 200).all()
    assert (square[38:] == 0).all()
    conditions = Conditions(("a", "b"))
    here, there = descriptor_grids(
        Places(shown), _Plain(), lambda levels: levels[0], torch.zeros(2, 3, 64, 64), conditions, SIZES, shown
    )
    for grid, size, part in zip((here, there), SIZES, shown, strict=True):
        assert grid.scales == pytest.approx((part[0] / 4 / size[0], part[1] / 4 / size[1]))
        assert grid.inside == tuple(sum((place + 0.5) * 4 < side for place in range(16)) for side in part)
    points = torch.tensor([[10.0, 5.0], [24.5, 14.5], [40.0, 22.0]])
    descriptors = here.sample(points)
    relative = (points + 0.5) / torch.tensor([50.0, 30.0])
    torch.testing.assert_close(descriptors[:, :2], relative, rtol=1e-3, atol=1e-3)
    found = ReadOut(metric="l2")(here, there, points)
    expected = relative * torch.tensor([40.0, 90.0]) - 0.5
    assert (found - expected).abs().max() <= 0.51  # matches are whole pixels


class _Plain:
    """Amalgamation of one branch and layer."""

    strides = (4,)

    def __call__(self, features: Features) -> Any:
        class Levels:
            levels = (features["one"]["place"],)

        return Levels()


def test_joint_grids_have_the_scale_of_what_is_shown() -> None:
    shown = [PaddedSquare(64).shown(*size) for size in SIZES]
    images, conditions = torch.zeros(2, 3, 64, 64), Conditions(("a", "b"))
    source, target = image_features(Places(shown), images, conditions, SIZES, shown)
    here, there = joint_grids(JointPCA(INFO, components=3, stride=8), source, target)
    assert here.features.shape == (3, 8, 8)
    assert here.scales == pytest.approx((38 / 8 / 30, 64 / 8 / 50))
    assert there.scales == pytest.approx((64 / 8 / 90, 28 / 8 / 40))


def test_a_mirror_image_keeps_its_padding_in_place() -> None:
    image = torch.arange(6.0).expand(2, 3, 4, 6)
    made = mirror_images(image, [(4, 6), (2, 4)])
    assert made[0, 0, 0].tolist() == [5, 4, 3, 2, 1, 0]
    assert made[1, 0, :, :].tolist() == [[3, 2, 1, 0, 4, 5]] * 2 + [[0, 1, 2, 3, 4, 5]] * 2
    assert torch.equal(mirror_images(image), image.flip(-1))


def test_a_padded_square_needs_a_side(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("source_path,target_path\n")
    with pytest.raises(ConfigError, match="names no side"):
        OwnPairsDataModule(str(tmp_path), resize="pad_square")
    with pytest.raises(ConfigError, match=r"dataset\.resize"):
        OwnPairsDataModule(str(tmp_path), size=8, resize="padded")


def test_no_head_reads_joint_descriptors() -> None:
    joint = JointPCA(INFO, components=2)
    with pytest.raises(ConfigError, match="head=descriptors"):
        SemanticCorrespondence(Places([]), joint, ReadOut(), head=ConvDescriptors((2,)))


TWO = (
    *("dataset=scene_pairs", "dataset.test=2", "dataset.size=96", "dataset.resize=pad_square", "logger=none"),
    *("backbone.weights=random", "+backbone@backbones.dino=dinov2_base", "backbones.dino.weights=random"),
    *("backbones.dino.architecture=dinov2_tiny", "backbones.dino.native_size=32", "backbone_scale={dino: 0.5}"),
    *("trainer.accelerator=cpu", "timestep=100", "callbacks=quiet"),
    "techniques=[{name: sd, layers: ['up_blocks[0]','up_blocks[1]']},{name: dino, backbone: dino, layers: last}]",
)


@pytest.mark.parametrize(
    "fusion",
    [
        ("amalgamation=concat", "amalgamation.normalize=true", "amalgamation.weights={dino: 0.5}"),
        pytest.param(
            ("amalgamation=joint_pca", "amalgamation.components={sd: 16}", "amalgamation.stride=8", "task.flip=mutual"),
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_two_backbones_from_the_command_line(fusion: tuple[str, ...], tmp_path: Path) -> None:
    """Stable Diffusion at 96 pixels and DINOv2 at 48, both as maps of 12 × 12 positions."""
    found = evaluate(composed(*TWO, *fusion, name="eval"), [*TWO, *fusion], tmp_path)
    assert 0 < found["test/PCK_0.15_img_per-point_le"] < 1
    frozen = json.loads((tmp_path / "frozen.json").read_text())
    scales = {name: one["scale"] for name, one in frozen["backbones"].items()}
    assert scales == {"main": 1.0, "dino": 0.5}


@pytest.mark.thorough
def test_nothing_is_trained_by_joint_pca(tmp_path: Path) -> None:
    config = composed(*TWO, "amalgamation=joint_pca", "amalgamation.components=16", "dataset.train=2", "dataset.val=2")
    with pytest.raises(ConfigError, match="nothing to train"):
        train(config, [], tmp_path)
