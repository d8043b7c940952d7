"""Saved weights are compared with a network's tensor by tensor."""

from __future__ import annotations

import torch

from gate_lightning.utils.state_dicts import misfits


def test_every_tensor_that_does_not_fit_is_named_with_the_reason() -> None:
    own = {"same": torch.zeros(2), "absent": torch.zeros(1), "wide": torch.zeros(2, 3)}
    saved = {"same": torch.ones(2), "wide": torch.zeros(3, 2), "further": torch.zeros(1)}
    assert misfits(saved, own, "file.pt") == [
        "absent: absent in file.pt",
        "further: only in file.pt",
        "wide: (3, 2) in file.pt, (2, 3) here",
    ]
    assert misfits(own, own, "file.pt") == []
