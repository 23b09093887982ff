"""What the core does without: the libraries of each extra, and the error that names what to install."""

from __future__ import annotations

from importlib.util import find_spec

from pixelize.errors import MissingExtraError

PAGES = ("jinja2", "matplotlib", "PIL")
MODULES = {
    "pages": PAGES,
    "cli": ("typer", *PAGES),
    "recipes": ("typer", *PAGES, "accelerate", "torchmetrics", "torchvision", "tensorboard", "yaml", "scipy"),
    "smp": ("segmentation_models_pytorch",),
    "diffusers": ("diffusers",),
    "timm": ("timm",),
    "monai": ("monai",),
    "transformers": ("transformers",),
    "torchvision": ("torchvision",),
    "spandrel": ("spandrel",),
    "audio": ("soundfile",),
    "onnx": ("onnx", "onnx2torch"),
}
"""The import names that each extra brings, as far as this package imports them itself."""


def require(extra: str, what: str) -> None:
    """Raises :class:`~pixelize.MissingExtraError` where a library of ``extra``, which ``what`` needs, is not
    installed. Imports none of them."""
    for module in MODULES[extra]:
        if find_spec(module) is None:
            raise MissingExtraError(
                f"{what} needs {module}, which is not installed: pip install 'torch-pixelize[{extra}]'"
            )
