"""What a survey finds: sites that up-sample, each stated as one canonical transposed convolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

SiteKind = Literal["conv_transpose", "resize_conv", "pixel_shuffle", "resize", "conv"]
SITE_KINDS: tuple[str, ...] = ("conv_transpose", "resize_conv", "pixel_shuffle", "resize", "conv")
Convolutions = Literal["all", "after_upsampling"] | None
"""Which of the convolutions that up-sample nothing a survey lists."""
Size = tuple[int, ...]
"""One number for each axis."""
CONV_TRANSPOSE: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
"""torch's layers, by the number of axes."""


@dataclass(frozen=True)
class Geometry:
    """A transposed convolution without its numbers: the constructor arguments of ``nn.ConvTranspose1d``,
    ``2d`` or ``3d``, with one number for each axis. Of a site of kind ``"conv"`` those of ``nn.Conv1d`` ..
    """

    in_channels: int
    out_channels: int
    kernel_size: Size
    stride: Size
    padding: Size = ()  # as the next ones: what torch takes for granted
    output_padding: Size = ()
    groups: int = 1
    dilation: Size = ()
    bias: bool = True

    def __post_init__(self) -> None:
        for name, value in (("padding", 0), ("output_padding", 0), ("dilation", 1)):
            if not getattr(self, name):
                object.__setattr__(self, name, (value,) * len(self.stride))


@dataclass(frozen=True, eq=False)
class TransposedConv:
    """The canonical form of a site: a geometry with its weight (C_in, C_out/groups, *kernel) and bias
    (C_out,)."""

    geometry: Geometry
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Site:
    """One up-sampler of a model.

    ``name`` is the qualified name of the module that a conversion replaces and ``names`` all names that the
    same module goes by; ``options`` is what the kind needs to know beside the module (plain data that JSON
    can hold).
    """

    name: str
    names: tuple[str, ...]
    kind: SiteKind
    type: str
    geometry: Geometry
    options: Mapping[str, Any] = field(default_factory=dict)

    def seen_as(self, name: str) -> Site:
        """The site in a model in which its module is called ``name``: the one that it was found in may be a
        part of it.
        """
        above = next((name.removesuffix(f".{n}") for n in self.names if name.endswith(f".{n}")), "")
        if name in self.names or not (above or self.name == ""):
            return self
        above = above or name  # the part is the site's module itself

        def moved(path: str) -> str:
            return f"{above}.{path}" if path else above

        options = dict(self.options)
        for key in ("owner", "graph"):
            if key in options:
                options[key] = moved(options[key])
        if "watch" in options:
            options["watch"] = [moved(path) for path in options["watch"]]
        return replace(self, name=name, names=tuple(moved(n) for n in self.names), options=options)


@dataclass(frozen=True)
class Skipped:
    """Something that up-samples, or looks as if it did, and cannot be converted: where, what, and why."""

    name: str
    kind: str
    type: str
    reason: str


@dataclass(frozen=True)
class Survey:
    """All that was found in a model: sites in the order of execution (or of registration), and what was left
    out.

    ``capture`` names the way the model was seen, ``notes`` what could not be seen and why.
    """

    sites: tuple[Site, ...]
    skipped: tuple[Skipped, ...]
    capture: str
    notes: tuple[str, ...] = ()


def geometry_of(module: _ConvTransposeNd) -> Geometry:
    """The geometry of a transposed convolution."""

    def whole(value: Any) -> Size:
        return tuple(map(int, value))

    return Geometry(
        module.in_channels,
        module.out_channels,
        whole(module.kernel_size),
        whole(module.stride),
        whole(module.padding),
        whole(module.output_padding),
        module.groups,
        whole(module.dilation),
        module.bias is not None,
    )
