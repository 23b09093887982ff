"""What stands in for a convolution: a module around the layer that makes its up-sampled part."""

from __future__ import annotations

from torch import Tensor, nn


class StandIn(nn.Module):
    """Takes the place of a convolution; ``layer`` does its up-sampling."""

    layer: nn.Module

    @property
    def weight(self) -> Tensor:
        """The layer's weight, for code that asks a convolution for its device or type."""
        return self.layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias."""
        return self.layer.bias  # type: ignore[return-value]
