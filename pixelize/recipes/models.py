"""Models by name: ``smp:Linknet?encoder_name=resnet18``, ``diffusers:AutoencoderKL?...``, ``package.module:callable?...``."""

from __future__ import annotations

import importlib
from typing import Any
from urllib.parse import parse_qsl

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pixelize.errors import ArgumentError, LoadError

_EXTRAS = {"smp": "segmentation_models_pytorch", "diffusers": "diffusers"}


def build_model(name: str, **defaults: Any) -> nn.Module:
    """The model that ``name`` names: a library or module, a callable in it, and keyword arguments as in an address.

    ``defaults`` are arguments that the name may override; smp's ``encoder_weights`` defaults to None (nothing is downloaded).

    Raises ArgumentError if it cannot be made.
    """
    address, _, query = name.partition("?")
    library, _, callable_name = address.partition(":")
    options = {**defaults, **{k: yaml.safe_load(v) for k, v in parse_qsl(query, keep_blank_values=True)}}
    if library == "smp":
        options.setdefault("encoder_weights", None)
    try:
        module = importlib.import_module(_EXTRAS.get(library, library))
    except ImportError as error:
        hint = f"pip install torch-pixelize[{library}]" if library in _EXTRAS else "is it on the path?"
        raise ArgumentError(f"--model {name}: {error}; {hint}") from error
    make = getattr(module, callable_name, None)
    if not callable(make):
        raise ArgumentError(f"--model {name}: {library} has no {callable_name!r}")
    try:
        model = make(**options)
    except Exception as error:
        raise ArgumentError(f"--model {name}: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"--model {name}: it gave a {type(model).__name__}, not a torch.nn.Module")
    return model


def load_weights(model: nn.Module, path: str) -> nn.Module:
    """Loads a safetensors file into ``model``. Raises LoadError if it cannot be read or does not fit."""
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise LoadError(f"--weights {path}: {error}") from error
    return model
