"""The scan of a model's modules: no transposed convolution is ever missed, whatever the forward looks
like."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune

from pixelize.rewrites.idioms.plain_conv import INSTANCE_FORWARD, PRUNED
from pixelize.rewrites.site import CONV_TRANSPOSE, Site, Skipped, geometry_of

_WRAPPERS = {
    "DistributedDataParallel": "unwrap it first: convert model.module, then wrap the result again",
    "DataParallel": "unwrap it first: convert model.module, then wrap the result again",
    "FullyShardedDataParallel": "convert the model before wrapping it in FullyShardedDataParallel",
}


def qualified_names(model: nn.Module) -> dict[int, tuple[str, ...]]:
    """All names of each module of a model, by the module's identity, in the order of registration."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return {key: tuple(value) for key, value in names.items()}


def scan_conv_transpose(model: nn.Module) -> tuple[list[Site], list[Skipped]]:
    """Every transposed convolution among the modules: those that can be converted, and the others with the
    reason."""
    sites: list[Site] = []
    skipped: list[Skipped] = []
    names = qualified_names(model)
    wrapped = _wrapped_prefixes(model)
    for name, module in model.named_modules():
        if not _looks_transposed(module):
            continue
        reason = next((why for prefix, why in wrapped if name.startswith(prefix)), None) or _refusal(module)
        if reason is None and isinstance(module, _ConvTransposeNd):
            sites.append(
                Site(name, names[id(module)], "conv_transpose", type(module).__name__, geometry_of(module))
            )
        else:
            skipped.append(Skipped(name, "conv_transpose", _type_name(module), reason or ""))
    return sites, skipped


def _type_name(module: nn.Module) -> str:
    return str(getattr(module, "original_name", type(module).__name__))


def _looks_transposed(module: nn.Module) -> bool:
    if isinstance(module, _ConvTransposeNd) or "ConvTranspose" not in _type_name(module):
        return isinstance(module, _ConvTransposeNd)
    return not any(isinstance(m, _ConvTransposeNd) for m in module.modules())  # what it holds is the site


def _wrapped_prefixes(model: nn.Module) -> list[tuple[str, str]]:
    wrapped = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        # fully_shard (FSDP2) keeps the module and changes its class to FSDP<Class>
        advice = _WRAPPERS.get(kind) or (
            _WRAPPERS["FullyShardedDataParallel"] if hasattr(module, "unshard") else None
        )
        if advice:
            wrapped.append((f"{name}." if name else "", f"inside {kind}: {advice}"))
    return wrapped


def _refusal(module: nn.Module) -> str | None:
    """Why this module cannot be converted, or None if it can."""
    kind = _type_name(module)
    if hasattr(module, "_c") and hasattr(module, "original_name"):
        return "scripted: convert the model before torch.jit.script or torch.jit.trace"
    if "quantized" in type(module).__module__ or "qat" in type(module).__module__.split("."):
        return "quantised: convert the float model, then quantise it"
    if not isinstance(module, tuple(CONV_TRANSPOSE.values())):
        return f"{kind} is no nn.ConvTranspose1d, 2d or 3d: its arithmetic is not known"
    if any(is_lazy(p) for p in module.parameters(recurse=False)):
        return "lazy and not initialised yet: run the model once, then convert it"
    if module.padding_mode != "zeros":
        return f"padding_mode is {module.padding_mode!r}: only zeros can be converted"
    if all(s == 1 for s in module.stride):  # type: ignore[union-attr]
        return "stride 1 does not up-sample"
    if hasattr(module, "dependency_kernels"):
        return "converted already: pixelize.revert(model) undoes a conversion"
    if "forward" in module.__dict__:
        return INSTANCE_FORWARD
    if prune.is_pruned(module):
        return PRUNED
    override = _own_forward(type(module))
    if override is not None and "super" not in getattr(getattr(override, "__code__", None), "co_names", ()):
        return (
            f"{kind}.forward does not go through nn.{_plain(type(module)).__name__}.forward; "
            "make it call super().forward(), or exclude it"
        )
    assert isinstance(module, _ConvTransposeNd)
    c_in, c_out, groups = module.in_channels, module.out_channels, module.groups
    if tuple(module.weight.shape) != (c_in, c_out // groups, *module.kernel_size):
        return f"its weight has the shape {tuple(module.weight.shape)}, which its attributes do not tell"
    return None


def _own_forward(kind: type):  # type: ignore[no-untyped-def]
    for cls in kind.__mro__:
        if cls in CONV_TRANSPOSE.values():
            return None
        if "forward" in vars(cls):
            return vars(cls)["forward"]
    return None


def _plain(kind: type) -> type:
    return next(cls for cls in kind.__mro__ if cls in CONV_TRANSPOSE.values())
