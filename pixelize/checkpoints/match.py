"""Which tensors of a file a model's parameters are, and what they became in the file's own terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

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
    """``after``'s state dict with ``before``'s keys: a plain weight as what a norm makes it of, where that is
    how ``before`` has it (``weight_norm`` and ``spectral_norm``, as hooks or as parametrizations).

    Raises PixelizeError if the two have other keys or shapes in common than that explains.
    """
    old, new = before.state_dict(), dict(after.state_dict())
    for key in old:
        for names, parts_of in _NORMS.items():
            prefix = key.removesuffix(names[0])
            mine = [prefix + name for name in names]
            if (
                key.endswith(names[0])
                and key not in new
                and f"{prefix}weight" in new
                and all(n in old for n in mine)
            ):
                layer = before.get_submodule(prefix.rstrip("."))
                parts = parts_of(new.pop(f"{prefix}weight"), layer, *(old[n] for n in mine))
                new.update(zip(mine, parts, strict=True))
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


def _magnitude_and_direction(weight: Tensor, layer: nn.Module, g: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """What ``weight_norm`` makes ``weight`` of: g v / |v|, the norm over the axes in which g has length 1."""
    axes = [axis for axis, length in enumerate(g.shape) if length == 1 and weight.dim() > 1]
    return torch.linalg.vector_norm(weight, dim=axes or None, keepdim=True).reshape(g.shape), weight


def _spectral(weight: Tensor, layer: nn.Module, original: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """What ``spectral_norm`` makes ``weight`` of in evaluation: W / (u W v), with u scaled so that u W v = 1.

    Training makes a unit vector of u again, and then divides by the largest singular value.
    """
    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    matrix = (weight.transpose(0, 1) if isinstance(layer, kinds) else weight).flatten(1)
    return weight, u / torch.dot(u, matrix @ v), v


_NORMS: dict[tuple[str, ...], Callable[..., tuple[Tensor, ...]]] = {
    ("weight_g", "weight_v"): _magnitude_and_direction,
    ("parametrizations.weight.original0", "parametrizations.weight.original1"): _magnitude_and_direction,
    ("weight_orig", "weight_u", "weight_v"): _spectral,
    (
        "parametrizations.weight.original",
        "parametrizations.weight.0._u",
        "parametrizations.weight.0._v",
    ): _spectral,
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
