"""What a caller asks of `convert`, checked before anything is looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pixelize.errors import ArgumentError
from pixelize.inheritance.inherit import LAYERS, Design
from pixelize.rewrites import SITE_KINDS, Convolutions, Site

DEFAULT_SITES = ("conv_transpose", "resize_conv", "pixel_shuffle")
AFTER_UPSAMPLING = "conv_after_upsampling"
"""Of the convolutions, those that read what was up-sampled."""
INITS = ("inherit", "calibrate", "random")
Selection = str | Sequence[str] | Callable[[Site], bool]


@dataclass(frozen=True)
class Request:
    """What is wanted: the arguments of :func:`pixelize.convert` apart from the model and the data."""

    layer: str
    init: str
    design: Design
    sites: tuple[str, ...]
    include: Selection = "*"
    exclude: Selection = ()
    tolerance: float = 0.01

    @property
    def exact(self) -> bool:
        """Whether the converted model is to compute what the model computed before."""
        return self.layer in ("ipixeldcl", "dcl") and self.init == "inherit"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of sites as a survey names them."""
        return tuple("conv" if name == AFTER_UPSAMPLING else name for name in self.sites)

    @property
    def convolutions(self) -> Convolutions:
        """Which of the convolutions that up-sample nothing are to be found."""
        if "conv" in self.sites:
            return "all"
        return "after_upsampling" if AFTER_UPSAMPLING in self.sites else None

    @property
    def first_layer(self) -> str:
        """What every site becomes at first: ``"auto"`` chooses from an exact start."""
        return "ipixeldcl" if self.layer == "auto" else self.layer

    @property
    def first_init(self) -> str:
        """How layers start: ``"calibrate"`` fits what was inherited."""
        return "inherit" if self.init == "calibrate" else self.init


def check_request(request: Request, data: Any) -> None:
    """Raises ArgumentError if the arguments mean nothing, or not together."""
    layer, init, sites = request.layer, request.init, request.sites
    layers = (*LAYERS, "auto", "dcl")
    if layer not in layers:
        raise ArgumentError(f"layer is {layer!r}; choose one of {', '.join(map(repr, layers))}")
    if init not in INITS:
        raise ArgumentError(f"init is {init!r}; choose one of {', '.join(map(repr, INITS))}")
    names = (*SITE_KINDS, AFTER_UPSAMPLING)
    unknown = [s for s in sites if s not in names]
    if unknown:
        raise ArgumentError(f"sites has {unknown[0]!r}; choose from {', '.join(map(repr, names))}")
    if "conv" in request.kinds and (layer, init) not in (("ipixeldcl", "inherit"), ("pixeldcl", "calibrate")):
        asked = sites[request.kinds.index("conv")]
        raise ArgumentError(
            f"sites has {asked!r}: an iPixelConv takes a convolution's place as it is, by layer='ipixeldcl' "
            "and init='inherit'; a PixelConv has to be fitted, by layer='pixeldcl', init='calibrate' and "
            f"data. Not {layer!r} and {init!r}: convert the other sites by a call of their own"
        )
    if init == "calibrate" and data is None:
        raise ArgumentError(
            "init='calibrate' needs data: an iterable of inputs (a tensor, tuple or dict each)"
        )
    if layer == "auto" and data is None:
        raise ArgumentError(
            "layer='auto' needs data to measure on: an iterable of inputs (a tensor, tuple or dict each)"
        )
    if layer == "auto" and init != "inherit":
        raise ArgumentError(
            f"layer='auto' fits what it chooses: there is nothing for init={init!r} to do; leave it out"
        )
    if layer != "auto" and init != "calibrate" and data is not None:
        raise ArgumentError(f"data is not used with init={init!r}; leave it out, or pass init='calibrate'")
    if layer == "dcl" and init != "inherit":
        raise ArgumentError(f"layer='dcl' is exact: there is nothing for init={init!r} to do; leave it out")


def site_kinds(sites: Sequence[str]) -> tuple[str, ...]:
    """``sites`` as a tuple; a single string, whose letters would be taken for kinds, is refused."""
    if isinstance(sites, str):
        raise ArgumentError(f"sites is the string {sites!r}; pass a tuple such as ({sites!r},)")
    return tuple(sites)
