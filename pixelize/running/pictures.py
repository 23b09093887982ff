"""The pictures that a model gives."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pixelize.adapters import call, find
from pixelize.running.outputs import tensors


def pictures_of(output: Any) -> Tensor | None:
    """The picture in a model's output: its largest floating-point tensor (N, C, H, W), or (N, H, W) as one
    channel.

    None when there is no such tensor: logits of a classifier, a feature vector, waveforms of less than four
    channels.
    """
    found = [t[:, None] if t.dim() == 3 else t for t in tensors(output) if t.dim() in (3, 4)]
    found = [t for t in found if min(t.shape[-2:]) > 3]
    return max(found, key=lambda t: t.shape[-2] * t.shape[-1], default=None)


def run(model: nn.Module, inputs: Any) -> Any:
    """``model`` on one element of data, in the way of its library's adapter if there is one.

    What the model writes into its inputs (RCAN's ``x *= 255``) does not reach the data.
    """
    adapter = find(model)
    own = tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, inputs)
    return (adapter.run if adapter else call)(model, own)
