"""What ``torch.compile`` and ``torch.export(strict=True)`` have written down, asked while they capture.

Dynamo shows a torch-function mode most of what a forward does, but not ``u[...] = v``, nor attributes such as
``u.data`` and ``u.real`` through which ``u`` can be written to as well. Its graph has them all.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.comptime import comptime

_found = threading.local()


def writes_to(value: Any) -> int:
    """How often the memory of ``value`` has been written to up to here, through whatever tensor: a number
    that grows with each write; -1 if this graph receives ``value``, as it does after a break. To be called in
    code that dynamo captures."""
    comptime(_count)
    return _counted()


@torch._dynamo.assume_constant_result
def _counted() -> int:
    return _found.writes


def _count(context: Any) -> None:
    fake = _unwrapped(context.get_local("value").as_fake())
    memory = _memory(fake)

    def shares(node: Any) -> bool:
        held = node.meta.get("example_value") if isinstance(node, fx.Node) else None
        return isinstance(held, Tensor) and _memory(_unwrapped(held)) == memory

    writes, made = int(fake._version), None
    translator = context._i_will_not_complain_if_bc_breaks_InstructionTranslator()
    for tracer in translator.output.tracers:  # of the graph, and of those inside it as of a checkpoint
        for node in tracer.graph.nodes:
            if made is None and shares(node):
                made = node.op != "placeholder"
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            if name == "setitem" or (name.endswith("_") and not name.endswith("__")):
                first = node.args[0] if node.args else None
                writes += any(shares(t) for t in (first if isinstance(first, (list, tuple)) else [first]))
            if "data" in str(node.target) and shares(node):  # u.data counts writes for itself
                writes += int(_unwrapped(node.meta["example_value"])._version)
    _found.writes = writes if made else -1


def _unwrapped(tensor: Tensor) -> Tensor:
    """What is in the wrappers of vmap and of derivatives."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _memory(tensor: Tensor) -> int | None:
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else None
