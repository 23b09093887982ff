"""Adam in coordinates in which what a kernel reads is white, and what its outputs' errors cost uncorrelated:
for training pixel deconvolutions towards the outputs of another model.

A kernel reads features that are much alike: channels behind an activation share a mean, adjacent pixels are
nearly the same. A change D of the kernel changes what it makes by D^T E[f f^T] D in the mean square, so that
a few directions of D are steep and most are flat, and Adam, whose coordinates are single weights, creeps
along the flat ones. With E[f f^T] taken as T (x) C (taps and channels, a Kronecker product), T = L_T L_T^T
and C = L_C L_C^T, the coordinates U of D = (L_T (x) L_C)^-T U all move the output alike. What that costs in
the model's outputs is e^T G e for errors e of the output's channels
(:mod:`pixelize.calibration.sensitivity`); in the coordinates U V of the eigenvectors V of G errors do not
add up, and Adam is run on those. (The two factors are those of K-FAC, Martens and Grosse 2015, eq. 1,
that of the inputs apart for taps and channels; how far to go in each coordinate is left to Adam, as in
SOAP, Vyas et al. 2024.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pixelize.algebra.least_squares import inverse_root
from pixelize.algebra.polyphase import Size
from pixelize.calibration.layer_fit import phase_maps
from pixelize.calibration.sensitivity import sensitivities
from pixelize.errors import ArgumentError
from pixelize.layers.pixel_dcl import PixelDCL, PixelDeconvolution, input_kernels_of
from pixelize.rewrites.state.evaluation import evaluation
from pixelize.rewrites.state.precision import float64
from pixelize.running.pictures import run

RIDGE = 1e-3
"""Added to second moments before they are factored, as a share of their mean diagonal."""
FLOOR = torch.finfo(torch.float32).tiny
"""Added to them too, for features that are always zero."""
UNWHITENED = 40.0
"""What has no features to whiten (biases, norms) moves by ``lr`` times so many of its own sizes in a step."""


class WhitenedAdam(torch.optim.Optimizer):
    """Adam on whitened kernels; used as any optimizer of torch.

    Whitened in channels are the kernels of torch's convolutions and the layers of this
    package, in taps too the dependency kernels that are not shared and what a PixelDCL sees of the input.
    What kernels read, and what errors of their outputs cost, is learned once, from ``data``: a model that has
    become another one wants a new optimizer.

    Args:
        model: runs on ``data``; its trainable parameters are optimized.
        data: a few batches of inputs, a tensor, tuple or dict each.
        lr: how far a step in one coordinate moves a channel of the layer's output, as a share of the output's
            root mean square. It is not Adam's learning rate: 3e-4 for a layer by itself, 2.5e-5 for a deep
            model.
        betas, eps: as for ``torch.optim.Adam``.

    Raises:
        ArgumentError: no data, nothing to train, a negative rate, or a model that does not run on ``data``.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Any],
        lr: float = 2.5e-5,
        *,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-12,
    ) -> None:
        if lr < 0:
            raise ArgumentError(f"the learning rate must not be negative: lr={lr}")
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise ArgumentError(f"this {type(model).__name__} has no trainable parameters; all are frozen")
        features = _look(model, list(data))
        groups = [
            {"params": [p], "unit": features[p].unit() if p in features else _size(p)} for p in parameters
        ]
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})
        for p in parameters:
            if p in features:
                self.state[p].update(features[p].roots(p))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of Adam in the whitened coordinates."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                gradient = _to_coordinates(p.grad, state)
                if "step" not in state:
                    state["step"] = 0
                    state["mean"], state["square"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
                state["step"] += 1
                state["mean"].lerp_(gradient, 1 - first)
                state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
                mean = state["mean"] / (1 - first ** state["step"])
                size = (state["square"] / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
                p.sub_(_to_kernel(mean.div_(size), state, p), alpha=group["lr"] * group["unit"])
        return loss


class _Features:
    """What is learned of the features of one kernel, whose axis ``channel_axis`` is that of the channels read
    (0 or 1): their second moments.
    """

    def __init__(self, channel_axis: int) -> None:
        self.channel_axis = channel_axis
        self.channels: Tensor | float = 0.0  # (groups, n, n)
        self.taps: Tensor | float = 0.0  # (k_h k_w, k_h k_w)
        self.power, self.batches = 0.0, 0
        self.costs: Tensor | None = None  # (C, C) of the layer's output

    def add(self, maps: Tensor, groups: int, window: Size | None, output: Tensor) -> None:
        """Takes in maps (N, groups * n, *size), which the kernel reads through ``window`` (None: taps are not
        whitened), and what its layer makes of them.
        """
        x = maps.detach()
        x = x.float() if x.dtype.itemsize < 4 else x
        rows = x.unflatten(1, (groups, -1)).movedim(0, 2).flatten(2)
        self.channels = self.channels + float64(rows @ rows.mT) / rows.shape[-1]
        for sample in x if window is not None and len(window) == 2 else ():  # torch unfolds pictures alone
            near = (window[0] // 2, window[1] // 2)  # type: ignore[index]
            read = F.unfold(sample[:, None], window, padding=near).transpose(0, 1).flatten(1)  # type: ignore[arg-type]
            self.taps = self.taps + float64(read @ read.mT)
        self.power += float(float64(output.detach()).square().mean())
        self.batches += 1

    def roots(self, parameter: Tensor) -> dict[str, Any]:
        """The state that turns gradients into whitened coordinates and back."""
        roots: dict[str, Any] = {"channel_axis": self.channel_axis}
        for name, moments in (("channels", self.channels), ("taps", self.taps)):
            if isinstance(moments, Tensor):
                scale = self.batches if name == "channels" else moments.diagonal().mean()
                roots[name] = inverse_root(moments / scale, RIDGE, FLOOR).to(parameter)
        if self.costs is not None:
            groups = len(self.channels)  # type: ignore[arg-type]
            apart = self.costs.unflatten(0, (groups, -1)).unflatten(2, (groups, -1))
            blocks = apart.diagonal(dim1=0, dim2=2).movedim(-1, 0)
            roots["outputs"] = torch.linalg.eigh(blocks)[1].to(parameter)
        return roots

    def unit(self) -> float:
        """The output's root mean square."""
        return max(math.sqrt(self.power / self.batches), 1e-8)


def _to_coordinates(gradient: Tensor, state: dict[str, Any]) -> Tensor:
    """The gradient to U, (groups, n, outputs of a group, taps), of that to a kernel."""
    if "channels" not in state:
        return gradient
    groups, n, _ = state["channels"].shape
    if state["channel_axis"] == 0:  # (C_in, C_out / groups, k_h, k_w)
        g = gradient.reshape(groups, n, -1, gradient[0, 0].numel()).transpose(1, 2)
    else:  # (C_out, C_in / groups, k_h, k_w)
        g = gradient.reshape(groups, -1, n, gradient[0, 0].numel())
    if "outputs" in state:
        g = _turned_outputs(g, state["outputs"].mT)
    g = g.transpose(1, 2)
    turned = (state["channels"].mT @ g.flatten(2)).view(g.shape)
    return turned @ state["taps"] if "taps" in state else turned


def _to_kernel(u: Tensor, state: dict[str, Any], kernel: Tensor) -> Tensor:
    """The change of a kernel that U is."""
    if "channels" not in state:
        return u
    turned = u @ state["taps"].mT if "taps" in state else u
    turned = (state["channels"] @ turned.flatten(2)).view(u.shape).transpose(1, 2)
    if "outputs" in state:
        turned = _turned_outputs(turned, state["outputs"])
    if state["channel_axis"] == 0:
        turned = turned.transpose(1, 2)
    return turned.reshape(kernel.shape)


def _turned_outputs(kernels: Tensor, matrices: Tensor) -> Tensor:
    """``matrices`` (groups, c, c) times kernels (groups, outputs, n, taps): each target phase's outputs."""
    apart = kernels.unflatten(1, (-1, matrices.shape[-1])).flatten(3)
    return (matrices[:, None] @ apart).view(kernels.shape)


def _size(parameter: Tensor) -> float:
    return UNWHITENED * max(float(parameter.detach().square().mean().sqrt()), 0.1)


def _look(model: nn.Module, data: list[Any]) -> dict[Tensor, _Features]:
    """What each kernel of the model reads on ``data``, and what errors of its outputs cost."""
    features_by_kernel: dict[Tensor, _Features] = {}

    def features(kernel: Tensor, channel_axis: int) -> _Features:
        return features_by_kernel.setdefault(kernel, _Features(channel_axis))

    def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        x = args[0] if args else kwargs["input"]
        x = x if x.dim() == len(layer.stride) + 2 else x[None]
        if not isinstance(layer, PixelDCL):
            axis = 0 if isinstance(layer, _ConvTransposeNd) else 1
            features(layer.weight, axis).add(x, layer.groups, None, output)
        else:
            for kernel in input_kernels_of(layer).values():
                features(kernel, 0).add(x, layer.groups, tuple(kernel.shape[2:]), output)
        if isinstance(layer, PixelDeconvolution):
            _look_at_stages(layer, x, output, features)

    # what stands around a layer in the place of a convolution shows that layer's kernel as its own
    layers = [m for m in model.modules() if isinstance(m, _ConvNd) and "weight" in m._parameters]
    handles = [m.register_forward_hook(hook, with_kwargs=True) for m in layers]
    try:
        with evaluation(model):
            for batch in data:
                run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if not data:
        raise ArgumentError("data is empty: what the kernels read is learned from at least one batch")
    for layer, costs in sensitivities(model, layers, data).items():
        for kernel in layer.parameters():
            if kernel in features_by_kernel:
                features_by_kernel[kernel].costs = costs
    return features_by_kernel


def _look_at_stages(
    layer: PixelDeconvolution, x: Tensor, output: Tensor, features: Callable[[Tensor, int], _Features]
) -> None:
    size, groups = list(output.shape[-len(layer.stride) :]), layer.dependency_groups
    for number, (stage, kernel) in enumerate(zip(layer.plan.stages, layer.dependency_kernels, strict=True)):
        phases = phase_maps(layer, x, size, stages=number)
        sources = [phases[source] for source in stage.sources]
        if stage.shared or stage.compact:  # every source passes through the same channels of the kernel
            features(kernel, 1).add(torch.cat(sources), groups, None, output)
        else:
            read = torch.stack([s.unflatten(1, (groups, -1)) for s in sources], 2).flatten(1, 3)
            features(kernel, 1).add(read, groups, layer.dependency_kernel_size, output)
