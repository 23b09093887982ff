"""Checkpoints of one file with the names of the original code, which diffusers renames when it reads them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pixelize.checkpoints.checkpoint import Checkpoint
from pixelize.errors import LoadError


def fill_renamed(model: nn.Module, checkpoint: Checkpoint) -> bool:
    """Fills ``model``, in place, with a checkpoint that holds its weights under the original code's names
    (``decoder.up.0.upsample.conv.weight``), alone or in a whole pipeline's file.

    Returns False for a model that diffusers has no such names for. Raises LoadError if they do not fit it.
    """
    read: Any = getattr(type(model), "from_single_file", None)
    save_config: Any = getattr(model, "save_config", None)
    if read is None or save_config is None:
        return False
    kind = next((p.dtype for p in model.parameters()), None)
    with tempfile.TemporaryDirectory() as folder:  # its configuration, so that none is fetched
        save_config(folder)
        try:
            loaded: nn.Module = read(
                dict(_state(checkpoint.tree)), config=folder, torch_dtype=kind, local_files_only=True
            )
        except Exception as error:  # whatever renaming makes of names that it does not know
            text = " ".join(str(error).split())[:160]
            raise LoadError(
                f"{checkpoint.path}: its weights do not fit this {type(model).__name__}, nor do they as "
                f"diffusers renames them ({type(error).__name__}: {text})"
            ) from error
    left = [name for name, value in loaded.state_dict().items() if value.is_meta]
    if left:
        raise LoadError(
            f"{checkpoint.path}: its weights do not fit this {type(model).__name__}: {len(left)} missing, "
            f"such as {left[0]}"
        )
    model.load_state_dict(loaded.state_dict())
    return True


def _state(tree: Any) -> Mapping[str, Tensor]:
    """The state dict in a file, which may be under ``state_dict``."""
    inner = tree.get("state_dict", tree) if isinstance(tree, Mapping) else {}
    return {k: v for k, v in inner.items() if isinstance(v, Tensor)} if isinstance(inner, Mapping) else {}
