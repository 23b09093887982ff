"""The pictures, waveforms or volumes that a model gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pixelize.adapters import call, find
from pixelize.running.outputs import tensors


def pictures_of(output: Any) -> Tensor | None:
    """The picture in a model's output: its largest floating-point tensor (N, C, H, W), or (N, H, W) as one
    channel.

    None when there is no such tensor: logits of a classifier, a feature vector, waveforms of less than four
    channels.
    """
    pictures = [t[:, None] if t.dim() == 3 else t for t in tensors(output) if t.dim() in (3, 4)]
    pictures = [t for t in pictures if min(t.shape[-2:]) > 3]
    return max(pictures, key=lambda t: t.shape[-2] * t.shape[-1], default=None)


class Made(NamedTuple):
    """What a model made of some inputs: 1 axis for waveforms, 2 for pictures, 3 for volumes."""

    axes: int
    picture: Tensor | None


def made_of(output: Any, axes: int, depths: Sequence[tuple[int, int]]) -> Made:
    """Tells pictures from waveforms and volumes in a model's output.

    - Waveforms: the last convolution has one axis, and no output is a picture (N, C, H, W).
    - Volumes: the last convolution has three axes, the model enlarges the first of these too, and the output
      (N, C, D, H, W) has 16 places along each. Others of three axes are films: frames are pictures.

    Args:
        output: the model's. axes: of the last convolution that was run, 2 where there was none. depths: along
        the first axis, before and after each convolution of three.
    """
    if axes == 1 and not any(t.dim() > 3 and min(t.shape[-2:]) > 1 for t in tensors(output)):
        return Made(1, picture_along(output, 1))
    volume = picture_along(output, 3) if axes == 3 else None
    if volume is not None and min(volume.shape[2:]) >= 16:
        along = [depth for passed in depths for depth in passed] + [volume.shape[2]]
        if any(after > 1.5 * before for before, after in pairwise(along)):
            return Made(3, volume)
    return Made(2, picture_along(output, 2))


def picture_along(output: Any, axes: int) -> Tensor | None:
    """The picture (N, C, *size) of so many axes in a model's output, None if there is none.

    Of waveforms (N, L) is one channel. For two axes, frames of a film (N, T, C, H, W) or (N, C, T, H, W) are
    channels.
    """
    if axes == 2:
        return _frames_of(output)
    pictures = [t for t in tensors(output) if t.dim() == axes + 2 or t.dim() == axes + 1 == 2]
    pictures = [t if t.dim() == axes + 2 else t[:, None] for t in pictures]
    pictures = [t for t in pictures if min(t.shape[2:]) > 1]
    return max(pictures, key=lambda t: math.prod(t.shape[2:]), default=None)


def _frames_of(output: Any) -> Tensor | None:
    films = [t for t in tensors(output) if t.dim() == 5 and min(t.shape[-2:]) > 1]
    largest = max(films, key=lambda t: t.shape[-2] * t.shape[-1], default=None)
    picture = pictures_of(output)
    if largest is None or (picture is not None and picture[0, 0].numel() >= largest[0, 0, 0].numel()):
        return picture
    return largest.flatten(1, 2)


def run(model: nn.Module, inputs: Any) -> Any:
    """``model`` on one element of data, in the way of its library's adapter if there is one.

    What the model writes into its inputs (RCAN's ``x *= 255``) does not reach the data.
    """
    adapter = find(model)
    own = tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, inputs)
    return (adapter.run if adapter else call)(model, own)
