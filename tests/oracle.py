"""Slow, obvious pixel deconvolution and pixel convolution in any number of axes, one output pixel at a time,
written from equations 1 to 3, figure 4 and section 2.4 of the paper.
"""

from __future__ import annotations

import itertools

import numpy as np


def output_extent(size, k, s, p, d, op):
    """The size that nn.ConvTranspose2d documents."""
    return (size - 1) * s - 2 * p + d * (k - 1) + op + 1


def conv_extent(size, k, s, p, d):
    """The size that nn.Conv2d documents."""
    return (size + 2 * p - d * (k - 1) - 1) // s + 1


def inside(index, size):
    return all(0 <= i < m for i, m in zip(index, size, strict=True))


def transposed(x, w, s, p, d, groups, size):
    """Transposed convolution, straight from o = s*i - p + d*t, on the output positions 0 .. size - 1."""
    c_in, per_group, *kernel = w.shape
    out = np.zeros((per_group * groups, *size))
    for c in range(c_in):
        first = c // (c_in // groups) * per_group
        for i in np.ndindex(*x.shape[1:]):
            for t in np.ndindex(*kernel):
                o = tuple(s[a] * i[a] - p[a] + d[a] * t[a] for a in range(len(s)))
                if inside(o, size):
                    out[(slice(first, first + per_group), *o)] += x[(c, *i)] * w[(c, slice(None), *t)]
    return out


def convolved(x, w, c, p, d, groups, size):
    """Convolution, straight from o reads i = c*o - p + d*t, zero outside, on the output positions 0 .. size -
    1.
    """
    c_out, per_group, *kernel = w.shape
    out = np.zeros((c_out, *size))
    for k in range(c_out):
        first = k // (c_out // groups) * per_group
        for o in np.ndindex(*size):
            for t in np.ndindex(*kernel):
                i = tuple(c[a] * o[a] - p[a] + d[a] * t[a] for a in range(len(c)))
                if inside(i, x.shape[1:]):
                    out[(k, *o)] += w[(k, slice(None), *t)] @ x[(slice(first, first + per_group), *i)]
    return out


def order_of_steps(s, anchor):
    """F_1 at the anchor, F_2 half a period further along every axis, then the rest in raster order: at once
    in one and two dimensions, in three first those displaced along two axes or more, then along one.
    """
    origin, centre = (0,) * len(s), tuple(n // 2 for n in s)
    rest = [a for a in np.ndindex(*s) if a not in (origin, centre)]
    if sum(n > 1 for n in s) == 3:
        far = [a for a in rest if np.count_nonzero(a) > 1]
        later = [far, [a for a in rest if a not in far]]
    else:
        later = [rest]
    steps = [[origin], [centre] if centre != origin else [], *later]
    move = lambda a: tuple((i + j) % n for i, j, n in zip(a, anchor, s, strict=True))  # noqa: E731
    return [[move(a) for a in step] for step in steps if step]


def window_start(k, targets, source):
    """Odd windows are centred on the pixel, even ones lean to the side where the targets lie on average."""
    if k % 2:
        return -(k // 2)
    return -(k // 2) + (1 if sum(t - source for t in targets) >= 0 else 0)


def pixel_deconvolution(
    x, w, kernels, bias, s, p, d, op, groups, dep_groups, dep_size, schedule, anchor, sees_input, k
):
    """Either layer on one image ``x`` (C_in, *size). ``sees_input``: the phases whose input part is added, by
    phase: a number.
    """
    size = tuple(map(output_extent, x.shape[1:], k, s, p, d, op))
    grid = tuple(-(-m // n) for m, n in zip(size, s, strict=True))
    base = transposed(x, w, s, p, d, groups, tuple(g * n for g, n in zip(grid, s, strict=True)))
    return completed(base, kernels, bias, s, size, dep_groups, dep_size, schedule, anchor, sees_input)


def pixel_convolution(x, w, kernels, bias, c, p, d, groups, s, dep_groups, dep_size, schedule, gate):
    """Section 2.4 on one image ``x`` (C_in, *size), zero-padded, with period ``s``; ``gate``: how much of the
    input all phases but the first see.
    """
    size = tuple(map(conv_extent, x.shape[1:], w.shape[2:], c, p, d))
    grid = tuple(-(-m // n) for m, n in zip(size, s, strict=True))
    base = convolved(x, w, c, p, d, groups, tuple(g * n for g, n in zip(grid, s, strict=True)))
    first = (0,) * len(s)
    sees_input = lambda phase: 1.0 if phase == first else gate  # noqa: E731
    return completed(base, kernels, bias, s, size, dep_groups, dep_size, schedule, first, sees_input)


def completed(base, kernels, bias, s, size, dep_groups, dep_size, schedule, anchor, sees_input):
    """The stages and the interleaving, on what all phases see of the input."""
    at = lambda phase: (slice(None), *(slice(a, None, n) for a, n in zip(phase, s, strict=True)))  # noqa: E731
    steps = order_of_steps(s, anchor)
    own = {phase: base[at(phase)] * sees_input(phase) for step in steps for phase in step}
    if schedule == "sequential":
        steps = [[phase] for step in steps for phase in step]
    made = {steps[0][0]: own[steps[0][0]]}
    kernels = iter(kernels)
    for number, targets in enumerate(steps[1:], 1):
        new = {t: own[t].copy() for t in targets}
        if schedule == "near":
            for target in targets:
                _near_step(new, made, next(kernels), target, s, dep_groups)
        elif schedule == "masked" and number == 2:
            _masked_step(new, made, next(kernels), targets, dep_groups, dep_size)
        else:
            _dense_step(new, made, next(kernels), targets, dep_groups, dep_size)
        made.update(new)
    assert next(kernels, None) is None
    full = np.zeros_like(base)
    for phase, f in made.items():
        full[at(phase)] = f
    full = full[(slice(None), *map(slice, size))]
    return full if bias is None else full + bias.reshape(-1, *(1 for _ in s))


def _add(new, target, j, old, offset, block, groups, first):
    """Adds one tap at one pixel: ``block`` (C/groups, C/groups) of the group that starts at channel
    ``first``.
    """
    at = tuple(a + b for a, b in zip(j, offset, strict=True))
    if inside(at, old.shape[1:]):
        group = slice(first, first + old.shape[0] // groups)
        new[target][(group, *j)] += block @ old[(group, *at)]


def _dense_step(new, made, kernel, targets, groups, size):
    channels, *grid = next(iter(made.values())).shape
    width = channels // groups
    for (n, target), (m, source) in itertools.product(enumerate(targets), enumerate(made)):
        start = [window_start(k, [t[i] for t in targets], source[i]) for i, k in enumerate(size)]
        for j, tap, g in itertools.product(np.ndindex(*grid), np.ndindex(*size), range(groups)):
            first = (g * len(targets) + n) * width
            block = kernel[(slice(first, first + width), slice(m * width, (m + 1) * width), *tap)]
            offset = tuple(a + b for a, b in zip(start, tap, strict=True))
            _add(new, target, j, made[source], offset, block, groups, g * width)


def _masked_step(new, made, kernel, targets, groups, size):
    """Figure 4: F_1 and F_2 dilated onto the full grid and added, then one kernel masked to the taps that can
    hit them.
    """
    channels, height, width = next(iter(made.values())).shape
    dilated = np.zeros((channels, 2 * height, 2 * width))
    for source, f in made.items():
        dilated[:, source[0] :: 2, source[1] :: 2] = f
    per_group = channels // groups
    for target in targets:
        for j, i in np.ndindex(height, width):
            for y, x in np.ndindex(*size):
                dy, dx = y - size[0] // 2, x - size[1] // 2
                row, column = 2 * j + target[0] + dy, 2 * i + target[1] + dx
                if (dy + dx) % 2 == 0 or not inside((row, column), dilated.shape[1:]):
                    continue
                for g in range(groups):
                    group = slice(g * per_group, (g + 1) * per_group)
                    new[target][group, j, i] += kernel[group, :, y, x] @ dilated[group, row, column]


def _near_step(new, made, kernel, target, s, groups):
    """Of the phases before ``target`` those that are displaced from it along the fewest axes, and of their
    pixels the nearest to each side; the kernel's taps by source, then by offset.
    """
    displaced = {b: sum(i != j for i, j in zip(target, b, strict=True)) for b in made}
    sides = {}
    for number, source in enumerate(made):
        if displaced[source] > min(displaced.values()):
            continue
        for offset in itertools.product((-1, 0, 1), repeat=len(s)):
            gap = [b + n * q - a for a, b, n, q in zip(target, source, s, offset, strict=True)]
            if any(g and a == b for g, a, b in zip(gap, target, source, strict=True)):
                continue
            key = tuple(np.sign(gap))
            far = sum(g * g for g in gap)
            if key not in sides or far < sides[key][0]:
                sides[key] = (far, number, offset, source)
    read = sorted(entry[1:] for entry in sides.values())
    channels, *grid = new[target].shape
    width = channels // groups
    for tap, (_, offset, source) in enumerate(read):
        for j, g in itertools.product(np.ndindex(*grid), range(groups)):
            block = kernel[g * width : (g + 1) * width, :, tap]
            _add(new, target, j, made[source], offset, block, groups, g * width)
