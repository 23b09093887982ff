"""Teaching pixelize a model that it cannot find inputs for: an adapter of your own.

``pixelize.convert(model)`` sees a resize followed by a convolution only by running the model, so it needs
inputs that the model takes. For well-known libraries it makes them itself; for any other model it guesses
from the first layer, or takes ``example_inputs``. A package that ships models can spare its users that
argument with an adapter, a value, announced in its ``pyproject.toml``:

    [project.entry-points."pixelize.adapters"]
    my_library = "third_party_adapter:ADAPTER"

Run this file to see the same adapter registered by hand: ``python examples/third_party_adapter.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import pixelize
from pixelize.adapters import Adapter, find, register


class Inpainter(nn.Module):
    """Some library's model, whose two inputs nobody can guess: a picture and the mask of what is missing in
    it."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down = nn.Conv2d(4, width, 3, stride=2, padding=1)
        self.up = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, picture: Tensor, *, mask: Tensor) -> Tensor:
        """(N, 3, H, W) and (N, 1, H, W) to (N, 3, H, W)."""
        x = torch.relu(self.down(torch.cat([picture * (1 - mask), mask], 1)))
        x = nn.functional.interpolate(x, scale_factor=2)  # a resize ...
        return self.up(x)  # ... and a convolution: a transposed convolution in disguise


def example_inputs(model: nn.Module) -> dict[str, Tensor]:
    """What the model takes, made from the model alone: small, on its device and of its type."""
    like = next(model.parameters())
    return {
        "picture": torch.rand(1, 3, 32, 32, device=like.device, dtype=like.dtype),
        "mask": torch.zeros(1, 1, 32, 32, device=like.device, dtype=like.dtype),
    }


def run(model: nn.Module, inputs: Any) -> Tensor:
    """How the model runs on one element of calibration data: a picture alone, or both inputs."""
    if isinstance(inputs, Tensor):
        inputs = {"picture": inputs, "mask": torch.zeros_like(inputs[:, :1])}
    return model(**inputs)


ADAPTER = Adapter(
    name="my_library",
    detect=lambda model: isinstance(
        model, Inpainter
    ),  # a library would compare module names, and import nothing
    example_inputs=example_inputs,
    run=run,
)


def main() -> None:
    """Registers the adapter and shows what it makes visible."""
    register(ADAPTER)
    model = Inpainter()
    adapter = find(model)
    assert adapter is ADAPTER
    converted = pixelize.convert(model, example_inputs=adapter.example_inputs(model))
    print(pixelize.report(converted))


if __name__ == "__main__":
    main()
