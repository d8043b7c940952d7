"""Semantic correspondence by the colours of pixels: its extractor, and its command in small."""

from __future__ import annotations

from types import MappingProxyType

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from gate_lightning.structures import Conditions, FeatureInfo, Features
from tests.support.composition import composed

KEY = "PCK_0.10_img_per-image_le"


class ColourExtractor(torch.nn.Module):
    """Colours of pixels as features, of stride 1; counts the images it has seen, by view."""

    concatenated = ()
    description = MappingProxyType({"network": "colours"})

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []
        self.feature_info = {"plain": {"colour": FeatureInfo(3, 1)}}

    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        self.seen += zip(conditions.sample_ids, conditions.views, strict=True)
        return {"plain": {"colour": images.clone()}}


SETTINGS = (
    *("task=correspondence", "backbone=pixels", "backbone.strides=[2]", "techniques=none", "logger=none"),
    *("trainer.accelerator=cpu", "task.alphas=[0.05,0.1]"),
)


def configured(*overrides: str, name: str = "eval") -> DictConfig:
    config = composed(*SETTINGS, *overrides, name=name)
    OmegaConf.set_struct(config, False)
    config.dataset = {"_target_": "tests.examples.pairs_data.PairsDataModule", "batch_size": 2}
    return config
