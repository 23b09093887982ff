"""What a module costs: parameters, and multiply-adds of one run on given inputs."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pixelize.algebra.polyphase import output_excess
from pixelize.layers.partial import input_kernels_of
from pixelize.layers.pixel_dcl import PixelDCL2d, _PixelDeconvolution2d


def count_parameters(module: nn.Module) -> int:
    """The number of weights, shared ones counted once; lazy ones, which have no shape yet, not at all."""
    return sum(p.numel() for p in module.parameters() if not is_lazy(p))


def multiply_adds(module: nn.Module, input_size: torch.Size, output_size: torch.Size) -> int:
    """Multiply-adds of one convolution or linear layer on an input of that size; 0 for anything else.

    Counts every tap at every position that it is applied to, borders included, as the arithmetic in DESIGN
    does.
    """
    if isinstance(module, _PixelDeconvolution2d):
        return _pixel_deconvolution(module, input_size)
    if isinstance(module, nn.ConvTranspose2d):
        pixels = prod(input_size) // module.in_channels
        return pixels * module.in_channels * module.out_channels // module.groups * prod(module.kernel_size)
    if isinstance(module, nn.Conv2d):
        pixels = prod(output_size) // module.out_channels
        return pixels * module.in_channels * module.out_channels // module.groups * prod(module.kernel_size)
    return prod(output_size) * module.in_features if isinstance(module, nn.Linear) else 0


def _pixel_deconvolution(layer: _PixelDeconvolution2d, input_size: torch.Size) -> int:
    *lead, height, width = input_size
    batch = prod(lead) // layer.in_channels
    grown = [
        output_excess(
            layer.kernel_size[i],
            layer.stride[i],
            layer.padding[i],
            layer.dilation[i],
            layer.output_padding[i],
        )[1]
        for i in (0, 1)
    ]
    grid = batch * (height + grown[0]) * (width + grown[1])
    if isinstance(layer, PixelDCL2d):
        seen, window = grid, sum(taps.shape[2] * taps.shape[3] for taps in input_kernels_of(layer).values())
    else:
        seen, window = batch * height * width, prod(layer.kernel_size)
    total = seen * layer.in_channels * layer.out_channels // layer.groups * window
    per_tap = layer.out_channels * layer.out_channels // layer.dependency_groups
    for stage in layer.plan.stages:
        total += grid * per_tap * sum(len(stage.features(target)) for target in stage.targets)
    return total


def measure_multiply_adds(sites: dict[str, nn.Module], run: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
    """Runs ``run()`` and counts the multiply-adds inside each of the named modules; returns its result and
    the counts.
    """
    counts = dict.fromkeys(sites, 0)
    handles = []
    for name, site in sites.items():
        for module in site.modules():
            if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                continue

            def hook(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                    counts[name] += multiply_adds(module, args[0].shape, output.shape)

            handles.append(module.register_forward_hook(hook))
    try:
        return run(), counts
    finally:
        for handle in handles:
            handle.remove()
