"""Scenes of textured shapes with their masks, drawn on the fly: the segmentation recipe's data where none is
given.
"""

from __future__ import annotations

import numpy as np

SCENE_CLASSES = ("ground", "disc", "box", "triangle", "ring", "cross")


def draw_scene(index: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scene number ``index``: uint8 picture ``(size, size, 3)`` and uint8 mask ``(size, size)`` of
    :data:`SCENE_CLASSES`.

    Three to six shapes at random places, sizes and angles cover each other. Shapes and ground have stripes of
    random colour, period and direction, so that colour alone tells no class, and noise lies over all.
    """
    rng = np.random.default_rng([seed, index])
    y, x = np.mgrid[0:size, 0:size] / size
    picture = _texture(rng, x, y)
    mask = np.zeros((size, size), np.uint8)
    for _ in range(rng.integers(3, 7)):
        kind = int(rng.integers(1, len(SCENE_CLASSES)))
        scale, angle = rng.uniform(0.12, 0.3), rng.uniform(0, 2 * np.pi)
        dx, dy = x - rng.uniform(0.1, 0.9), y - rng.uniform(0.1, 0.9)
        u = (np.cos(angle) * dx + np.sin(angle) * dy) / scale
        v = (np.cos(angle) * dy - np.sin(angle) * dx) / scale
        inside = _inside(SCENE_CLASSES[kind], u, v)
        picture[inside] = _texture(rng, u, v)[inside]
        mask[inside] = kind
    picture += rng.normal(0, 0.04, picture.shape)
    return (picture.clip(0, 1) * 255).round().astype(np.uint8), mask


def _texture(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Stripes across the plane (u, v): ``(H, W, 3)`` in [0, 1]."""
    light, dark = rng.uniform(0.1, 1, 3), rng.uniform(0, 0.9, 3)
    angle, cycles = rng.uniform(0, np.pi), rng.uniform(0.5, 4)
    wave = np.sin(2 * np.pi * cycles * (np.cos(angle) * u + np.sin(angle) * v) + rng.uniform(0, 6.3))
    share = (0.5 + 0.4 * wave)[..., None]
    return share * light + (1 - share) * dark


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    r, a, b = np.hypot(u, v), np.abs(u), np.abs(v)
    if shape == "disc":
        return r < 0.8
    if shape == "box":
        return (a < 0.9) & (b < 0.6)
    if shape == "triangle":
        return (v > -0.6) & (v < 0.9 - 1.7 * a)
    if shape == "ring":
        return (r > 0.55) & (r < 1)
    return (np.minimum(a, b) < 0.25) & (np.maximum(a, b) < 1)  # cross
