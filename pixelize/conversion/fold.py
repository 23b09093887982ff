"""`fold`: a pixel deconvolution is linear, so it is one transposed convolution with a larger kernel."""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pixelize.algebra.polyphase import (
    Phase,
    PhaseFilter,
    add_filters,
    axis_phases,
    compose,
    last_axes,
    phase_filters,
)
from pixelize.errors import PixelizeError
from pixelize.inheritance.inherit import baked, effective_weight
from pixelize.inheritance.record import forget
from pixelize.layers.dependency_kernels import PixelDependencies
from pixelize.layers.functional import gate_mask
from pixelize.layers.gate import gate_of
from pixelize.layers.pixel_conv import PixelConvolution, iPixelConv
from pixelize.layers.pixel_dcl import PixelDCL, PixelDeconvolution, input_kernels_of, iPixelDCL
from pixelize.rewrites import become, state_of
from pixelize.rewrites.idioms.plain_conv import CONVOLUTIONS
from pixelize.rewrites.site import CONV_TRANSPOSE
from pixelize.rewrites.state.all_or_nothing import all_or_nothing
from pixelize.rewrites.state.change import Change
from pixelize.rewrites.state.precision import float64, full_precision, zeros64
from pixelize.running.models import copy_model

_OF_LAYERS = {
    "dependency_kernels", "dependency_kernel_size", "dependency_groups", "schedule", "plan", "anchor",
    "input_kernels", "input_stages", "input_gate", "output_period",
}  # fmt: skip
"""What a pixel deconvolution or convolution has beside what a plain one has."""


@all_or_nothing
def fold(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Every pixel deconvolution of ``model`` as one plain ``nn.ConvTransposeNd``, for runtimes that know
    nothing of this package.

    Exact on the interior. A pixel deconvolution counts its phases as zero outside their grid, a transposed
    convolution cannot: with a paired schedule and 3x3 dependency kernels, the outermost 2 low-resolution
    pixels (2 * stride pixels of the output) on each side differ; in general the sum of the half windows of
    the stages in a row. With zero dependency kernels nothing differs.

    A pixel convolution is an ``nn.ConvNd`` with zero dependency kernels alone: with others each phase of its
    output has taps of its own.

    Returns a copy, or ``model`` itself with ``inplace``. Raises PixelizeError if there is nothing to fold, or
    a pixel convolution that is none.
    """
    target = model if inplace else copy_model(model)
    layers = {name: m for name, m in target.named_modules() if isinstance(m, PixelDependencies)}
    if not layers:
        raise PixelizeError(f"this {type(model).__name__} has no PixelDCL or iPixelDCL to fold")
    with Change(target), full_precision():
        folded: list[tuple[Any, nn.Module]] = [
            (m, folded_layer(m) if isinstance(m, PixelDeconvolution) else _plain_convolution(name, m))  # type: ignore[arg-type]
            for name, m in layers.items()
        ]
        forget(target)
        for layer, plain in folded:
            hooks = {key: value for key, value in baked(layer).__dict__.items() if "hooks" in key}
            plain.__dict__.update(hooks)
            _take_over(plain, layer)
            become(layer, state_of(plain))
        return target


def folded_layer(layer: PixelDeconvolution) -> nn.Module:
    """One layer as a plain ``nn.ConvTransposeNd`` (computed in float64, returned in the layer's dtype)."""
    s, op = layer.stride, list(layer.output_padding)
    axes = range(len(s))
    filters = phase_composites(layer)
    size, padding = [0 for _ in axes], [0 for _ in axes]
    for i in axes:
        # o = s*j + a reads x[j + q] through tap t = a - s*q + padding
        taps = [
            phase[i] - s[i] * (f.origin[i] + n)
            for phase, f in filters.items()
            for n in range(f.kernel.shape[2 + i])
        ]
        padding[i] = max(-min(taps), 0)
        size[i] = max(taps) + padding[i] + 1
        # keep the output's size: (H-1) s - 2 padding + size + output_padding is what it was
        surplus = (size[i] - 2 * padding[i]) - (
            layer.dilation[i] * (layer.kernel_size[i] - 1) + 1 - 2 * layer.padding[i]
        )
        if surplus > 0:  # too large: a leading tap of zeros crops one pixel at each end and adds one
            padding[i] += surplus
            size[i] += surplus
        else:
            size[i] -= surplus
        if op[i] >= s[i]:  # which only a dilation allows: trailing taps of zeros do the same
            size[i], op[i] = size[i] + op[i], 0
    groups = gcd(layer.groups, layer.dependency_groups)
    c_in, c_out = layer.in_channels, layer.out_channels
    weight = zeros64((c_in, c_out // groups, *size), layer.weight.device)
    for phase, f in filters.items():
        kernel = _diagonal_blocks(f.kernel, groups).transpose(1, 2)  # groups, in, out, *window
        kernel = kernel.reshape(c_in, c_out // groups, *f.kernel.shape[2:])
        # the taps of consecutive inputs lie a stride apart, the last input's first
        window = []
        for i in axes:
            last = phase[i] - s[i] * (f.origin[i] + kernel.shape[2 + i] - 1) + padding[i]
            window.append(slice(last, last + s[i] * (kernel.shape[2 + i] - 1) + 1, s[i]))
        weight[last_axes(window)] += kernel.flip(*range(2, kernel.dim()))
    plain = CONV_TRANSPOSE[len(s)](
        c_in, c_out, tuple(size), s, tuple(padding), tuple(op), groups, layer.bias is not None, device="meta"
    )  # type: ignore[arg-type]
    like = layer.weight
    plain.weight = nn.Parameter(weight.to(like), requires_grad=like.requires_grad)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=layer.bias.requires_grad)
    return plain.train(layer.training)


def _take_over(plain: nn.Module, layer: _ConvNd) -> None:
    """Gives ``plain`` the class that the layer was inherited from, if that is somebody's own, and what it has
    beside a convolution's: its forward may do more than convolve.
    """
    made_of = next((vars(kind)["_combined"] for kind in type(layer).__mro__ if "_combined" in vars(kind)), ())
    own = [kind for kind in made_of[:2] if not issubclass(kind, PixelDependencies)]
    if not own:
        return
    for registry in ("_parameters", "_buffers", "_modules"):
        held = vars(baked(layer))[registry].items()
        vars(plain)[registry].update({k: v for k, v in held if k not in {"weight", "bias", *_OF_LAYERS}})
    held = vars(layer).items()
    vars(plain).update({k: v for k, v in held if k not in vars(plain).keys() | _OF_LAYERS})
    plain.__class__ = own[0]


def _plain_convolution(name: str, layer: PixelConvolution) -> nn.Module:
    if (
        not isinstance(layer, iPixelConv)
        or gate_of(layer) != 1.0
        or any(d.any() for d in layer.dependency_kernels)
    ):
        raise PixelizeError(
            f"{name}: each phase of this {type(layer).__name__}'s output has taps of its own, which no one "
            "convolution has: it cannot be folded. Zero its dependency kernels, or leave it as it is"
        )
    n = len(layer.kernel_size)
    plain: nn.Module = CONVOLUTIONS[n - 1](
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        layer.groups, layer.bias is not None, layer.padding_mode, device="meta",
    )  # fmt: skip
    trained = any(p.requires_grad for p in layer.parameters())
    plain.weight = nn.Parameter(effective_weight(layer).clone(), requires_grad=trained)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=layer.bias.requires_grad)
    return plain.train(layer.training)


def phase_composites(layer: PixelDeconvolution) -> dict[Phase, PhaseFilter]:
    """Each phase of a pixel deconvolution as one dense low-resolution filter of the input (float64)."""
    channels = layer.out_channels
    geometry = (layer.stride, layer.padding, layer.dilation)
    if isinstance(layer, PixelDCL):
        own = {}
        for phase, taps in input_kernels_of(layer).items():
            geometry_of_axes = zip(layer.kernel_size, *geometry, phase, strict=True)
            seen = [sorted(axis_phases(k, s, p, d)[a].taps) for k, s, p, d, a in geometry_of_axes]
            full = zeros64((*taps.shape[:2], *layer.kernel_size), taps.device)
            full[last_axes(torch.meshgrid(*map(torch.tensor, seen), indexing="ij"))] = float64(taps.detach())
            own[phase] = phase_filters(full, *geometry, layer.groups)[phase]
    else:
        assert isinstance(layer, iPixelDCL)
        weight = float64(effective_weight(layer))
        if layer.input_gate is not None:
            gate = layer.input_gate.to(weight)
            weight = weight * gate_mask(layer.kernel_size, *geometry, layer.anchor, gate)
        own = phase_filters(weight, *geometry, layer.groups)
    made = {layer.anchor: own[layer.anchor]}
    for stage, kernel in zip(layer.plan.stages, layer.dependency_kernels, strict=True):
        windows = stage.windows(float64(kernel.detach()), channels, layer.dependency_groups)
        for target in stage.targets:
            parts = [own[target]] if target in own else []
            parts += [compose(w, start, made[source]) for source, start, w in windows[target] if w.any()]
            made[target] = add_filters(parts) if parts else _nothing(made[layer.anchor])
    return made


def _nothing(like: PhaseFilter) -> PhaseFilter:
    n = len(like.origin)
    return PhaseFilter(like.kernel.new_zeros(*like.kernel.shape[:2], *(1,) * n), (0,) * n)


def _diagonal_blocks(kernel: Tensor, groups: int) -> Tensor:
    c_out, c_in, *window = kernel.shape
    blocks = kernel.reshape(groups, c_out // groups, groups, c_in // groups, *window)
    return blocks.diagonal(0, 0, 2).movedim(-1, 0)
