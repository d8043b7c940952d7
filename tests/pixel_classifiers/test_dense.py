"""A linear layer before resizing against one behind it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from gate_lightning.errors import ConfigError
from gate_lightning.pixel_classifiers.dense import project_maps, resize_rows, resized_sum, row_bands


@pytest.mark.parametrize("source", [(4, 4), (5, 7), (16, 12), (1, 1), (32, 40), (3, 12)])
def test_rows_of_a_resize_are_those_of_the_whole(source):
    size = (16, 12)
    maps = torch.randn(3, *source, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
    for count in (1, 5, 16):
        bands = [resize_rows(maps, size, band) for band in row_bands(size[0], count)]
        torch.testing.assert_close(torch.cat(bands, dim=1), expected, rtol=0, atol=1e-14)


def test_the_layer_commutes_with_resizing():
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 4, 4), (3, 8, 6), (2, 4, 4), (5, 16, 16)]
    maps = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    weight = torch.randn(7, 14, generator=generator, dtype=torch.float64)
    resized = torch.cat([interpolate(map_[None], (16, 16), mode="bilinear")[0] for map_ in maps])
    parts = project_maps(maps, weight)
    assert sorted(tuple(part.shape) for part in parts) == [(7, 4, 4), (7, 8, 6), (7, 16, 16)]  # one a resolution
    found = resized_sum(parts, (16, 16), slice(0, 16))
    torch.testing.assert_close(found, torch.einsum("oc,chw->ohw", weight, resized), rtol=1e-12, atol=1e-12)


def test_stored_half_precision_is_computed_in_the_dtype_of_the_layer():
    maps = [torch.randn(4, 3, 3).half()]
    weight = torch.randn(2, 4, dtype=torch.float64)
    (found,) = project_maps(maps, weight)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.einsum("oc,chw->ohw", weight, maps[0].double()))


def test_channels_that_do_not_add_up_are_refused():
    with pytest.raises(ConfigError, match=r"2 \+ 3 channels; the layer reads 6"):
        project_maps([torch.zeros(2, 1, 1), torch.zeros(3, 1, 1)], torch.zeros(1, 6))
