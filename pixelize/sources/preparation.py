"""What a model's library does to pictures before the model sees them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIGNED = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Preparation:
    """How pictures in [0, 1] become inputs.

    ``mean`` is taken out of the channels and ``deviation`` divided by; ``channels`` is how many the model
    takes, None where that is not known. Sides are a multiple of ``multiple``, at least ``minimum``, equal if
    ``square``, or ``size`` (height, width) where the model takes no other. ``single``: one picture at a time.
    ``rate``: samples a second of the sounds that it takes, where its configuration tells.
    """

    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    channels: int | None = None
    multiple: int = 1
    minimum: int = 1
    square: bool = False
    size: tuple[int, int] | None = None
    single: bool = False
    rate: int | None = None

    def __call__(self, picture: Tensor) -> Tensor:
        """One picture (C, H, W) as the model takes it."""
        if not self.mean:
            return picture
        shape = (-1, 1, 1)
        mean, deviation = (torch.tensor(v[: len(picture)]).view(shape) for v in (self.mean, self.deviation))
        return (picture - mean) / deviation

    @property
    def told(self) -> str:
        """The range of values in words."""
        if not self.mean:
            return "[0, 1]"
        names: dict[tuple[Any, ...], str] = {
            SIGNED: "[-1, 1]",
            IMAGENET: "ImageNet's mean and deviation taken out",
        }
        given = f"mean {self.mean} and deviation {self.deviation} taken out"
        return next((told for values, told in names.items() if values == (self.mean, self.deviation)), given)


def preparation_of(scheme: str, model: nn.Module, folder: Path | None = None) -> Preparation:
    """As the library named by ``scheme`` prepares pictures for ``model``; ``folder`` holds its configuration.

    diffusers' autoencoders take [-1, 1]; of transformers and timm the model's own configuration is read;
    torchvision's and smp's networks take ImageNet's normalisation. Anything else takes [0, 1].
    """
    if scheme == "diffusers":
        return Preparation(*SIGNED, multiple=8 if hasattr(model, "decode") else 1)
    if scheme == "transformers":
        told = _processor(folder)
        if told.get("do_normalize", True):
            mean, deviation = (told.get(f"image_{n}") for n in ("mean", "std"))
            if isinstance(mean, list) and isinstance(deviation, list):
                return Preparation(tuple(mean), tuple(deviation), size=_fixed_size(model))
            return Preparation(*IMAGENET, size=_fixed_size(model))
        return Preparation(size=_fixed_size(model))
    if scheme == "timm":
        told = getattr(model, "pretrained_cfg", None) or {}
        return Preparation(tuple(told.get("mean", IMAGENET[0])), tuple(told.get("std", IMAGENET[1])))
    if scheme in ("torchvision", "smp"):
        return Preparation(*IMAGENET, multiple=32)
    return Preparation()


def _processor(folder: Path | None) -> dict[str, Any]:
    try:
        told = json.loads(((folder or Path()) / "preprocessor_config.json").read_text())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _fixed_size(model: nn.Module) -> tuple[int, int] | None:
    side = getattr(getattr(model, "config", None), "image_size", None)
    if isinstance(side, int):
        return side, side
    return (side[0], side[1]) if isinstance(side, list | tuple) and len(side) == 2 else None


PLAIN = Preparation()
"""Pictures as they are."""
SCALES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "unit": ((), ()),
    "signed": SIGNED,
    "imagenet": IMAGENET,
}
"""Ranges of values by the names that ``--scale`` knows."""
