"""Folding: one plain transposed convolution for each pixel deconvolution, exact where no border is near."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import pixelize
from pixelize import PixelDCL2d, PixelizeError, iPixelDCL2d
from pixelize.conversion.fold import folded_layer
from pixelize.rewrites import geometry_of


@st.composite
def layers(draw):
    """A layer of any of the three kinds, with dependency kernels that are not zero, in float64."""
    pair = lambda low, high: (draw(st.integers(low, high)), draw(st.integers(low, high)))  # noqa: E731
    k, s, d, p = pair(1, 5), pair(1, 4), pair(1, 2), pair(0, 3)
    op = tuple(draw(st.integers(0, max(s[i], d[i]) - 1)) for i in (0, 1))
    groups = draw(st.sampled_from([1, 2]))
    schedule = draw(
        st.sampled_from(["paired", "sequential", "masked"] if s == (2, 2) else ["paired", "sequential"])
    )
    sizes = st.sampled_from([3] if schedule == "masked" else [1, 2, 3])
    kind, partial = draw(st.sampled_from([(PixelDCL2d, False), (iPixelDCL2d, False), (PixelDCL2d, True)]))
    more = {}
    if partial:
        stages = len(PixelDCL2d(4, 6, k, s, p, schedule=schedule, dilation=d).plan.stages)
        more["input_stages"] = draw(st.integers(0, stages))
    layer = kind(
        4, 6, k, s, p, op, groups, draw(st.booleans()), d, dtype=torch.float64,
        dependency_kernel_size=(draw(sizes), draw(sizes)),
        dependency_groups=draw(st.sampled_from([1, 2, 3, 6])),
        schedule=schedule, **more,
    )  # fmt: skip
    if kind is iPixelDCL2d and draw(st.booleans()):
        pixelize.set_input_gate(layer, draw(st.sampled_from([0.0, 0.5])))
    return layer


def margin(layer):
    """Pixels at each side that may differ: the half windows of the stages in a row, in output pixels."""
    reach = [0, 0]
    for stage in layer.plan.stages:
        for i in (0, 1):
            starts = [abs(f.offset[i]) for t in stage.targets for f in stage.features(t)]
            reach[i] += max(starts, default=0)
    # beyond the output the phases go on as zero, also where padding cut real ones off
    return [layer.stride[i] * (reach[i] + 1) for i in (0, 1)]


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(layers(), st.booleans())
def test_folding_is_exact_on_the_interior(layer, bare):
    if bare:
        with torch.no_grad():
            for kernel in layer.dependency_kernels:
                kernel.zero_()
    my, mx = (0, 0) if bare else margin(layer)
    size = [-(-2 * m // s) + 6 for m, s in zip((my, mx), layer.stride, strict=True)]
    size = [n + (layer.padding[i] + 4) // layer.stride[i] * 2 for i, n in enumerate(size)]
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    folded = folded_layer(layer)
    wanted, got = layer(x).detach(), folded(x)
    assert type(folded) is nn.ConvTranspose2d and got.shape == wanted.shape
    inside = (..., slice(my, wanted.shape[-2] - my), slice(mx, wanted.shape[-1] - mx))
    assert wanted[inside].numel()
    assert (got[inside] - wanted[inside]).abs().max() <= 1e-10 * max(1.0, float(wanted.abs().max()))


def test_the_docstring_tells_the_border_of_a_paired_3x3_layer():
    layer = PixelDCL2d(4, 6, 4, 2, 1, dtype=torch.float64)
    x = torch.randn(1, 4, 12, 12, dtype=torch.float64)
    differs = ((folded_layer(layer)(x) - layer(x)).abs() > 1e-10).any(1)[0]
    rows = differs.any(1).nonzero().flatten()
    assert not differs[4:-4, 4:-4].any()
    assert rows.min() == 0 and rows.max() == 23 and differs[2].any()


@pytest.mark.parametrize("output_size", [(9, 10), (10, 9), (10, 10)])
def test_a_folded_layer_takes_an_output_size(output_size):
    layer = iPixelDCL2d(3, 4, 3, 2, 1, dtype=torch.float64)
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    assert folded_layer(layer)(x, output_size=list(output_size)).shape == layer(x, list(output_size)).shape
    with torch.no_grad():
        for kernel in layer.dependency_kernels:
            kernel.zero_()
    torch.testing.assert_close(
        folded_layer(layer)(x, output_size=list(output_size)), layer(x, list(output_size)), rtol=0, atol=1e-12
    )


def network():
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(6, 4, 4, 2, 1),
        nn.BatchNorm2d(4), nn.ReLU(),
        nn.ConvTranspose2d(4, 2, 3, 2, 1, 1), nn.Tanh(),
    ).eval()  # fmt: skip


def converted(layer):
    model = pixelize.convert(network(), layer)
    with torch.no_grad():
        for module in model.modules():
            for kernel in getattr(module, "dependency_kernels", []):
                kernel.add_(torch.randn_like(kernel) * 0.02)
    return model


@pytest.mark.parametrize("layer", ["ipixeldcl", "pixeldcl"])
def test_a_folded_model_is_plain_and_computes_the_same(layer):
    model = converted(layer)
    folded = pixelize.fold(model)
    kinds = [type(m) for m in folded]
    assert kinds == [type(m) for m in network()]
    assert any(type(m) is not nn.ConvTranspose2d for m in model if isinstance(m, nn.ConvTranspose2d))
    x = torch.randn(2, 3, 20, 20)
    torch.testing.assert_close(
        folded(x)[..., 24:-24, 24:-24], model(x)[..., 24:-24, 24:-24], rtol=0, atol=1e-5
    )
    assert pixelize.fold(model, inplace=True) is model
    assert torch.equal(model(x), folded(x))


def test_an_untrained_ipixeldcl_folds_back_to_what_it_was():
    model = network()
    folded = pixelize.fold(pixelize.convert(model))
    for before, after in zip(model, folded, strict=True):
        if isinstance(before, nn.ConvTranspose2d):
            assert geometry_of(before) == geometry_of(after)
            torch.testing.assert_close(after.weight, before.weight, rtol=0, atol=0)
    with pytest.raises(PixelizeError, match="to fold"):
        pixelize.fold(folded)


def test_hooks_modes_and_frozen_weights_survive_folding():
    model = converted("pixeldcl").train()
    model[2].weight.requires_grad_(False)
    calls = []
    model[2].register_forward_hook(lambda *_: calls.append(1))
    folded = pixelize.fold(model)
    folded(torch.randn(1, 3, 8, 8))
    assert (
        calls == [1]
        and folded[2].training
        and not folded[2].weight.requires_grad
        and folded[5].weight.requires_grad
    )


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["ipixeldcl", "pixeldcl", "partial"])
def test_folded_and_unfolded_models_export_and_run_elsewhere(layer, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x = torch.randn(2, 3, 12, 14)
    if layer == "partial":
        model = network()
        model[2] = PixelDCL2d(6, 4, 4, 2, 1, input_stages=1)
        model.eval()
    else:
        model = converted(layer)
    for name, candidate in (("unfolded", model), ("folded", pixelize.fold(model))):
        candidate.requires_grad_(False)
        wanted = candidate(x)
        exported = torch.export.export(candidate, (x,))
        torch.testing.assert_close(exported.module()(x), wanted, rtol=0, atol=1e-6)
        path = tmp_path / f"{name}.onnx"
        torch.onnx.export(candidate, (x,), path, dynamo=True, verbose=False)
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_padded_resizes_run_in_onnx_at_other_sizes(dynamo, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(),
        nn.Upsample(scale_factor=3, mode="bilinear"), nn.Conv2d(4, 4, 5, padding=2), nn.ReLU(),
        nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 3, padding=1),
    ).eval()  # fmt: skip
    x = torch.randn(1, 3, 6, 5)
    converted = pixelize.convert(model, example_inputs=x)
    assert len(pixelize.report(converted).converted) == 3
    free = {2: torch.export.Dim("h", min=2, max=64), 3: torch.export.Dim("w", min=2, max=64)}
    for number, candidate in enumerate((converted, pixelize.fold(converted))):
        path = tmp_path / f"{number}.onnx"
        if dynamo:
            torch.onnx.export(candidate, (x,), path, dynamo=True, verbose=False, dynamic_shapes=(free,))
        else:
            names = {"input_names": ["x"], "dynamic_axes": {"x": {2: "h", 3: "w"}}}
            torch.onnx.export(candidate, (x,), path, dynamo=False, **names)
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for inputs in (x, torch.randn(1, 3, 7, 9)):
            (got,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
            torch.testing.assert_close(torch.from_numpy(got), model(inputs), rtol=0, atol=1e-5)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4, 2, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv_transpose2d(x, self.w, stride=2)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_what_is_folded_can_be_scripted_or_says_what_to_do_instead():
    x = torch.randn(1, 4, 5, 6)
    model = nn.Sequential(nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.ConvTranspose2d(4, 4, 2, 2)).eval()
    converted = pixelize.convert(model, example_inputs=x)
    with pytest.raises(PixelizeError, match=r"pixelize\.fold"):
        torch.jit.script(converted)
    assert torch.equal(torch.jit.script(pixelize.fold(converted))(x), model(x))
    resized = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1))
    shuffled = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.PixelShuffle(2))
    for model in (resized, shuffled, Functional()):
        folded = pixelize.fold(pixelize.convert(model.eval(), example_inputs=x))
        with pytest.raises(ValueError, match=r"torch\.export"):
            torch.jit.script(folded)
        with torch.no_grad():
            traced = torch.jit.trace(folded, x)
            for y in (x, torch.randn(2, 4, 7, 3)):
                torch.testing.assert_close(traced(y), model(y), rtol=1e-4, atol=1e-5)


class Scaled(nn.ConvTranspose2d):
    """A forward that does more than convolve, with a buffer, a child and a plain attribute of its own."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("scale", torch.rand(()))
        self.act, self.shift = nn.PReLU(4), 0.5

    def forward(self, x, output_size=None, gain=1.0):
        return self.act(super().forward(x, output_size) * self.scale) * gain + self.shift


@pytest.mark.parametrize("normed", [False, True])
def test_a_layer_of_somebodys_own_class_folds_to_that_class(normed):
    model, x = (
        nn.Sequential(nn.Conv2d(2, 4, 1), Scaled(4, 4, 4, 2, 1)).double().eval(),
        torch.randn(1, 2, 5, 7),
    )
    if normed:
        torch.nn.utils.parametrizations.weight_norm(model[1])
    folded = pixelize.fold(pixelize.convert(model))
    assert isinstance(folded[1], Scaled) and not isinstance(folded[1], iPixelDCL2d)
    assert torch.allclose(folded(x.double()), model(x.double()), rtol=0, atol=1e-14)
    middle = model[0](x.double())
    assert torch.allclose(folded[1](middle, gain=3.0), model[1](middle, gain=3.0), rtol=0, atol=1e-14)
    assert folded.state_dict().keys() >= {"1.scale", "1.act.weight"} and folded[1].shift == 0.5
    assert not any("dependency" in name for name in [*folded.state_dict(), *vars(folded[1])])
