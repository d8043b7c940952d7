from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.ops.padding import pad_to_multiple, pad_to_size
from gate_lightning.ops.sliding_window import sliding_window, window_origins


def slow_sliding_window(image: np.ndarray, crop: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    """Pixel by pixel: the mean over all windows that cover it of what `toy_predict` says there."""
    height, width = image.shape[1:]
    total, count = np.zeros((2, height, width)), np.zeros((height, width))
    tops = [*range(0, height - crop[0], stride[0]), height - crop[0]]
    lefts = [*range(0, width - crop[1], stride[1]), width - crop[1]]
    for top in tops:
        for left in lefts:
            for y in range(crop[0]):
                for x in range(crop[1]):
                    value = image[0, top + y, left + x]
                    total[0, top + y, left + x] += value + 10 * y + x
                    total[1, top + y, left + x] += value * top - left
                    count[top + y, left + x] += 1
    return total / count


def toy_predict(window: Tensor, top: int, left: int) -> Tensor:
    """Two channels that depend on the pixel, its place in the window, and the window's place."""
    rows = torch.arange(window.shape[-2])[:, None]
    columns = torch.arange(window.shape[-1])[None]
    return torch.stack([window[:, 0] + 10 * rows + columns, window[:, 0] * top - left], dim=1)


@pytest.mark.parametrize(
    ("size", "crop", "stride"),
    [
        ((9, 11), (4, 5), (3, 2)),
        ((8, 8), (4, 4), (4, 4)),
        ((7, 7), (7, 7), (2, 3)),
        ((10, 6), (4, 6), (1, 6)),
        ((5, 13), (5, 4), (5, 4)),
    ],
)
def test_sliding_window_is_the_mean_over_covering_windows(
    size: tuple[int, int], crop: tuple[int, int], stride: tuple[int, int]
) -> None:
    image = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(0))
    result = sliding_window(image, crop, stride, toy_predict)
    for number in range(2):
        expected = slow_sliding_window(image[number].double().numpy(), crop, stride)
        np.testing.assert_allclose(result[number].numpy(), expected, rtol=1e-5, atol=1e-4)


def test_stride_equal_to_window_gives_tiles() -> None:
    image = torch.randn(1, 1, 8, 12, generator=torch.Generator().manual_seed(1))
    result = sliding_window(image, (4, 4), (4, 4), toy_predict)
    tiles = [
        torch.cat([toy_predict(image[..., y : y + 4, x : x + 4], y, x) for x in (0, 4, 8)], dim=-1) for y in (0, 4)
    ]
    assert torch.equal(result, torch.cat(tiles, dim=-2))


def test_constant_logits_stay_constant_whatever_the_overlap() -> None:
    image = torch.zeros(1, 3, 13, 9)
    result = sliding_window(image, (6, 5), (2, 1), lambda w, top, left: torch.full((1, 4, *w.shape[-2:]), 0.375))
    assert torch.equal(result, torch.full((1, 4, 13, 9), 0.375))


def test_small_image_is_padded_and_its_padding_dropped() -> None:
    image = torch.arange(6.0).view(1, 1, 2, 3)
    seen: list[Tensor] = []

    def predict(window: Tensor, top: int, left: int) -> Tensor:
        seen.append(window)
        return window

    result = sliding_window(image, (4, 4), (2, 2), predict)
    assert torch.equal(result, image)
    assert [tuple(w.shape[-2:]) for w in seen] == [(4, 4)]
    # two rows cannot be mirrored by two, so the edge is repeated; three columns can by one
    assert torch.equal(seen[0][0, 0], torch.tensor([[0, 1, 2, 1], [3, 4, 5, 4], [3, 4, 5, 4], [3, 4, 5, 4.0]]))


def test_origins_follow_the_formula_and_end_inside() -> None:
    assert window_origins(1024, 512, 341) == [0, 341, 512]
    assert window_origins(512, 512, 341) == [0]
    assert window_origins(100, 512, 341) == [0]
    assert window_origins(513, 512, 341) == [0, 1]


@pytest.mark.parametrize("numbers", [(10, 4, 5), (10, 0, 1), (10, 4, 0), (0, 4, 4)])
def test_gaps_and_nonsense_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError):
        window_origins(*numbers)


def test_padding_to_multiples_mirrors_and_keeps_the_image() -> None:
    image = torch.randn(1, 3, 13, 16)
    padded = pad_to_multiple(image, 8)
    assert padded.shape == (1, 3, 16, 16)
    assert torch.equal(padded[..., :13, :], image)
    assert torch.equal(padded[..., 13, :], image[..., 11, :])
    assert pad_to_multiple(padded, 8) is padded
    assert pad_to_size(image, 3, 3) is image
