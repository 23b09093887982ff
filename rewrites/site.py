"""What a survey finds: sites that up-sample, each stated as one canonical transposed convolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

SiteKind = Literal["conv_transpose", "resize_conv", "pixel_shuffle", "resize"]
SITE_KINDS: tuple[str, ...] = ("conv_transpose", "resize_conv", "pixel_shuffle", "resize")


@dataclass(frozen=True)
class Geometry:
    """A transposed convolution without its numbers: the constructor arguments of ``nn.ConvTranspose2d``."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    output_padding: tuple[int, int] = (0, 0)
    groups: int = 1
    dilation: tuple[int, int] = (1, 1)
    bias: bool = True


@dataclass(frozen=True, eq=False)
class TransposedConv:
    """The canonical form of a site: a geometry with its weight (C_in, C_out/groups, k_h, k_w) and bias
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


def geometry_of(module: nn.ConvTranspose2d) -> Geometry:
    """The geometry of a ``nn.ConvTranspose2d``."""

    def pair(value: Any) -> tuple[int, int]:
        return int(value[0]), int(value[1])

    return Geometry(
        module.in_channels,
        module.out_channels,
        pair(module.kernel_size),
        pair(module.stride),
        pair(module.padding),
        pair(module.output_padding),
        module.groups,
        pair(module.dilation),
        module.bias is not None,
    )
