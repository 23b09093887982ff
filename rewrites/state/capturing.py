"""Whether somebody writes down what runs now, for calls of other sizes."""

from __future__ import annotations

import torch


def capturing() -> bool:
    """Whether ``torch.compile``, ``torch.export`` or ``make_fx`` captures a graph: sizes may not be known,
    nor be asked for."""
    return torch.compiler.is_compiling() or _is_proxied()


def _is_proxied() -> bool:
    # as torch.fx.experimental.proxy_tensor.get_proxy_mode has it, which brings in sympy
    key = torch._C._TorchDispatchModeKey.PROXY
    return (
        torch._C._get_dispatch_mode(key) is not None
        or torch._ops._get_dispatch_mode_pre_dispatch(key) is not None
    )
