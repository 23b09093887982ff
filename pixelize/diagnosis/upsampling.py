"""Every operator of a running model that up-samples, seen where it runs, and its output exchanged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pixelize.rewrites.state.modules import modules_of

aten = torch.ops.aten
_TRANSPOSED = {aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d}
_RESIZES = {
    aten.upsample_nearest1d,
    aten.upsample_nearest2d,
    aten.upsample_nearest3d,
    aten._upsample_nearest_exact1d,
    aten._upsample_nearest_exact2d,
    aten._upsample_nearest_exact3d,
    aten.upsample_linear1d,
    aten.upsample_trilinear3d,
    aten.upsample_bilinear2d,
    aten.upsample_bicubic2d,
    aten._upsample_bilinear2d_aa,
    aten._upsample_bicubic2d_aa,
}
_VIEWS = {aten.view, aten._unsafe_view, aten.reshape}
MOST_PHASES = 16
"""Of a reshape that makes one axis of two: attention does the same to its few heads of many features each."""


@dataclass(frozen=True)
class UpSampler:
    """One place in a model that up-samples.

    ``name``: of the module that calls the operator, numbered where it calls several of a kind; of a pixel
    shuffle, of the convolution that it reads. ``kind``:
    "conv_transpose", "pixel_shuffle", "rearrange" (axes merged by a reshape, as einops does) or "resize".
    ``stride``: along one axis (waveforms), two or three (volumes).
    """

    name: str
    kind: str
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One run of an operator: run again, with other arguments if need be, by ``again(*args)``. A transposed
    convolution has the arguments of ``aten.convolution``, whichever operator was called."""

    place: UpSampler
    args: tuple[Any, ...]
    output: Tensor
    again: Callable[..., Tensor]


class Watch(TorchDispatchMode):
    """Calls ``see`` for each up-sampling operator of this thread; what it returns takes the output's place.

    A dispatch mode sees operators wherever they are called from (modules, functions, scripted parts) and
    changes nothing for other threads. ``axes``: of the last convolution, 2 before there was one; ``depths``:
    along the first of three axes, before and after each.
    """

    def __init__(self, see: Callable[[Call], Tensor | None]) -> None:
        super().__init__()
        self.see = see
        self.convolved = (0, "")
        self.axes, self.depths = 2, list[tuple[int, int]]()
        self.path: list[tuple[str, Counter[str]]] = [("", Counter())]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func._overloadpacket in _TRANSPOSED:
            func, args, kwargs = aten.convolution.default, _as_convolution(*args, **kwargs), {}
        made = _up_sampling(func._overloadpacket, args, output)
        name, counts = self.path[-1]
        if func._overloadpacket is aten.convolution:
            self.axes = output.dim() - 2
            self.depths += [(args[0].shape[2], output.shape[2])] if self.axes == 3 else []
            self.convolved = (output.data_ptr() if output.device.type != "meta" else 0, name)
        if made is None:
            return output
        if made[0] == "pixel_shuffle" and self.convolved[0] == args[0].data_ptr():
            name = self.convolved[1]  # the convolution whose channels are shuffled
        counts[made[0]] += 1
        number = f"#{counts[made[0]]}" if counts[made[0]] > 1 else ""
        place = UpSampler(f"{name}{number}", *made)
        changed = self.see(Call(place, args, output, lambda *new: func(*new, **kwargs)))
        return output if changed is None else changed

    @contextmanager
    def within(self, model: nn.Module) -> Iterator[None]:
        """In this, the mode is on and knows the modules of ``model`` by name; hooks are gone afterwards."""
        names = {id(module): name for name, module in model.named_modules()}
        handles = []
        for module in modules_of(model):
            name = names.get(id(module), "")
            enter = lambda m, args, name=name: self.path.append((name, Counter()))  # noqa: E731
            leave = lambda m, args, output: self.path.pop() and None  # noqa: E731
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()


def _as_convolution(
    x: Tensor, weight: Tensor, bias: Any = None, stride: Any = (1,), padding: Any = (0,),
    output_padding: Any = (0,), groups: int = 1, dilation: Any = (1,),
) -> tuple[Any, ...]:  # fmt: skip
    """The arguments of a transposed convolution as ``aten.convolution`` has them."""
    return x, weight, bias, stride, padding, dilation, True, output_padding, groups


def _up_sampling(packet: Any, args: tuple[Any, ...], output: Any) -> tuple[str, tuple[int, ...]] | None:
    """Kind and stride of an operator's run on what has one to three axes beside samples and channels, None
    for any other."""
    if not isinstance(output, Tensor) or output.dim() not in (3, 4, 5) or not output.is_floating_point():
        return None
    x, axes = args[0], output.dim() - 2
    if packet is aten.convolution:
        return _strided("conv_transpose", args[3], axes) if args[6] else None
    if packet is aten.pixel_shuffle:
        return _strided("pixel_shuffle", (args[1], args[1]), axes)
    if packet in _RESIZES:
        factors = [o / i for o, i in zip(output.shape[2:], x.shape[2:], strict=True)]
        whole = all(f == int(f) for f in factors)
        return _strided("resize", [int(f) for f in factors], axes) if whole else None
    if packet in _VIEWS and x.dim() == 2 + 2 * axes:
        counts, phases = x.shape[2::2], x.shape[3::2]
        if axes == 1 and not phases[0] <= min(MOST_PHASES, counts[0] / 4):
            return None
        merged = tuple(n * s for n, s in zip(counts, phases, strict=True))
        return _strided("rearrange", phases, axes) if output.shape == (*x.shape[:2], *merged) else None
    return None


def _strided(kind: str, stride: Any, axes: int) -> tuple[str, tuple[int, ...]] | None:
    along = tuple(int(s) for s in (stride if len(stride) == axes else [stride[0]] * axes))
    return (kind, along) if max(along) > 1 else None
