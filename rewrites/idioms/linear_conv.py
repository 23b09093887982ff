"""Linear resize, then convolution: a transposed convolution of the small picture with its edge repeated.

Before::

    y = conv2d(interpolate(x, scale_factor=s, mode="bilinear"), W)

After::

    y = conv_transpose2d(pad(x, q, "replicate"), W', stride=s)

A linear resize (``align_corners=False``) by an integer is a depthwise transposed convolution of x with its
edge repeated, so W' is its triangular kernel convolved with the flipped W; along one axis (``"linear"``), two
(``"bilinear"``) or three (``"trilinear"``). Beyond the border the resized picture then goes on as its edge
does; a convolution that pads with zeros (or by reflection) sees something else there, and what that differs
by is convolved by itself: two strips for each axis, as narrow as the padding.

The small picture is read off the resized one: where s is odd its pixels are among the larger one's, where s
is even they lie half a step before two of them on one straight line, x = (3 u_1 - u_2) / 2. Along an axis
that doubles a rounding error at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from pixelize.rewrites.idioms.idiom import Idiom
from pixelize.rewrites.idioms.plain_conv import CONVOLUTIONS
from pixelize.rewrites.idioms.replacement import dressed
from pixelize.rewrites.idioms.resize_conv import canonical, edge_of, is_linear, match_mode, stated
from pixelize.rewrites.idioms.resize_conv_module import ResizeConv, along, around_all, cropped, pads_of


def reduced(u: Tensor, factor: Sequence[int]) -> Tensor:
    """The picture (..., H, W) of which ``u`` (..., s H, s W) is the linear enlargement."""
    for axis, s in enumerate(factor, -len(factor)):
        u = _reduced_across(u.transpose(axis, -1), s).transpose(axis, -1)
    return u


def _reduced_across(u: Tensor, s: int) -> Tensor:
    if s % 2:
        return u[..., (s - 1) // 2 :: s]
    first, second = u[..., s // 2 :: s], u[..., s // 2 + 1 :: s]
    if s == 2:  # the last pixel's right neighbour would be itself
        second = torch.cat([second, first[..., -1:]], -1)
    return 1.5 * first - 0.5 * second


class LinearConv(ResizeConv):
    """Takes the place of a convolution that reads a linearly resized image, alone or concatenated with
    others; see :class:`pixelize.rewrites.idioms.resize_conv_module.ResizeConv`.
    """

    def _reaches(self, input: Tensor) -> bool:
        return True

    def _completed(self, resized: Tensor) -> Tensor:
        n = len(self.factor)
        sizes = [(resized.shape[i - n] + s - 1) // s * s for i, s in enumerate(self.factor)]
        # by as many zeros at any size, which may be open
        return cropped(F.pad(resized, pads_of([(0, s - 1) for s in self.factor])), sizes)

    def _small(self, resized: Tensor) -> Tensor:
        return reduced(resized, self.factor)

    def _enlarged(self, whole: Tensor) -> Tensor:
        scale = tuple(map(float, self.factor))
        return F.interpolate(self._small(whole), scale_factor=scale, mode=self.options["mode"])  # type: ignore[arg-type]

    def _up_sampled(self, resized: Tensor) -> Tensor:
        around = self._around()
        q = [edge_of(a, s) for a, s in zip(around, self.factor, strict=True)]
        y = self.layer(F.pad(self._small(resized), around_all(q), mode="replicate"))
        if self.options["around"] == "replicate" or not any(around) or not self._has_kernel():
            return y  # of a PixelDCL no weight tells what the convolution was: the edge goes on as it is
        return self._bordered(y, resized, around)

    def _bordered(self, y: Tensor, u: Tensor, around: Sequence[int]) -> Tensor:
        """``y`` and what the convolution makes of the difference between what it saw beyond the border and
        the edge gone on."""
        n, kernel = len(around), self._kernel()
        span = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]

        def convolved(beyond: Tensor) -> Tensor:
            return self._convolve(beyond, kernel, None, 1, 0, self.dilation, self.groups)

        if not isinstance(u, fx.Proxy) and any(u.shape[i - n] < span[i] for i in range(n)):
            return y + convolved(self._beyond(u, around_all(around)))  # the strips overlap
        for axis, p in enumerate(around):
            if not p:
                continue
            # beyond the border along this axis, within it along those before, both along those after
            inside = [(w, w) if i < axis else (0, 0) for i, w in enumerate(around)]
            both = [(w, w) if i > axis else (0, 0) for i, w in enumerate(around)]
            both[axis] = (p, 0)
            first = self._beyond(u[along(axis, n, slice(None, p + 1))], pads_of(both))
            inside[axis] = (0, span[axis])
            before = convolved(F.pad(first[along(axis, n, slice(None, p))], pads_of(inside)))
            both[axis] = (0, p)
            last = self._beyond(u[along(axis, n, slice(-p - 1, None))], pads_of(both))
            inside[axis] = (span[axis], 0)
            after = convolved(F.pad(last[along(axis, n, slice(-p, None))], pads_of(inside)))
            y = torch.cat(
                [
                    y[along(axis, n, slice(None, p))] + before,
                    y[along(axis, n, slice(p, -p))],
                    y[along(axis, n, slice(-p, None))] + after,
                ],
                axis - n,
            )
        return y

    def _beyond(self, u: Tensor, pads: list[int]) -> Tensor:
        """What padding ``u`` as the convolution does and going on with its edge differ by: zero within
        ``u``."""
        mode = "constant" if self.options["around"] == "zeros" else self.options["around"]
        return F.pad(u, pads, mode=mode) - F.pad(u, pads, mode="replicate")


IDIOM = Idiom(
    "linear_conv",
    "resize_conv",
    partial(match_mode, True),
    lambda site, module: (
        site.kind != "pixel_shuffle" and isinstance(module, CONVOLUTIONS) and is_linear(site.options)
    ),
    stated,
    canonical,
    lambda site, module, layer: dressed(LinearConv(layer, module, site.options), module),  # type: ignore[arg-type]
)
