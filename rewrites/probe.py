"""Does a resize keep its factor at another input size? Asked by running the model there and looking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelize.rewrites.capture import arguments, undisturbed
from pixelize.rewrites.idioms import resized_as
from pixelize.rewrites.resize_conv_module import pick
from pixelize.rewrites.site import Site

RATIOS = (1.5, 2.0, 0.5)


def resized_inputs(example_inputs: Any, ratio: float) -> Any:
    """The same inputs with every picture, a floating-point tensor (N, C, H, W), resized by ``ratio``."""
    if isinstance(example_inputs, Tensor):
        if example_inputs.dim() != 4 or not example_inputs.is_floating_point():
            return example_inputs
        size = [max(1, round(d * ratio)) for d in example_inputs.shape[-2:]]
        return F.interpolate(example_inputs, size, mode="nearest")
    if isinstance(example_inputs, Mapping):
        return {k: resized_inputs(v, ratio) for k, v in example_inputs.items()}
    if isinstance(example_inputs, tuple | list):
        return tuple(resized_inputs(v, ratio) for v in example_inputs)
    return example_inputs


def factors_kept(model: nn.Module, sites: Sequence[Site], example_inputs: Any) -> dict[str, bool] | None:
    """For each resize-convolution, whether its input is resized by the same factor at another size too; None
    if no other size runs."""
    for ratio in RATIOS:
        kept: dict[str, bool] = {}
        handles = [
            model.get_submodule(site.name).register_forward_pre_hook(_look(site, kept)) for site in sites
        ]
        args, kwargs = arguments(resized_inputs(example_inputs, ratio))
        try:
            with undisturbed(model):
                model(*args, **kwargs)
            return kept
        except Exception:  # a size that this model does not take
            continue
        finally:
            for handle in handles:
                handle.remove()
    return None


def _look(site: Site, kept: dict[str, bool]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        x = pick(args[0], site.options)
        with torch.no_grad():
            kept[site.name] = kept.get(site.name, True) and resized_as(x, site.options)

    return hook
