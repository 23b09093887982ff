"""How unevenly an up-sampler's phases answer a constant input: the artifact, read from the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pixelize.algebra.polyphase import Phase, all_phases, phase_filters, ungrouped
from pixelize.algebra.schedule import Stage
from pixelize.errors import ArgumentError
from pixelize.inheritance.inherit import baked
from pixelize.layers.pixel_dcl import PixelDCL, input_kernels_of, iPixelDCL
from pixelize.measure.checkerboard import Frequency, frequencies
from pixelize.measure.decibels import LIMIT, decibels
from pixelize.rewrites.site import Geometry, TransposedConv, geometry_of


@dataclass(frozen=True, eq=False)
class PhaseResponse:
    """What :func:`phase_response` finds in one up-sampler.

    ``gains`` ``(s_h, s_w, C_out, C_in)``, float64 on the CPU: what each output phase makes of a constant
    input, away from the borders and without the bias. ``unevenness`` in dB; ``per_frequency`` its parts, in
    dB, at the artifact's frequencies (vertical, horizontal) in cycles per output pixel: as powers they add up
    to it.
    """

    stride: tuple[int, ...]
    gains: Tensor
    unevenness: float
    per_frequency: dict[Frequency, float]


def phase_response(
    layer: nn.ConvTranspose2d | TransposedConv, mean_input: Tensor | None = None
) -> PhaseResponse:
    """How unevenly the s_h * s_w phases of an up-sampler answer a constant input.

    Phase a answers the constant c (one number per input channel) with G_a c + bias, G_a (C_out, C_in) being
    the sum of its sub-kernel's taps. With the discrete Fourier transform over the phases, G^_f = mean over a
    of G_a exp(-2 pi i f.a), so that G^_0 is the mean phase,

        at frequency f:  10 log10( (|G^_f|^2 + |G^_-f|^2) / |G^_0|^2 )    (one term if f and -f are the same)
        unevenness:      10 log10( mean over a of |G_a - G^_0|^2 / |G^_0|^2 )

    |.| is the Frobenius norm: the expectation over white c. Phases that agree give -120 dB (the lower limit),
    phases drawn independently about 10 log10(s_h s_w - 1), 4.8 dB for stride 2. With ``mean_input`` |G| is
    the norm of G times it: the pattern that the layer lays over what it is really given. A trained layer may
    well be uneven for white inputs and even for its own.

    Dependency kernels of the package's own layers count, by their sums as well; any other subclass of
    ``nn.ConvTranspose2d`` is taken by its weight. Parametrizations and norm hooks are evaluated, and left
    alone.

    Args:
        layer: an ``nn.ConvTranspose2d``, ``iPixelDCL2d`` or ``PixelDCL2d``, or the canonical form of a site.
        mean_input: ``(C_in,)``, the mean of the layer's input for each channel, where it is known.

    Raises:
        ArgumentError: not such a layer, no stride, weights that are not there (lazy, on the meta device), or
            a ``mean_input`` of another shape.
    """
    if isinstance(layer, TransposedConv):
        geometry, gains = layer.geometry, _gains(layer.geometry, layer.weight)
    elif isinstance(layer, nn.ConvTranspose2d):
        geometry = geometry_of(layer)
        gains = _layer_gains(layer, geometry)
    else:
        raise ArgumentError(
            f"phase_response measures nn.ConvTranspose2d and its like, not {type(layer).__name__}; "
            "phase_responses(model) finds them in a model."
        )
    return _response(gains, geometry.stride, mean_input)


def phase_responses(
    model: nn.Module, mean_inputs: Mapping[str, Tensor] | None = None
) -> dict[str, PhaseResponse]:
    """:func:`phase_response` of every transposed convolution with a stride in ``model``, by qualified name.

    The most uneven come first. A layer leaves its pattern at multiples of 1/stride of *its own* output: of
    the finest pattern in the picture, that of period 2, only the last up-sampler can be the source.

    Args:
        model: any module.
        mean_inputs: the mean inputs that are known, by the same names.

    Raises:
        ArgumentError: as :func:`phase_response`, naming the layer.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ConvTranspose2d) and max(module.stride) > 1:
            try:
                found[name] = phase_response(module, (mean_inputs or {}).get(name))
            except ArgumentError as error:
                raise ArgumentError(f"{name or 'the model'}: {error}") from None
    return dict(sorted(found.items(), key=lambda item: -item[1].unevenness))


def _layer_gains(layer: nn.ConvTranspose2d, geometry: Geometry) -> dict[Phase, Tensor]:
    if any(isinstance(parameter, nn.UninitializedParameter) for parameter in layer.parameters()):
        raise ArgumentError("the layer is lazy and has no weights yet; call the model once.")
    layer = baked(layer)
    if isinstance(layer, PixelDCL):
        taps = input_kernels_of(layer).items()
        seen = {phase: _by_output(_float64(k).flatten(2).sum(2), geometry.groups) for phase, k in taps}
        nothing = torch.zeros_like(seen[layer.anchor])
        gains = {phase: seen.get(phase, nothing) for phase in all_phases(geometry.stride)}
    else:
        gains = _gains(geometry, layer.weight)
    if isinstance(layer, iPixelDCL) and layer.input_gate is not None:
        gate = float(layer.input_gate)
        gains = {phase: g if phase == layer.anchor else g * gate for phase, g in gains.items()}
    if isinstance(layer, iPixelDCL | PixelDCL):
        for stage, kernel in zip(layer.plan.stages, layer.dependency_kernels, strict=True):
            _add_dependencies(stage, _float64(kernel), gains, layer.dependency_groups)
    return gains


def _gains(geometry: Geometry, weight: Tensor) -> dict[Phase, Tensor]:
    filters = phase_filters(
        _float64(weight), geometry.stride, geometry.padding, geometry.dilation, geometry.groups
    )
    return {phase: f.kernel.sum((2, 3)) for phase, f in filters.items()}


def _by_output(sums: Tensor, groups: int) -> Tensor:
    """``(C_in, C_out/groups)`` as the dense ``(C_out, C_in)``."""
    grouped = sums.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return ungrouped(grouped[..., None, None], groups)[..., 0, 0]


def _add_dependencies(stage: Stage, kernel: Tensor, gains: dict[Phase, Tensor], groups: int) -> None:
    """F_t = F_t + sum_s D_ts * F_s for constant maps: each D counts by the sum of its taps."""
    made = {target: gains[target] for target in stage.targets}
    for term, part in zip(stage.terms, stage.taken_apart(kernel, groups), strict=True):
        block = part.flatten(2).sum(2).unflatten(0, (groups, -1))
        read = gains[term.source].unflatten(0, (groups, -1))
        made[term.target] = made[term.target] + (block @ read).flatten(0, 1)
    gains.update(made)


def _float64(weight: Tensor) -> Tensor:
    if weight.device.type == "meta":
        raise ArgumentError("the weights are on the meta device; load them first.")
    return weight.detach().cpu().double()


def _response(
    gains: dict[Phase, Tensor], stride: tuple[int, ...], mean_input: Tensor | None
) -> PhaseResponse:
    if max(stride) == 1:
        raise ArgumentError("the layer has stride 1: it does not up-sample and has one phase only.")
    table = torch.stack([gains[a, b] for a in range(stride[0]) for b in range(stride[1])])
    table = table.unflatten(0, stride)
    answer = table
    if mean_input is not None:
        if mean_input.shape != table.shape[-1:]:
            raise ArgumentError(
                f"mean_input has shape {tuple(mean_input.shape)}; the layer has {table.shape[-1]} channels."
            )
        answer = table @ _float64(mean_input)[:, None]
    spectrum = torch.fft.fft2(answer, dim=(0, 1), norm="forward").abs().square().sum((2, 3))  # (s_h, s_w)
    mean = float(spectrum[0, 0])
    per_frequency = {}
    for frequency in frequencies((stride[0], stride[1])):
        j, k = round(frequency[0] * stride[0]), round(frequency[1] * stride[1])
        alone = (j, k) == (-j % stride[0], -k % stride[1])
        per_frequency[frequency] = _decibels(float(spectrum[j, k]) * (1 if alone else 2), mean)
    uneven = float(spectrum.sum()) - mean
    return PhaseResponse(stride, table, _decibels(uneven, mean), per_frequency)


def _decibels(part: float, mean: float) -> float:
    """A layer without any response is even; one whose mean alone vanishes is as uneven as can be."""
    if mean:
        return decibels(part / mean)
    return LIMIT if part else -LIMIT
