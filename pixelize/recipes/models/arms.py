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

DESIGNS: dict[str, dict[str, Any]] = {
    "": {},
    "-masked": {"schedule": "masked"},
    "-2x2": {"dependency_kernel_size": 2},
    "-dw": {"dependency_groups": -1},
}
"""Dependency designs by the ending of an arm's name: dense 3x3, figure 4 of the paper to the letter, dense
2x2, depthwise 3x3.
"""

_PIXEL = tuple(layer + design for design in DESIGNS for layer in ("ipixeldcl", "pixeldcl"))

SCRATCH_ARMS = (
    *("dcl-k2", "dcl-k3", "dcl-k4", "dcl-k6"),
    *_PIXEL,
    *(f"{arm}-k4" for arm in _PIXEL),
    *("resize-conv", "pixelshuffle-icnr"),
)
ANNEALED = "annealed"
"""The arm that starts as iPixelDCL and ends as PixelDCL."""

ADAPTER = "adapter"
"""The arm that trains depthwise dependency kernels alone and leaves all inherited weights as they are."""

CONVERTED_ARMS = ("control", *_PIXEL, "dcl", ADAPTER)

_NAMED = re.compile(r"(dcl|ipixeldcl|pixeldcl)(-masked|-2x2|-dw)?(?:-k([2-6]))?")
_WIDE = re.compile(r"(.+)-w([1-9][0-9]*)")


def upsampler(arm: str, in_channels: int, out_channels: int) -> nn.Module:
    """A layer that doubles height and width: ``(N, in_channels, H, W)`` to ``(N, out_channels, 2H, 2W)``.

    Arms: ``dcl-k2`` to ``dcl-k6`` (ConvTranspose2d, stride 2); ``ipixeldcl``, ``pixeldcl`` (eq. 2 and 3 of
    Gao et al., every kernel 3x3 as in the authors' code, which is kernel size 6 in a transposed convolution's
    terms; with one of :data:`DESIGNS`; ``-k4`` after it for 2x2 input kernels); ``resize-conv`` (nearest,
    then 3x3; Odena et al. 2016); ``pixelshuffle-icnr`` (3x3 and PixelShuffle, initialised by Aitken et al.
    2017).

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
    if match is None or arm not in SCRATCH_ARMS:
        raise ArgumentError(f"no arm {arm!r}; there are {', '.join(SCRATCH_ARMS)}")
    options = dict(DESIGNS[match[2] or ""])
    if options.get("dependency_groups") == -1:
        options["dependency_groups"] = out_channels
    k = int(match[3] or 6)
    layer: Any = {
        "dcl": nn.ConvTranspose2d,
        "ipixeldcl": pixelize.iPixelDCL2d,
        "pixeldcl": pixelize.PixelDCL2d,
    }[match[1]]
    padding = (k - 1) // 2
    return layer(in_channels, out_channels, k, 2, padding, 2 * padding + 2 - k, **options)


def layer_and_width(arm: str, width: int) -> tuple[str, int]:
    """The up-sampler's name in an arm's, and how wide its model is: ``width`` unless the name says so.

    >>> layer_and_width("dcl-k3", 16), layer_and_width("dcl-k3-w23", 16)
    (('dcl-k3', 16), ('dcl-k3', 23))
    """
    match = _WIDE.fullmatch(arm)
    return (arm, width) if match is None else (match[1], int(match[2]))


def convert_arm(
    arm: str, model: nn.Module, example_inputs: Any = None, data: Any = None, include: str = "*"
) -> nn.Module:
    """A trained ``model`` as an arm: ``control`` leaves it as it is, the others convert it in place.

    The endings are those of :data:`DESIGNS`; ``adapter`` is ``ipixeldcl-dw`` with everything but its
    dependency kernels frozen. ``data``, where given, calibrates PixelDCL. ``include``: a pattern of the
    up-samplers' names.

    Raises ArgumentError for any other name.
    """
    if arm not in CONVERTED_ARMS:
        raise ArgumentError(f"no arm {arm!r} of a trained model; there are {', '.join(CONVERTED_ARMS)}")
    if arm == "control":
        return model
    layer, dash, ending = ("ipixeldcl-dw" if arm == ADAPTER else arm).partition("-")
    options = {"include": include, **DESIGNS[dash + ending]}
    if layer == "pixeldcl" and data is not None:
        options |= {"init": "calibrate", "data": data}
    model = pixelize.convert(model, layer, example_inputs=example_inputs, inplace=True, **options)
    if arm == ADAPTER:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("dependency_kernels" in name)
    return model


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


def recipe_arms(text: str, scratch: bool) -> list[str]:
    """The arms that ``text`` lists, of models from scratch or of trained ones; ``annealed`` is one of both.

    Raises ArgumentError for any other name, or none.
    """
    return split_arms(text, (*(SCRATCH_ARMS if scratch else CONVERTED_ARMS), ANNEALED))


def split_arms(text: str, allowed: tuple[str, ...]) -> list[str]:
    """``"a,b"`` as a list. An arm from scratch may have a width of its own: ``dcl-k3-w23``.

    Raises ArgumentError for a name that is not allowed, or none.
    """
    arms = [a.strip() for a in text.split(",") if a.strip()]
    scratch = set(SCRATCH_ARMS) <= set(allowed)
    wrong = [a for a in arms if (layer_and_width(a, 0)[0] if scratch else a) not in allowed]
    if wrong or not arms:
        problem = f"no arm {wrong[0]!r}" if wrong else "none named"
        raise ArgumentError(f"--arms {text}: {problem}; there are {', '.join(allowed)}")
    return list(dict.fromkeys(arms))
