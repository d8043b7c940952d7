"""Scenes of both domains in one cache of latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gate_lightning.data.pretraining.datamodule import TRAIN_SEED
from gate_lightning.data.pretraining.latents import SceneLatents
from gate_lightning.data.samples import SampleRequest
from gate_lightning.data.scenes.layout import sample_scene
from gate_lightning.data.scenes.render import render
from gate_lightning.errors import ConfigError


class Means:
    """Latents that are the images' mean colours."""

    identity = "means"

    def latents(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3), keepdim=True)


def test_a_share_of_the_scenes_is_of_the_target_domain(tmp_path: Path) -> None:
    given = {"train_length": 8, "val_length": 2, "processes": 1, "batch_size": 4}
    data = SceneLatents(Means(), tmp_path, target_share=0.25, **given)
    data.prepare_data()
    batch = data.make_source("train")[[SampleRequest(index) for index in range(8)]]
    assert batch.latents is not None
    for index in range(8):
        domain = "target" if index in (3, 7) else "source"
        image = render(sample_scene(TRAIN_SEED + index, domain=domain), size=64).image
        assert np.array_equal(data.image("train", index), image)
        expected = torch.from_numpy(image).float().mean(dim=(0, 1)) / 127.5 - 1
        torch.testing.assert_close(batch.latents[index].flatten(), expected, atol=2e-3, rtol=0)
    plain = SceneLatents(Means(), tmp_path, **given)
    assert plain.path("train") != data.path("train")  # a cache of other scenes is another file
    with pytest.raises(ConfigError, match=r"target_share=1\.5"):
        SceneLatents(Means(), tmp_path, target_share=1.5, **given)
