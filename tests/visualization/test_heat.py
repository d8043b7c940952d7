from __future__ import annotations

import numpy as np
import pytest

from gate_lightning.errors import ConfigError
from gate_lightning.visualization.heat import heat_map


def test_the_larger_the_brighter_up_to_the_highest() -> None:
    values = np.array([[0.0, 0.1, 0.2], [0.35, 0.5, 3.0]])
    image = heat_map(values, 0.5)
    assert image.shape == (2, 3, 3)
    assert image.dtype == np.uint8
    brightness = image.astype(int).sum(axis=2).ravel()
    assert (np.diff(brightness[:5]) > 0).all()
    assert brightness[4] == brightness[5]
    assert brightness[0] < 30


def test_what_is_no_map_is_refused() -> None:
    for values, highest in ((np.zeros((2, 2, 3)), 1.0), (np.zeros((2, 2)), 0.0)):
        with pytest.raises(ConfigError, match="expected"):
            heat_map(values, highest)
