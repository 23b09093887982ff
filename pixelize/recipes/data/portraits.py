"""Simple faces drawn on the fly: the data of the vae and gan recipes where none is given."""

from __future__ import annotations

import numpy as np


def draw_portrait(index: int, size: int = 64, seed: int = 0) -> np.ndarray:
    """Portrait number ``index``: uint8 ``(size, size, 3)``.

    Skin, hair, eyes, brows, nose and mouth as soft-edged ellipses of random colour, shape and place, lit from
    a random side.
    """
    rng = np.random.default_rng([seed, index])
    y, x = (np.mgrid[0:size, 0:size] + 0.5) / size * 2 - 1
    x, y = x - rng.normal(0, 0.05), y - rng.normal(0, 0.05)
    turn = rng.normal(0, 0.08)  # the head turned: features move against its outline
    picture = np.ones((size, size, 3)) * rng.uniform(0.1, 0.9, 3)
    skin = np.array([0.95, 0.75, 0.62]) * rng.uniform(0.35, 1.05) + rng.normal(0, 0.02, 3)
    hair, lips = rng.uniform(0.05, 0.6, 3) * [1, 0.8, 0.6], skin * [0.85, 0.5, 0.5]
    width, height = rng.uniform(0.5, 0.68), rng.uniform(0.72, 0.88)
    edge = 3.0 / size

    def paint(cx: float, cy: float, rx: float, ry: float, colour: np.ndarray, above: float = 2.0) -> None:
        distance = (np.hypot((x - cx) / rx, (y - cy) / ry) - 1) * min(rx, ry)
        cover = (0.5 - distance / edge).clip(0, 1) * (y < above)
        picture[:] = picture + cover[..., None] * (colour - picture)

    paint(0, -0.18, width * 1.2, height * rng.uniform(0.95, 1.15), hair)
    paint(0, 0.9, 0.3, 0.5, skin * 0.85)
    paint(0, 0.05, width, height, skin)
    paint(0, -0.62, width * 1.05, rng.uniform(0.2, 0.38), hair, above=-0.3)
    apart, level, open_ = rng.uniform(0.2, 0.27), rng.uniform(-0.15, 0), rng.uniform(0.05, 0.09)
    iris = rng.uniform(0.05, 0.5, 3)
    for side in (-1, 1):
        cx = turn + side * apart
        paint(cx, level, 0.12, open_, np.full(3, 0.95))
        paint(cx + turn / 4, level, 0.055, 0.055, iris)
        paint(cx, level - 0.16, 0.14, 0.03, hair * 0.8)
    paint(turn * 1.3, 0.2, 0.07, 0.16, skin * 0.88)
    smile = rng.uniform(0.14, 0.28)
    paint(turn, 0.47, smile, rng.uniform(0.04, 0.1), lips)
    light = 1 + 0.25 * (np.cos(angle := rng.uniform(0, 2 * np.pi)) * x + np.sin(angle) * y)
    picture = picture * light[..., None] + rng.normal(0, 0.02, picture.shape)
    return (picture.clip(0, 1) * 255).round().astype(np.uint8)
