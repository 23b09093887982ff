"""Which tensors of a file a model's parameters are, and what they became in the file's own terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pixelize.checkpoints.checkpoint import Checkpoint, same_bits
from pixelize.errors import PixelizeError


def changed_tensors(
    before: nn.Module,
    after: nn.Module,
    checkpoint: Checkpoint,
    names: Mapping[str, str] | None = None,
    used: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """What of ``checkpoint``, of which ``before`` was filled, has to change for it to be ``after``'s file.

    A parameter is found in the file by the name it is known to have there (``names``), or else by its
    elements, to the bit, and among several equal tensors by the end of its name. ``used`` are the names of
    the tensors that ``before`` was filled from, all by default.

    Raises:
        PixelizeError: a parameter that changed is none of the file's tensors (computed from several when the
            file is read, say), or has parts that the file has no place for.
    """
    old, new = before.state_dict(), state_in_terms_of(before, after)
    pool = list(checkpoint.tensors if used is None else used)
    values: dict[str, Tensor] = {}
    for key, value in old.items():
        if not isinstance(value, Tensor) or same_bits(value, new[key]):
            continue
        name = (names or {}).get(key) or _find(key, value, checkpoint, pool)
        rounded = new[key].detach().to("cpu", checkpoint.tensors[name].dtype)
        if name in values and not same_bits(values[name], rounded):
            raise PixelizeError(f"{checkpoint.path}: {name} is shared, and the repair would make two of it")
        values[name] = rounded
    return values


def state_in_terms_of(before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    """``after``'s state dict with ``before``'s keys: a plain weight as magnitude and direction, where that is
    how ``before`` has it (``weight_norm``, as hooks or as a parametrization).

    Raises PixelizeError if the two have other keys or shapes in common than that explains.
    """
    old, new = before.state_dict(), dict(after.state_dict())
    for key, magnitude in old.items():
        for ending, (g, v) in _NORMS.items():
            name = key.removesuffix(ending)
            if key.endswith(ending) and key not in new and f"{name}{v}" in old and f"{name}weight" in new:
                weight = new.pop(f"{name}weight")
                dims = [d for d, n in enumerate(magnitude.shape) if n == 1 and weight.dim() > 1]
                new[f"{name}{v}"] = weight
                new[f"{name}{g}"] = torch.linalg.vector_norm(weight, dim=dims or None, keepdim=True).reshape(
                    magnitude.shape
                )
    for key in old.keys() ^ new.keys():
        raise PixelizeError(
            f"{key}: the repaired model has {'no' if key in old else 'a'} such parameter, "
            "so that its weights do not fit the file they came from; save it with pixelize.save"
        )
    for key, value in old.items():
        if isinstance(value, Tensor) and value.shape != new[key].shape:
            raise PixelizeError(
                f"{key}: {tuple(value.shape)} before and {tuple(new[key].shape)} now, which does not fit the "
                "file it came from; save it with pixelize.save"
            )
    return {key: new[key] for key in old}


_NORMS = {
    "weight_g": ("weight_g", "weight_v"),
    "parametrizations.weight.original0": (
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    ),
}


def _find(key: str, value: Tensor, checkpoint: Checkpoint, pool: list[str]) -> str:
    value = value.detach().cpu()
    equal = [
        name
        for name in pool
        if checkpoint.tensors[name].shape == value.shape
        and same_bits(checkpoint.tensors[name].detach().to(value.dtype), value)
    ]
    if not equal:
        raise PixelizeError(
            f"{checkpoint.path}: {key} is none of its tensors but computed from them when it is "
            "read, so that what it became cannot be written back"
        )
    return max(equal, key=lambda name: common_end(name, key))


def common_end(a: str, b: str) -> int:
    """How many parts of two dotted names are alike, from the end."""
    first, second = (n.replace("/", ".").split(".")[::-1] for n in (a, b))
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
