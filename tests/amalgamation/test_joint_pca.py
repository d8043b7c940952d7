"""PCA of both images of a pair, against singular vectors of all their vectors at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate, normalize

from gate_lightning.amalgamation.joint_pca import JointPCA
from gate_lightning.errors import ConfigError
from gate_lightning.structures import FeatureInfo, Features

INFO = {
    "sd": {"coarse": FeatureInfo(20, 16), "fine": FeatureInfo(12, 4)},
    "dino": {"tokens": FeatureInfo(9, 8)},
}


def features(seed: int, height: int = 64, width: int = 48) -> Features:
    generator = torch.Generator().manual_seed(seed)

    def made(info: FeatureInfo) -> torch.Tensor:
        scales = torch.linspace(1, 4, info.channels)[:, None, None]  # principal axes that are told apart
        size = (1, info.channels, height // info.stride, width // info.stride)
        return torch.randn(size, generator=generator) * scales + 3

    return {branch: {layer: made(info) for layer, info in layers.items()} for branch, layers in INFO.items()}


def projected(maps: list[torch.Tensor], count: int) -> list[torch.Tensor]:
    """Oracle: coordinates along the first right singular vectors of the centred vectors of both maps."""
    flat = [one[0].flatten(1).T.double().numpy() for one in maps]
    every: NDArray[Any] = np.concatenate(flat)
    mean = every.mean(axis=0)
    _, _, axes = np.linalg.svd(every - mean, full_matrices=False)
    found = [torch.from_numpy((one - mean) @ axes[:count].T) for one in flat]
    return [one.T.reshape(1, count, *given.shape[-2:]).float() for one, given in zip(found, maps, strict=True)]


def oracle(source: Features, target: Features, count: int, size: tuple[int, int]) -> list[torch.Tensor]:
    reduced = {layer: projected([source["sd"][layer], target["sd"][layer]], count) for layer in INFO["sd"]}
    made = []
    for index, side in enumerate((source, target)):
        layers = [interpolate(reduced[layer][index], size, mode="bilinear") for layer in INFO["sd"]]
        parts = [torch.cat(layers, dim=1), interpolate(side["dino"]["tokens"], size, mode="bilinear")]
        made.append(torch.cat([normalize(parts[0], dim=1), 0.5 * normalize(parts[1], dim=1)], dim=1))
    return made


def test_descriptors_are_those_of_singular_vectors() -> None:
    joint = JointPCA(INFO, components={"sd": 5}, weights={"dino": 0.5}, stride=8)
    assert (joint.out_channels, joint.strides) == ((19,), (8,))
    source, target = features(0), features(1)
    found, expected = joint(source, target), oracle(source, target, 5, (8, 6))
    # signs of axes are arbitrary, products are not
    for one in (0, 1):
        for other in (0, 1):
            products = [torch.einsum("bchw,bcij->hwij", pair[one], pair[other]) for pair in (found, expected)]
            torch.testing.assert_close(*products, rtol=1e-4, atol=1e-4)


def test_descriptors_depend_on_the_other_image_and_have_length_one_by_branch() -> None:
    joint = JointPCA(INFO, components=4)
    source = features(0)
    with_one, with_other = joint(source, features(1))[0], joint(source, features(2))[0]
    assert with_one.shape == (1, 12, 16, 12)
    assert not torch.allclose(with_one, with_other, atol=1e-2)
    for part in with_one.split([8, 4], dim=1):
        torch.testing.assert_close(part.norm(dim=1), torch.ones(1, 16, 12))


def test_images_of_different_sizes() -> None:
    joint = JointPCA(INFO, components=4, stride=8)
    made = joint(features(0, 64, 48), features(1, 48, 80))
    assert [tuple(one.shape[-2:]) for one in made] == [(8, 6), (6, 10)]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"components": 10}, "layer tokens of branch 'dino' has 9 channels"),
        ({"components": {"sdd": 4}}, "amalgamation.components"),
        ({"components": 4, "weights": {"x": 1.0}}, "amalgamation.weights"),
        ({"components": 0}, "amalgamation.components"),
        ({"components": 4, "stride": 0}, "amalgamation.stride"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        JointPCA(INFO, **settings)
