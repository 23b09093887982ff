"""Slow, obvious pixel deconvolution, one output pixel at a time, written from equations 1 to 3 and figure 4
of the paper.
"""

from __future__ import annotations

import numpy as np


def output_extent(size, k, s, p, d, op):
    """The size that nn.ConvTranspose2d documents."""
    return (size - 1) * s - 2 * p + d * (k - 1) + op + 1


def transposed(x, w, s, p, d, groups, size):
    """Transposed convolution, straight from o = s*i - p + d*t, on the output rows and columns 0 .. size -
    1.
    """
    c_in, per_group, kh, kw = w.shape
    out = np.zeros((per_group * groups, *size))
    for c in range(c_in):
        group = c // (c_in // groups)
        for i, j in np.ndindex(*x.shape[1:]):
            for t, u in np.ndindex(kh, kw):
                o = (s[0] * i - p[0] + d[0] * t, s[1] * j - p[1] + d[1] * u)
                if 0 <= o[0] < size[0] and 0 <= o[1] < size[1]:
                    out[group * per_group : (group + 1) * per_group, o[0], o[1]] += x[c, i, j] * w[c, :, t, u]
    return out


def order_of_phases(s, anchor):
    """F_1 at the anchor, F_2 half a period further in both directions, then the rest in raster order."""
    relative = [(0, 0), (s[0] // 2, s[1] // 2), *np.ndindex(*s)]
    absolute = [((a + anchor[0]) % s[0], (b + anchor[1]) % s[1]) for a, b in relative]
    return list(dict.fromkeys(absolute))


def window_start(k, targets, source):
    """Odd windows are centred on the pixel, even ones lean to the side where the targets lie on average."""
    if k % 2:
        return -(k // 2)
    return -(k // 2) + (1 if sum(t - source for t in targets) >= 0 else 0)


def pixel_deconvolution(
    x, w, kernels, bias, s, p, d, op, groups, dep_groups, dep_size, schedule, anchor, sees_input, k
):
    """Either layer on one image ``x`` (C_in, H, W). ``sees_input``: the phases whose input part is added, by
    phase: a number.
    """
    height, width = (output_extent(x.shape[1 + i], k[i], s[i], p[i], d[i], op[i]) for i in (0, 1))
    grid = (-(-height // s[0]), -(-width // s[1]))
    base = transposed(x, w, s, p, d, groups, (grid[0] * s[0], grid[1] * s[1]))
    channels = base.shape[0]
    phases = order_of_phases(s, anchor)
    own = {a: base[:, a[0] :: s[0], a[1] :: s[1]] * sees_input(a) for a in phases}
    made = {phases[0]: own[phases[0]]}
    if schedule == "sequential":
        steps = [(phases[i : i + 1], phases[:i]) for i in range(1, len(phases))]
    else:
        steps = [(phases[1:2], phases[:1]), (phases[2:], phases[:2])]
    steps = [step for step in steps if step[0]]
    assert len(steps) == len(kernels)
    for number, ((targets, sources), kernel) in enumerate(zip(steps, kernels, strict=True)):
        shared = schedule == "masked" and number == 1
        new = {t: own[t].copy() for t in targets}
        if shared:
            _masked_step(new, made, kernel, targets, sources, grid, dep_groups, dep_size)
        else:
            _dense_step(new, made, kernel, targets, sources, grid, channels, dep_groups, dep_size)
        made.update(new)
    full = np.zeros((channels, grid[0] * s[0], grid[1] * s[1]))
    for (a, b), f in made.items():
        full[:, a :: s[0], b :: s[1]] = f
    full = full[:, :height, :width]
    return full if bias is None else full + bias[:, None, None]


def _dense_step(new, made, kernel, targets, sources, grid, channels, dep_groups, size):
    width = channels // dep_groups
    for n, target in enumerate(targets):
        for m, source in enumerate(sources):
            start = [window_start(size[i], [t[i] for t in targets], source[i]) for i in (0, 1)]
            for j, i in np.ndindex(*grid):
                for y, x in np.ndindex(*size):
                    row, column = j + start[0] + y, i + start[1] + x
                    if not (0 <= row < grid[0] and 0 <= column < grid[1]):
                        continue
                    for g in range(dep_groups):
                        block = kernel[
                            (g * len(targets) + n) * width : (g * len(targets) + n + 1) * width,
                            m * width : (m + 1) * width, y, x,
                        ]  # fmt: skip
                        inside = slice(g * width, (g + 1) * width)
                        new[target][inside, j, i] += block @ made[source][inside, row, column]


def _masked_step(new, made, kernel, targets, sources, grid, dep_groups, size):
    """Figure 4: F_1 and F_2 dilated onto the full grid and added, then one kernel masked to the taps that can
    hit them.
    """
    channels = kernel.shape[0]
    dilated = np.zeros((channels, 2 * grid[0], 2 * grid[1]))
    for source in sources:
        dilated[:, source[0] :: 2, source[1] :: 2] = made[source]
    width = channels // dep_groups
    for target in targets:
        for j, i in np.ndindex(*grid):
            for y, x in np.ndindex(*size):
                dy, dx = y - size[0] // 2, x - size[1] // 2
                row, column = 2 * j + target[0] + dy, 2 * i + target[1] + dx
                if (dy + dx) % 2 == 0 or not (0 <= row < dilated.shape[1] and 0 <= column < dilated.shape[2]):
                    continue
                for g in range(dep_groups):
                    inside = slice(g * width, (g + 1) * width)
                    new[target][inside, j, i] += kernel[inside, :, y, x] @ dilated[inside, row, column]
