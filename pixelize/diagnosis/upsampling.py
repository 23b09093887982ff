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
_RESIZES = {
    aten.upsample_nearest2d,
    aten._upsample_nearest_exact2d,
    aten.upsample_bilinear2d,
    aten.upsample_bicubic2d,
    aten._upsample_bilinear2d_aa,
    aten._upsample_bicubic2d_aa,
}
_VIEWS = {aten.view, aten._unsafe_view, aten.reshape}


@dataclass(frozen=True)
class UpSampler:
    """One place in a model that up-samples.

    ``name``: of the module that calls the operator, numbered where it calls several of a kind; of a pixel
    shuffle, of the convolution that it reads. ``kind``:
    "conv_transpose", "pixel_shuffle", "rearrange" (axes merged by a reshape, as einops does) or "resize".
    """

    name: str
    kind: str
    stride: tuple[int, int]


@dataclass(frozen=True)
class Call:
    """One run of an operator: run again, with other arguments if need be, by ``again(*args)``."""

    place: UpSampler
    args: tuple[Any, ...]
    output: Tensor
    again: Callable[..., Tensor]


class Watch(TorchDispatchMode):
    """Calls ``see`` for each up-sampling operator of this thread; what it returns takes the output's place.

    A dispatch mode sees operators wherever they are called from (modules, functions, scripted parts) and
    changes nothing for other threads.
    """

    def __init__(self, see: Callable[[Call], Tensor | None]) -> None:
        super().__init__()
        self.see = see
        self.convolved = (0, "")
        self.path: list[tuple[str, Counter[str]]] = [("", Counter())]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        found = _up_sampling(func._overloadpacket, args, output)
        name, counts = self.path[-1]
        if func._overloadpacket is aten.convolution:
            self.convolved = (output.data_ptr() if output.device.type != "meta" else 0, name)
        if found is None:
            return output
        if found[0] == "pixel_shuffle" and self.convolved[0] == args[0].data_ptr():
            name = self.convolved[1]  # the convolution whose channels are shuffled
        counts[found[0]] += 1
        number = f"#{counts[found[0]]}" if counts[found[0]] > 1 else ""
        place = UpSampler(f"{name}{number}", *found)
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


def _up_sampling(packet: Any, args: tuple[Any, ...], output: Any) -> tuple[str, tuple[int, int]] | None:
    """Kind and stride of an operator's run on pictures (N, C, H, W), None for any other."""
    if not isinstance(output, Tensor) or output.dim() != 4 or not output.is_floating_point():
        return None
    x = args[0]
    if packet is aten.convolution:
        return _strided("conv_transpose", args[3]) if args[6] else None
    if packet is aten.conv_transpose2d:
        return _strided("conv_transpose", args[3] if len(args) > 3 else (1, 1))
    if packet is aten.pixel_shuffle:
        return _strided("pixel_shuffle", (args[1], args[1]))
    if packet in _RESIZES:
        factors = [o / i for o, i in zip(output.shape[-2:], x.shape[-2:], strict=True)]
        whole = all(f == int(f) for f in factors)
        return _strided("resize", [int(f) for f in factors]) if whole else None
    if packet in _VIEWS and x.dim() == 6:
        n, c, h, p, w, q = x.shape
        return _strided("rearrange", (p, q)) if output.shape == (n, c, h * p, w * q) else None
    return None


def _strided(kind: str, stride: Any) -> tuple[str, tuple[int, int]] | None:
    down, across = stride if len(stride) == 2 else (stride[0], stride[0])
    return (kind, (int(down), int(across))) if max(down, across) > 1 else None
