"""All up-sampling sites of a model, by the best capture that it allows."""

from __future__ import annotations

from typing import Any

from torch import nn

from pixelize.rewrites.modules import scan_conv_transpose
from pixelize.rewrites.site import Survey


def survey(model: nn.Module, example_inputs: Any = None) -> Survey:
    """Finds every up-sampling site of ``model`` and changes nothing.

    ``example_inputs``: a tensor, a tuple of positional or a dict of keyword arguments.
    """
    sites, skipped = scan_conv_transpose(model)
    return Survey(tuple(sites), tuple(skipped), "modules")
