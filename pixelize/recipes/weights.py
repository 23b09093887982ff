"""Weights from a safetensors file into a model."""

from __future__ import annotations

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pixelize.errors import LoadError


def load_weights(model: nn.Module, path: str) -> nn.Module:
    """Loads the file into ``model``. Raises LoadError if it cannot be read or does not fit."""
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise LoadError(f"--weights {path}: {error}") from error
    return model
