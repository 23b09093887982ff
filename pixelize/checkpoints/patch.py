"""A patch: the tensors that a repair changed, and by their hashes what they apply to.

A small ``.safetensors`` file that can be shared where the model itself cannot. It fits every file that holds
the same weights, whatever their names and nesting there: each tensor of the model is looked for by its hash.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pixelize.checkpoints.checkpoint import Checkpoint, hash_of
from pixelize.checkpoints.match import common_end
from pixelize.errors import LoadError
from pixelize.files import write_bytes

FORMAT = 1


def write_patch(
    path: Path,
    checkpoint: Checkpoint,
    values: Mapping[str, Tensor],
    used: Iterable[str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Writes ``values``, by the names that they have in ``checkpoint``, as a patch.

    ``used``: the names of the model's tensors, all of the file's by default; the patch fits no file that
    lacks one of them. ``about`` is plain data kept with it. Raises OSError if the disk refuses.
    """
    hashes = {name: hash_of(checkpoint.tensors[name]) for name in used or checkpoint.tensors}
    told = {
        "format": FORMAT,
        "made_for": checkpoint.path.name,
        "originals": {name: hash_of(checkpoint.tensors[name]) for name in values},
        "others": sorted({h for name, h in hashes.items() if name not in values}),
        "about": dict(about or {}),
    }
    cast = {
        name: value.detach().cpu().to(checkpoint.tensors[name].dtype).contiguous()
        for name, value in values.items()
    }
    return write_bytes(path, save(cast, metadata={"format": "pt", "pixelize_patch": json.dumps(told)}))


def read_patch(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a patch tells of itself, and its tensors. Raises LoadError if the file is no patch."""
    if not path.is_file():
        raise LoadError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {}).get("pixelize_patch", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise LoadError(f"{path}: not a readable patch ({type(error).__name__})") from error
    if not isinstance(told, dict) or not {"format", "originals", "others"} <= told.keys():
        raise LoadError(f"{path}: a safetensors file, but no patch that pixelize repair wrote")
    if told["format"] != FORMAT:
        raise LoadError(f"{path}: format {told['format']!r}; this version of pixelize reads format {FORMAT}")
    if not isinstance(told["originals"], dict) or told["originals"].keys() != tensors.keys():
        raise LoadError(f"{path}: damaged: it does not tell what each of its tensors applies to")
    return told, tensors


def patched(patch: Path, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """What of ``checkpoint`` becomes what, by the names there.

    Raises LoadError if the patch is damaged, was made for other weights, or is in there already.
    """
    told, tensors = read_patch(patch)
    by_hash: dict[str, list[str]] = {}
    for name, value in checkpoint.tensors.items():
        by_hash.setdefault(hash_of(value), []).append(name)
    gone = any(original not in by_hash for original in told["originals"].values())
    if all(
        hash_of(value) in by_hash if gone else name in by_hash.get(hash_of(value), ())
        for name, value in tensors.items()
    ):
        raise LoadError(f"{patch}: applied already, {checkpoint.path} holds what it would put there")
    values: dict[str, Tensor] = {}
    for name, original in told["originals"].items():
        if original not in by_hash:
            raise LoadError(
                f"{patch}: made for another model than {checkpoint.path} (for {told.get('made_for')}), "
                f"in which {name} is another"
            )
        place = max(by_hash[original], key=lambda n: common_end(n, name))
        if checkpoint.tensors[place].shape != tensors[name].shape:
            raise LoadError(f"{patch}: damaged: {name} is of another shape than what it applies to")
        values[place] = tensors[name]
    missing = [h for h in told["others"] if h not in by_hash]
    if missing:
        raise LoadError(
            f"{patch}: made for another model than {checkpoint.path} (for {told.get('made_for')}): "
            f"{len(missing)} of {len(told['others'])} other tensors differ"
        )
    return values
