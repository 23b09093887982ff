"""The scan of a model's modules for convolutions."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from pixelize.rewrites.finding.conv_transpose import qualified_names
from pixelize.rewrites.idioms.conv import site_of
from pixelize.rewrites.idioms.plain_conv import CONVOLUTIONS, has_one_tap, own_refusal
from pixelize.rewrites.idioms.replacement import ConvReplacement
from pixelize.rewrites.site import Site


def scan_conv(model: nn.Module) -> list[Site]:
    """Every convolution of more than one tap that does what ``nn.ConvNd`` does and was not converted yet."""
    names = qualified_names(model)
    return [
        site_of(module, names[id(module)])
        for module in model.modules()
        if isinstance(module, CONVOLUTIONS)
        and not isinstance(module, ConvReplacement)
        and not hasattr(module, "dependency_kernels")
        and not any(is_lazy(p) for p in module.parameters(recurse=False))
        and not has_one_tap(module)
        and own_refusal(module) is None
    ]
