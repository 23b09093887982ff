"""Modules whose forward is watched: the smallest ones that hold both a resize and what reads its result.

    before                                          after
    class Block(nn.Module):                         class Block(Watched, Block):
        def forward(self, x, skip):                     def forward(self, x, skip):
            u = F.interpolate(x, scale_factor=2)            with Watch():
            return self.conv(torch.cat([u, skip], 1))           return super().forward(x, skip)

The forward itself is not rewritten: its branches, flags and contexts stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from pixelize.rewrites.state.subclass import combined, own_class
from pixelize.rewrites.watching.watch import TRANSPOSED, EagerWatch, Watch, claim_of

_CALLS = "_functional_convolutions"


class Settings(NamedTuple):
    """How a convolution is called, all but its input and weight: a number for each axis, and its bias's
    name."""

    bias: str | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    output_padding: tuple[int, ...]


class Watched:
    """Put before a module's class: its forward runs within a
    :class:`~pixelize.rewrites.watching.watch.Watch`.

    A convolution that the forward calls as a function, with a parameter for its weight, is done by one of the
    module's children (:func:`redirect`) wherever it is called as it was when that was arranged.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_combined" not in vars(cls):
            return

        @wraps(super(Watched, cls).forward)  # type: ignore[misc]
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            kind = Watch if torch.compiler.is_compiling() else EagerWatch
            with kind(_replacements(self)):
                return super().forward(*args, **kwargs)  # type: ignore[misc]

        cls.forward = forward  # type: ignore[attr-defined]

    def __prepare_scriptable__(self) -> nn.Module:
        """Called by ``torch.jit.script``, which cannot express what is checked in each call: raises
        ValueError."""
        raise ValueError(
            f"torch.jit.script cannot take a {type(self).__name__} with converted resizes or convolutions "
            "called as functions: use torch.export, torch.jit.trace or ONNX, or revert the model first "
            "(pixelize.revert)"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # a state dict of the original module names a parameter once, where it still is
        for weight, (child, settings) in self.__dict__.get(_CALLS, {}).items():
            if any(key.startswith(f"{prefix}{child}.") for key in state_dict):
                continue
            for name, former in (("weight", weight), ("bias", settings.bias)):
                if former is not None and prefix + former in state_dict:
                    state_dict.setdefault(f"{prefix}{child}.{name}", state_dict[prefix + former])
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]


def refusal(module: nn.Module) -> str | None:
    """Why a module's forward cannot be watched, or None if it can."""
    if "forward" in module.__dict__:
        return "its forward was set on the instance (accelerate's hooks do that): take that off first"
    if isinstance(module, fx.GraphModule):
        return "a graph of its own"
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted"
    try:
        combined(Watched, type(module))
    except Exception as error:  # a stranger's metaclass may do anything
        return f"{type(module).__name__} cannot be subclassed ({type(error).__name__})"
    return None


def has_one_graph(module: fx.GraphModule) -> bool:
    """Whether a module's graph is the same in every mode: torchvision's feature extractors have two."""
    return type(module).train is nn.Module.train


def watch(module: nn.Module) -> None:
    """Has the forward of ``module`` watched from now on; doing it again changes nothing."""
    if not isinstance(module, Watched):
        module.__class__ = combined(Watched, type(module))


def unwatch(module: nn.Module) -> None:
    """Undoes :func:`watch` and :func:`redirect`."""
    cls = own_class(module, Watched)
    if cls is not None:
        module.__class__ = cls
        for child, _ in module.__dict__.pop(_CALLS, {}).values():
            module._modules.pop(child, None)


def redirect(module: nn.Module, weight: str, settings: Settings, child: str, layer: nn.Module) -> None:
    """From now on ``layer``, a new child of ``module``, does the convolutions that its forward calls as
    functions with the parameter ``weight`` and these settings.

    The parameter stays where it is; ``layer`` may share it.
    """
    watch(module)
    module.__dict__[_CALLS] = {**module.__dict__.get(_CALLS, {}), weight: (child, settings)}
    module._modules[child] = layer


def redirected(module: nn.Module) -> dict[str, str]:
    """The parameters whose convolutions are done by a child, and the child's name."""
    return {weight: child for weight, (child, _) in module.__dict__.get(_CALLS, {}).items()}


def settings_of(
    weight: Any, bias: str | None, stride: Any, padding: Any, dilation: Any, groups: Any,
    output_padding: Any = 0,
) -> Settings | None:  # fmt: skip
    """The settings of a call, every number one for each axis; None where they are no numbers."""
    n = len(weight.shape) - 2
    if padding == "valid":
        padding = 0
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(_each(dilation, n), weight.shape[2:], strict=True)]
        padding = [t // 2 for t in total]
        if any(t % 2 for t in total):
            return None
    each = [_each(v, n) for v in (stride, padding, dilation, output_padding)]
    if any(type(v) is not int for values in each for v in values) or type(groups) is not int:
        return None
    return Settings(bias, each[0], each[1], each[2], groups, each[3])


def _replacements(module: nn.Module) -> tuple[Any, ...]:
    calls = module.__dict__.get(_CALLS)
    if not calls:
        return ()
    return tuple(
        (module.get_parameter(weight), partial(_called, module, child, settings))
        for weight, (child, settings) in calls.items()
    )


def _called(
    module: nn.Module, child: str, expected: Settings, watch: Watch, func: Any, args: Any, kwargs: Any
) -> Any:
    bind = _conv_transpose if func in TRANSPOSED else _conv
    input, bias, settings = bind(*args, **kwargs)
    held = None if expected.bias is None else module.get_parameter(expected.bias)
    if settings is None or bias is not held or settings != expected._replace(bias=None):
        return func(*args, **kwargs)
    layer: Callable[..., Any] = module._modules[child]  # type: ignore[assignment]
    if not getattr(layer, "takes_claims", False):
        return layer(input)
    return layer(input, watch.claim(input) or claim_of(input))


def _conv(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: Any = 1,
) -> tuple[Any, Any, Settings | None]:  # fmt: skip
    return input, bias, settings_of(weight, None, stride, padding, dilation, groups)


def _conv_transpose(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: Any = 1, dilation: Any = 1,
) -> tuple[Any, Any, Settings | None]:  # fmt: skip
    return input, bias, settings_of(weight, None, stride, padding, dilation, groups, output_padding)


def _each(value: Any, n: int) -> tuple[Any, ...]:
    if isinstance(value, (tuple, list)):
        return tuple(value) if len(value) == n else tuple(value) * n
    return (value,) * n
