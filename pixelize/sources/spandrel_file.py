"""A checkpoint whose architecture spandrel recognises by its keys, run as spandrel runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pixelize.checkpoints.checkpoint import Checkpoint
from pixelize.errors import LoadError, PixelizeError
from pixelize.sources.preparation import Preparation


class AsSpandrelRuns(nn.Module):
    """A model and what its library does around it (a noise map added, another range, one of several outputs).

    The result is not clipped to [0, 1], as spandrel would: what is clipped shows no pattern.
    """

    def __init__(self, model: nn.Module, run: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, image: Tensor) -> Tensor:
        return self.run(self.model, image)


def spandrel_model(checkpoint: Checkpoint) -> tuple[nn.Module, str, Preparation, set[int]]:
    """The model in a checkpoint, what it is in words, how its pictures are prepared, and the ids of the
    tensors that it was filled from.

    Raises:
        PixelizeError: spandrel is not installed.
        LoadError: it knows no architecture with such keys, or the weights do not fit the one that it found.
    """
    try:
        import spandrel
        from spandrel.__helpers.canonicalize import canonicalize_state_dict
    except ImportError:
        raise PixelizeError(
            f"{checkpoint.path}: give --arch module:callable or file.py:callable, what makes the model that "
            "the weights belong to; or let spandrel find that out: pip install 'torch-pixelize[spandrel]'"
        ) from None
    state = canonicalize_state_dict(_mapping(checkpoint))
    try:
        descriptor: Any = spandrel.MAIN_REGISTRY.load(dict(state))
    except spandrel.UnsupportedModelError as error:
        raise LoadError(
            f"{checkpoint.path}: spandrel knows no architecture with these {len(state)} keys "
            f"({', '.join(list(map(str, state))[:2])}, ...); give --arch module:callable, file.py:callable, "
            "or diffusers:FOLDER for an autoencoder in one file"
        ) from error
    except Exception as error:  # what an architecture makes of weights that only look like its own
        text = " ".join(str(error).split())[:160]
        raise LoadError(
            f"{checkpoint.path}: spandrel cannot load it ({type(error).__name__}: {text})"
        ) from error
    if not isinstance(descriptor, spandrel.ImageModelDescriptor):
        raise LoadError(
            f"{checkpoint.path}: {descriptor.architecture.name} fills masked parts of pictures; pictures "
            "alone do not run it: give --arch, and --data with an .npz file of its arguments"
        )
    told = f"{descriptor.architecture.name} ({descriptor.purpose}, {descriptor.scale}x), as spandrel reads it"
    needs = descriptor.size_requirements
    preparation = Preparation(
        channels=descriptor.input_channels,
        multiple=needs.multiple_of,
        minimum=needs.minimum,
        square=needs.square,
    )
    model = descriptor.model.eval()
    if "ImageModelDescriptor" not in descriptor._call_fn.__qualname__:  # not its own "model(image)"
        model = AsSpandrelRuns(model, descriptor._call_fn).eval()
    return model, told, preparation, {id(value) for value in state.values()}


def _mapping(checkpoint: Checkpoint) -> dict[str, Any]:
    if not isinstance(checkpoint.tree, dict):
        raise LoadError(f"{checkpoint.path}: holds a {type(checkpoint.tree).__name__}, not a state dict")
    return checkpoint.tree
