"""Random textures: ground and stripes of the scene, grain of the camera."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

_TILE = 512

# Ground -> blur of the noise in pixels along x and y, and its amplitude (standard deviation, 0..255).
# Amplitudes are small on purpose: noise that an autoencoder cannot predict would eat its whole error budget.
_LOOK: dict[str, tuple[float, float, float]] = {
    "grass": (0.7, 1.6, 6.0),
    "sand": (1.0, 1.0, 4.0),
    "snow": (2.5, 1.2, 3.0),
    "road": (0.8, 0.8, 5.0),
    "water": (5.0, 0.9, 7.0),
}


@cache
def _ground_tile(ground: str) -> np.ndarray:
    """float32 (512, 512) noise that wraps around, zero mean; made once, drawing it anew is slow."""
    along_x, along_y, amplitude = _LOOK[ground]
    noise = np.random.default_rng(1).standard_normal((_TILE, _TILE)).astype(np.float32)
    pad = 32
    smooth = cv2.GaussianBlur(np.pad(noise, pad, mode="wrap"), (0, 0), sigmaX=along_x, sigmaY=along_y)
    smooth = smooth[pad:-pad, pad:-pad]
    return smooth * np.float32(amplitude / smooth.std())


@cache
def _grain_tile() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((_TILE, _TILE, 3)).astype(np.float32)


def _window(tile: np.ndarray, size: int, seed: int) -> np.ndarray:
    """A ``size`` by ``size`` cut-out of a tile at a place decided by ``seed``."""
    y, x = np.random.default_rng(seed).integers(_TILE, size=2)
    if y + size <= _TILE and x + size <= _TILE:
        return tile[y : y + size, x : x + size]
    rows, columns = (np.arange(start, start + size) % _TILE for start in (y, x))
    return tile[np.ix_(rows, columns)]


def ground_texture(ground: str, size: int, seed: int) -> np.ndarray:
    """Texture of the ground over the whole scene square, float32 (size, size), zero mean, in units of 0..255."""
    return _window(_ground_tile(ground), size, seed)


def grain(size: int, seed: int) -> np.ndarray:
    """Camera noise, float32 (size, size, 3), standard normal."""
    return _window(_grain_tile(), size, seed + 1)


def stripes(u: np.ndarray, v: np.ndarray, seed: int) -> np.ndarray:
    """Sinusoidal stripes in [-1, 1] at scene coordinates ``u``, ``v`` (normalised, broadcast together), float32."""
    angle, frequency, phase = np.random.default_rng(seed + 2).random(3)
    angle = np.pi * angle
    frequency = 2 * np.pi * (9.0 + 5.0 * frequency)
    along = u * np.float32(np.cos(angle) * frequency) + v * np.float32(np.sin(angle) * frequency)
    return np.sin(along + np.float32(2 * np.pi * phase), dtype=np.float32)
