"""Bilinear resize, then convolution: a transposed convolution of the small picture with its edge repeated.

Before::

    y = conv2d(interpolate(x, scale_factor=s, mode="bilinear"), W)

After::

    y = conv_transpose2d(pad(x, q, "replicate"), W', stride=s)

A bilinear resize (``align_corners=False``) by an integer is a depthwise transposed convolution of x with its
edge repeated, so W' is its triangular kernel convolved with the flipped W. Beyond the border the resized
picture then goes on as its edge does; a convolution that pads with zeros (or by reflection) sees something
else there, and what that differs by is convolved by itself: four strips as narrow as the padding.

The small picture is read off the resized one: where s is odd its pixels are among the larger one's, where s
is even they lie half a step before two of them on one straight line, x = (3 u_1 - u_2) / 2. Along an axis
that doubles a rounding error at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pixelize.rewrites.idioms.idiom import Idiom
from pixelize.rewrites.idioms.replacement import dressed
from pixelize.rewrites.idioms.resize_conv import canonical, edge_of, is_bilinear, match_mode, stated
from pixelize.rewrites.idioms.resize_conv_module import ResizeConv2d


def reduced(u: Tensor, factor: Sequence[int]) -> Tensor:
    """The picture (..., H, W) of which ``u`` (..., s H, s W) is the bilinear enlargement."""
    return _reduced_across(_reduced_across(u.transpose(-1, -2), factor[0]).transpose(-1, -2), factor[1])


def _reduced_across(u: Tensor, s: int) -> Tensor:
    if s % 2:
        return u[..., (s - 1) // 2 :: s]
    first, second = u[..., s // 2 :: s], u[..., s // 2 + 1 :: s]
    if s == 2:  # the last pixel's right neighbour would be itself
        second = torch.cat([second, first[..., -1:]], -1)
    return 1.5 * first - 0.5 * second


class BilinearConv2d(ResizeConv2d):
    """Takes the place of a convolution that reads a bilinearly resized image, alone or concatenated with
    others; see :class:`pixelize.rewrites.idioms.resize_conv_module.ResizeConv2d`.
    """

    def _reaches(self, input: Tensor, top: int, left: int) -> bool:
        return True

    def _up_sampled(self, resized: Tensor) -> Tensor:
        around = (self._around(0), self._around(1))
        q = [edge_of(around[i], self.factor[i]) for i in (0, 1)]
        small = reduced(resized, self.factor)
        y = self.layer(F.pad(small, (q[1], q[1], q[0], q[0]), mode="replicate"))
        if self.options["around"] == "replicate" or around == (0, 0) or not self._has_kernel():
            return y  # of a PixelDCL no weight tells what the convolution was: the edge goes on as it is
        return self._bordered(y, resized, around)

    def _bordered(self, y: Tensor, u: Tensor, around: tuple[int, int]) -> Tensor:
        """``y`` and what the convolution makes of the difference between what it saw beyond the border and
        the edge gone on."""
        (ph, pw), kernel = around, self._kernel()
        sh, sw = (self.dilation[i] * (self.kernel_size[i] - 1) for i in (0, 1))

        def convolved(beyond: Tensor) -> Tensor:
            return F.conv2d(beyond, kernel, None, 1, 0, self.dilation, self.groups)

        if not isinstance(u, fx.Proxy) and (u.shape[-2] < sh or u.shape[-1] < sw):  # the strips overlap
            return y + convolved(self._beyond(u, (pw, pw, ph, ph)))
        if ph:  # with the corners
            top = self._beyond(u[..., : ph + 1, :], (pw, pw, ph, 0))[..., :ph, :]
            bottom = self._beyond(u[..., -ph - 1 :, :], (pw, pw, 0, ph))[..., -ph:, :]
            above = y[..., :ph, :] + convolved(F.pad(top, (0, 0, 0, sh)))
            below = y[..., -ph:, :] + convolved(F.pad(bottom, (0, 0, sh, 0)))
            y = torch.cat([above, y[..., ph:-ph, :], below], -2)
        if pw:
            left = self._beyond(u[..., : pw + 1], (pw, 0, 0, 0))[..., :pw]
            right = self._beyond(u[..., -pw - 1 :], (0, pw, 0, 0))[..., -pw:]
            before = y[..., :pw] + convolved(F.pad(left, (0, sw, ph, ph)))
            after = y[..., -pw:] + convolved(F.pad(right, (sw, 0, ph, ph)))
            y = torch.cat([before, y[..., pw:-pw], after], -1)
        return y

    def _beyond(self, u: Tensor, pads: tuple[int, int, int, int]) -> Tensor:
        """What padding ``u`` as the convolution does and going on with its edge differ by: zero within
        ``u``."""
        mode = "constant" if self.options["around"] == "zeros" else self.options["around"]
        return F.pad(u, pads, mode=mode) - F.pad(u, pads, mode="replicate")


IDIOM = Idiom(
    "bilinear_conv",
    "resize_conv",
    partial(match_mode, True),
    lambda site, module: (
        site.kind != "pixel_shuffle" and isinstance(module, nn.Conv2d) and is_bilinear(site.options)
    ),
    stated,
    canonical,
    lambda site, module, layer: dressed(BilinearConv2d(layer, module, site.options), module),  # type: ignore[arg-type]
)
