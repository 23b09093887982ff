"""The module that takes a site's place: its canonical form, inherited by a layer, in its idiom's
replacement.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pixelize.errors import ConversionError
from pixelize.inheritance.inherit import (
    CONV_LAYERS,
    LAYERS,
    Design,
    baked,
    effective_weight,
    inherit,
    inherit_convolution,
)
from pixelize.inheritance.prior_fit import InputPrior
from pixelize.rewrites import Site, TransposedConv, canonical, replacement
from pixelize.rewrites.site import CONV_TRANSPOSE
from pixelize.running.outputs import share_not_finite


def build_layer(
    site: Site, module: nn.Module, layer: str, design: Design, init: str, prior: InputPrior | None = None
) -> tuple[nn.Module, float | None, str | None]:
    """What takes the place of ``module``, the expected relative error of its layer, and a note; ``module`` is
    not changed.

    ``prior``: what is known of its input, for ``init="inherit"`` of a PixelDCL.

    Raises ConversionError if ``init="inherit"`` and its weight holds NaN or infinity.
    """
    note: str | None = None
    groups = site.geometry.out_channels if design.groups == -1 else design.groups
    design = replace(design, groups=groups)
    if site.kind == "conv":
        assert isinstance(module, _ConvNd)
        _check_finite(site, module, init)
        if layer == "dcl":
            return module, 0.0, None
        exact = 0.0 if layer == "ipixeldcl" else None
        return inherit_convolution(module, layer, design, site.options["period"]), exact, None
    if site.kind == "conv_transpose":
        assert isinstance(module, _ConvTransposeNd)
        source = module
    else:
        if isinstance(module, _ConvNd) and (plain := baked(module)) is not module:
            module, note = plain, "its norm or parametrization was worked into the weight"
        source = _plain(canonical(site, module), module)
    _check_finite(site, source, init)
    error: float | None = 0.0
    if layer == "dcl":
        new: nn.Module = source
    else:
        new, error, told = inherit(source, layer, design, init, prior)
        note = note or told
    if site.kind != "conv_transpose":
        new = replacement(site, module, new)
        new.train(module.training)
        for key, value in module.__dict__.items():
            if (
                key.endswith("hooks")
                or key.endswith("hooks_with_kwargs")
                or key.endswith("hooks_always_called")
            ):
                new.__dict__[key] = value
    return new, error, note


def _check_finite(site: Site, source: _ConvNd, init: str) -> None:
    """Of a NaN among the taps every layer that inherits them makes something else."""
    weight = effective_weight(source) if init == "inherit" else None
    if weight is not None and not weight.is_meta and (share := share_not_finite(weight)):
        raise ConversionError(
            f"{site.name or 'the model itself'}: {100 * share:.3g} % of its weight's values are NaN or "
            "infinite, which no other layer can inherit: the checkpoint is damaged or its training diverged; "
            f"exclude={site.name!r} leaves it as it is"
        )


def _plain(form: TransposedConv, module: nn.Module) -> _ConvTransposeNd:
    g = form.geometry
    plain: _ConvTransposeNd = CONV_TRANSPOSE[len(g.stride)](
        g.in_channels, g.out_channels, g.kernel_size, g.stride, g.padding, g.output_padding, g.groups, g.bias,
        g.dilation,
        device="meta",
    )  # fmt: skip
    plain.weight = nn.Parameter(form.weight, requires_grad=_is_trained(module, "weight"))
    if form.bias is not None:
        plain.bias = nn.Parameter(form.bias, requires_grad=_is_trained(module, "bias"))
    return plain.train(module.training)


def _is_trained(module: nn.Module, name: str) -> bool:
    value = getattr(module, name, None)  # a resize has no weight of its own
    return isinstance(value, Tensor) and value.requires_grad


def layer_name(layer: str, n: int, kind: str = "conv_transpose") -> str:
    """The class that a ``layer`` argument stands for, in ``n`` dimensions, at a site of that kind."""
    if kind == "conv":
        return CONV_LAYERS[layer][n].__name__
    return LAYERS[layer][n].__name__ if layer in LAYERS else f"ConvTranspose{n}d"
