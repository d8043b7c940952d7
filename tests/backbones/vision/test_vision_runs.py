"""Vision transformers where a diffusion model usually is: segmentation, and the table of layers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gate_lightning.engine.jobs.training import train
from gate_lightning.tools.layers.table import layers
from tests.support.composition import SMALL, composed
from tests.support.vision_networks import saved


@pytest.mark.thorough
def test_segmentation_of_scenes(tmp_path: Path) -> None:
    given = (
        *("backbone=dinov2_base", "backbone.architecture=dinov2_tiny", "backbone.native_size=32", "techniques=none"),
        *("layers=last", *SMALL),
    )
    found = train(composed(*given), given, tmp_path)
    assert math.isfinite(found["test/mIoU"])


def test_the_table_of_a_folder_is_that_of_its_own_network(tmp_path: Path) -> None:
    saved("dinov3_vit", tmp_path)
    target = "gate_lightning.backbones.vision.loading.load_vision_backbone"
    text = layers({"_target_": target, "weights": str(tmp_path), "architecture": "dinov2_base"}, filter="last")
    assert "24×8×8" in text  # 24 channels, 32 pixels in patches of 4
    assert "model.layer.2" in text
