"""What a module costs: parameters, and multiply-adds of one run on given inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode


def count_parameters(module: nn.Module) -> int:
    """The number of weights, shared ones counted once; lazy ones, which have no shape yet, not at all."""
    return sum(p.numel() for p in module.parameters() if not is_lazy(p))


def multiply_adds(module: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of ``module(*inputs)``. Nothing is computed: it runs on the meta device."""
    state = {k: v.to("meta") for k, v in [*module.named_parameters(), *module.named_buffers()]}
    moved = tuple(x.to("meta") for x in inputs)
    with torch.no_grad(), _Counter() as counter:
        functional_call(module, state, moved)
    return counter.total


def measure_multiply_adds(
    sites: Mapping[str, nn.Module], run: Callable[[], Any]
) -> tuple[Any, dict[str, int]]:
    """Runs ``run()`` and counts the multiply-adds inside each of the named modules; returns its result and
    the counts.
    """
    counts = dict.fromkeys(sites, 0)
    started: list[int] = []
    counter = _Counter()

    def before(module: nn.Module, args: Any) -> None:
        started.append(counter.total)

    def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            counts[name] += counter.total - started.pop()

        return hook

    handles = []
    for name, site in sites.items():
        handles += [site.register_forward_pre_hook(before), site.register_forward_hook(after(name))]
    try:
        with counter:
            return run(), counts
    finally:
        for handle in handles:
            handle.remove()


class _Counter(TorchDispatchMode):
    """Sums the multiply-adds of the operators that run in this thread, by torch's own formulas.

    ``torch.utils.flop_counter.FlopCounterMode`` has the same formulas, but follows modules by hooks on every
    module of the process, other threads' included.
    """

    def __init__(self) -> None:
        super().__init__()
        from torch.utils.flop_counter import flop_registry  # imports Triton, where that is installed

        self.formulas, self.total = flop_registry, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if formula := self.formulas.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=output) // 2
        return output
