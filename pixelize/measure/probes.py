"""Up-samplers watched while their model runs: in which order, on what mean input, how uneven for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from pixelize.errors import ArgumentError
from pixelize.measure.phase_response import phase_response
from pixelize.rewrites import Site, canonical
from pixelize.rewrites.state.evaluation import evaluation
from pixelize.rewrites.state.precision import float64


class LayerProbes:
    """The mean input of every up-sampler in a model's runs, and the order in which they run."""

    def __init__(self, model: nn.Module, sites: Sequence[Site]) -> None:
        self.model = model
        self.order: list[str] = []
        self.layers: dict[str, tuple[nn.Module, Any]] = {}
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        for site in sites:
            try:
                module = model.get_submodule(site.name)
            except AttributeError:  # a variant of another build
                continue
            if isinstance(module, nn.Linear):  # its channels come last: phases are not told of pictures
                continue
            inner = getattr(module, "layer", None)
            if isinstance(module, nn.ConvTranspose2d):
                self.layers[site.name] = (module, module)
            elif isinstance(inner, nn.ConvTranspose2d):
                self.layers[site.name] = (inner, inner)
            elif site.kind == "pixel_shuffle":
                self.layers[site.name] = (module, canonical(site, module))
            else:
                self.layers[site.name] = (
                    module,
                    None,
                )  # a nearest resize: every phase answers a constant alike

    def run(self, do: Callable[[], list[Any]]) -> list[Any]:
        """Runs ``do()`` in evaluation mode with the probes in place."""
        handles = [
            module.register_forward_pre_hook(self._hook(name)) for name, (module, _) in self.layers.items()
        ]
        try:
            with evaluation(self.model):
                return do()
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if name not in self.order:
                self.order.append(name)
            if args and isinstance(args[0], Tensor) and args[0].dim() == 4:
                x = float64(args[0].detach())
                self.sums[name] = self.sums.get(name, 0) + x.sum((0, 2, 3)).cpu()
                self.counts[name] = self.counts.get(name, 0) + x.numel() // x.shape[1]

        return hook

    def unevenness(self) -> dict[str, float]:
        """:func:`phase_response`'s figure for each layer that ran, in dB."""
        found = {}
        for name, (_, form) in self.layers.items():
            if name not in self.sums:
                continue
            if form is None:
                found[name] = -120.0
                continue
            try:
                found[name] = phase_response(form, self.sums[name] / self.counts[name]).unevenness
            except ArgumentError:  # a layer of a kind that has no such figure
                continue
        return found
