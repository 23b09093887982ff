"""Arms: the up-samplers that an experiment trains side by side, by name."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import pixelize
from pixelize.errors import ArgumentError

SCRATCH_ARMS = (
    "dcl-k2",
    "dcl-k3",
    "dcl-k4",
    "dcl-k6",
    "ipixeldcl",
    "pixeldcl",
    "ipixeldcl-k4",
    "pixeldcl-k4",
    "resize-conv",
    "pixelshuffle-icnr",
)
ANNEALED = "annealed"
"""The arm that starts as iPixelDCL and ends as PixelDCL."""

CONVERTED_ARMS = ("control", "ipixeldcl", "pixeldcl", "ipixeldcl-dw", "pixeldcl-dw", "dcl")

_NAMED = re.compile(r"(dcl|ipixeldcl|pixeldcl)(?:-k([2-6]))?")


def upsampler(arm: str, in_channels: int, out_channels: int) -> nn.Module:
    """A layer that doubles height and width: ``(N, in_channels, H, W)`` to ``(N, out_channels, 2H, 2W)``.

    Arms: ``dcl-k2`` to ``dcl-k6`` (ConvTranspose2d, stride 2); ``ipixeldcl``, ``pixeldcl`` (eq. 2 and 3 of
    Gao et al., every kernel 3x3 as in the authors' code, which is kernel size 6 in a transposed convolution's
    terms; ``-k4`` for 2x2 input kernels); ``resize-conv`` (nearest, then 3x3; Odena et al. 2016);
    ``pixelshuffle-icnr`` (3x3 and PixelShuffle, initialised by Aitken et al. 2017).

    Raises ArgumentError for any other name.
    """
    if arm == "resize-conv":
        return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(in_channels, out_channels, 3, padding=1))
    if arm == "pixelshuffle-icnr":
        convolution = nn.Conv2d(in_channels, 4 * out_channels, 3, padding=1)
        with torch.no_grad():  # the four sub-pixels of a channel start alike
            convolution.weight.copy_(convolution.weight[::4].repeat_interleave(4, 0))
            assert convolution.bias is not None
            convolution.bias.copy_(convolution.bias[::4].repeat_interleave(4, 0))
        return nn.Sequential(convolution, nn.PixelShuffle(2))
    match = _NAMED.fullmatch(arm)
    if match is None or (match[1] == "dcl" and match[2] is None):
        raise ArgumentError(f"no arm {arm!r}; there are {', '.join(SCRATCH_ARMS)}")
    k = int(match[2] or 6)
    layer: Any = {
        "dcl": nn.ConvTranspose2d,
        "ipixeldcl": pixelize.iPixelDCL2d,
        "pixeldcl": pixelize.PixelDCL2d,
    }[match[1]]
    padding = (k - 1) // 2
    return layer(in_channels, out_channels, k, 2, padding, 2 * padding + 2 - k)


def convert_arm(
    arm: str, model: nn.Module, example_inputs: Any = None, data: Any = None, include: str = "*"
) -> nn.Module:
    """A trained ``model`` as an arm: ``control`` leaves it as it is, the others convert it in place.

    ``-dw``: with depthwise dependency kernels. ``data``, where given, calibrates PixelDCL. ``include``: a
    pattern of the up-samplers' names.

    Raises ArgumentError for any other name.
    """
    if arm not in CONVERTED_ARMS:
        raise ArgumentError(f"no arm {arm!r} of a trained model; there are {', '.join(CONVERTED_ARMS)}")
    if arm == "control":
        return model
    layer = arm.removesuffix("-dw")
    options: dict[str, Any] = {"include": include}
    if arm.endswith("-dw"):
        options |= {"dependency_groups": -1}
    if layer == "pixeldcl" and data is not None:
        options |= {"init": "calibrate", "data": data}
    return pixelize.convert(model, layer, example_inputs=example_inputs, inplace=True, **options)


def arm_model(
    arm: str, build: Callable[[str], nn.Module], base: nn.Module | None, inputs: Sequence[Any]
) -> nn.Module:
    """The model with which an arm begins: without a ``base``, ``build`` of its up-sampler, with the weights
    that all arms share; with a trained ``base``, its copy, converted on ``inputs`` (the first is the
    example).

    Raises ArgumentError for an unknown arm.
    """
    layer = "ipixeldcl" if arm == ANNEALED else arm
    if base is not None:
        return convert_arm(layer, copy.deepcopy(base).eval(), inputs[0], inputs)
    model = build(layer)
    share_weights(model, build("dcl-k4"))
    return model


def share_weights(model: nn.Module, reference: nn.Module) -> None:
    """Gives ``model`` the weights of ``reference`` wherever name and shape agree, so that arms differ in
    nothing but their up-samplers.
    """
    theirs = reference.state_dict()
    own = model.state_dict()
    model.load_state_dict(
        {n: theirs[n] if n in theirs and theirs[n].shape == t.shape else t for n, t in own.items()}
    )


def split_arms(text: str, allowed: tuple[str, ...]) -> list[str]:
    """``"a,b"`` as a list. Raises ArgumentError for a name that is not allowed, or none."""
    arms = [a.strip() for a in text.split(",") if a.strip()]
    wrong = [a for a in arms if a not in allowed]
    if wrong or not arms:
        problem = f"no arm {wrong[0]!r}" if wrong else "none named"
        raise ArgumentError(f"--arms {text}: {problem}; there are {', '.join(allowed)}")
    return list(dict.fromkeys(arms))
