from __future__ import annotations

import io
import random

import numpy as np
import torch

from gate_lightning.tasks.random_state import capture_random_state, restore_random_state

CPU = torch.device("cpu")


def draws() -> list[float]:
    normal = [random.gauss(0, 1), float(np.random.standard_normal()), float(torch.randn(()))]
    return [*normal, random.random(), float(np.random.rand()), float(torch.nn.functional.dropout(torch.ones(64)).sum())]


def test_restored_state_repeats_python_numpy_and_torch() -> None:
    draws()  # leaves half a pair of normal numbers behind in Python and NumPy
    state = capture_random_state(CPU)
    first = draws()
    assert draws() != first
    restore_random_state(state, CPU)
    assert draws() == first


def test_state_survives_a_file_read_without_pickled_code() -> None:
    draws()
    buffer = io.BytesIO()
    torch.save(capture_random_state(CPU), buffer)
    first = draws()
    buffer.seek(0)
    restore_random_state(torch.load(buffer, weights_only=True), CPU)
    assert draws() == first
