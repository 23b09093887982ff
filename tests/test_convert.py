"""`convert` on models however they carry their transposed convolutions: nothing changes, nothing is lost."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from wrapped import WRAPPERS, Deaf, Decoder, Plain

import pixelize
from pixelize import PixelDCL2d, iPixelDCL2d

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def snapshot(model):
    return (
        type(model),
        {k: v.clone() for k, v in model.state_dict().items()},
        [type(m) for m in model.modules()],
    )


def same(a, b):
    return (
        a[0] is b[0]
        and a[2] == b[2]
        and a[1].keys() == b[1].keys()
        and all(torch.equal(a[1][k], b[1][k]) for k in a[1])
    )


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_default_conversion_changes_nothing(wrap):
    model = Decoder(WRAPPERS[wrap]).double()
    x = torch.randn(2, 3, 3, 4, dtype=torch.float64)
    model(x)  # the norms have run, as in a trained model
    model.eval()
    before = snapshot(model)
    converted = pixelize.convert(model, example_inputs=x)
    assert same(before, snapshot(model))
    assert type(converted) is Decoder and converted.version == "1"
    torch.testing.assert_close(converted(x), model(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(converted.decode(converted.encode(x)), model(x), rtol=1e-12, atol=1e-12)
    report = pixelize.report(converted)
    assert {s.name for s in report.converted} == {"up", "twice", "last"}
    assert [s.name for s in report.skipped] == ["first"] and "stride 1" in report.skipped[0].reason
    assert report.error <= 1e-12 and report.multiply_adds_after > report.multiply_adds_before > 0
    assert isinstance(converted.up, iPixelDCL2d) and converted.unseen[0] is converted.last
    new = converted.state_dict().keys() - model.state_dict().keys()
    assert all("dependency_kernels" in k for k in new) and len(new) == 8  # twice is stored under two names
    missing = converted.load_state_dict(model.state_dict(), strict=False)
    assert set(missing.missing_keys) == new and not missing.unexpected_keys


@pytest.mark.parametrize("layer", ["ipixeldcl", "pixeldcl"])
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_revert_gives_the_original_back(wrap, layer):
    model = Decoder(WRAPPERS[wrap]).eval()
    x = torch.randn(1, 3, 3, 3)
    converted = pixelize.convert(model, layer, example_inputs=x)
    reverted = pixelize.revert(converted)
    assert same(snapshot(model), snapshot(reverted)) and not any(
        isinstance(m, iPixelDCL2d) for m in reverted.modules()
    )
    torch.testing.assert_close(reverted(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_converted_models_train_in_place_and_do_not_revert_then(wrap):
    model = Decoder(WRAPPERS[wrap])
    up = model.up
    pixelize.convert(model, inplace=True)
    assert model.up is up and isinstance(up, iPixelDCL2d)
    x = torch.randn(2, 3, 3, 3)
    optimizer = torch.optim.Adam(pixelize.param_groups(model, 1e-3))
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert all(k.any() for k in up.dependency_kernels)
    with torch.no_grad():
        model.eval()(x)  # torch cannot copy an old norm's weight while it has a gradient history
    clone = copy.deepcopy(model)
    torch.testing.assert_close(clone(x), model(x), rtol=0, atol=0)
    with pytest.raises(pixelize.PixelizeError, match=r"up: .*trained since"):
        pixelize.revert(model)
    assert isinstance(model.up, iPixelDCL2d)


def test_pixeldcl_inherits_the_first_phase_of_a_site():
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 4, 2, 1))
    x = torch.randn(1, 3, 5, 5)
    converted = pixelize.convert(model, "pixeldcl", example_inputs=x)
    assert isinstance(converted[0], PixelDCL2d)
    torch.testing.assert_close(converted(x)[..., ::2, ::2], model(x)[..., ::2, ::2])
    assert 0 < pixelize.report(converted).converted[0].error < 1 and pixelize.report(converted).error > 0


def test_hooks_flags_and_frozen_parameters_stay():
    model = Decoder()
    model.up.weight.requires_grad_(False)
    model.last.eval()
    seen = []
    handle = model.up.register_forward_hook(lambda m, args, out: seen.append(type(m).__name__))
    pixelize.convert(model, inplace=True)
    assert not model.up.weight.requires_grad and not any(k.requires_grad for k in model.up.dependency_kernels)
    assert model.twice.weight.requires_grad and model.training and not model.last.training
    seen.clear()  # the survey runs the model, hooks and all
    model(torch.randn(2, 3, 2, 2))
    assert seen == ["iPixelDCL2d"]
    handle.remove()
    model(torch.randn(2, 3, 2, 2))
    assert len(seen) == 1


def test_shared_modules_and_tied_weights_stay_so():
    model = Decoder()
    model.tied = nn.ConvTranspose2d(4, 4, 3, 2, 1, 1)
    model.tied.weight = model.twice.weight
    converted = pixelize.convert(model)
    assert converted.twice is converted.again and converted.tied.weight is converted.twice.weight
    rows = {s.name: s for s in pixelize.report(converted).converted}
    assert rows["twice"].names == ("twice", "again")


def test_subclasses_keep_their_methods_and_those_that_cannot_be_converted_are_told():
    model = nn.Sequential(Plain(2, 3, 2, 2), Deaf(3, 3, 2, 2))
    converted = pixelize.convert(model)
    assert isinstance(converted[0], Plain) and converted[0].channels() == (2, 3)
    assert type(converted[1]) is Deaf and "super().forward()" in pixelize.report(converted).skipped[0].reason


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    model = Decoder().eval().to(dtype)
    x = torch.randn(1, 3, 3, 3, dtype=dtype)
    converted = pixelize.convert(model, example_inputs=x)
    assert all(p.dtype == dtype for p in converted.parameters())
    # the bias is added to the rounded output, where torch rounds once: a unit in the last place
    torch.testing.assert_close(converted(x), model(x), rtol=0.02, atol=0.002)
    reverted = pixelize.revert(converted)
    torch.testing.assert_close(reverted(x), model(x), rtol=0, atol=0)


def test_meta_device():
    with torch.device("meta"):
        model = Decoder()
    converted = pixelize.convert(model)
    assert converted.up.dependency_kernels[0].device.type == "meta"
    pixeldcl = pixelize.convert(model, "pixeldcl")
    assert (
        isinstance(pixeldcl.up, PixelDCL2d) and "meta device" in pixelize.report(pixeldcl).converted[0].note
    )


def test_compiled_models():
    model = Decoder().eval()
    x = torch.randn(1, 3, 3, 3)
    compiled = torch.compile(model, backend="eager")
    expected = compiled(x)
    converted = pixelize.convert(compiled)
    assert (
        type(converted) is type(compiled)
        and isinstance(converted.up, iPixelDCL2d)
        and type(model.up) is nn.ConvTranspose2d
    )
    torch.testing.assert_close(converted(x), expected)
    assert pixelize.convert(compiled, inplace=True) is compiled
    assert isinstance(model.up, iPixelDCL2d) and len(pixelize.report(compiled).converted) == 3
    torch.testing.assert_close(compiled(x), expected)


def test_graph_modules():
    model = Decoder().eval()
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(1, 3, 3, 3)
    converted = pixelize.convert(traced, example_inputs=x)
    assert isinstance(converted, torch.fx.GraphModule) and isinstance(converted.up, iPixelDCL2d)
    torch.testing.assert_close(converted(x), model(x))


def test_what_cannot_be_converted_is_listed_and_untouched():
    model = nn.ModuleDict(
        {
            "script": torch.jit.script(nn.ConvTranspose2d(2, 2, 2, 2)),
            "lazy": nn.LazyConvTranspose2d(2, 2, 2),
            "same": nn.ConvTranspose2d(2, 2, 3),
            "parallel": nn.DataParallel(nn.ConvTranspose2d(2, 2, 2, 2)),
            "quantised": torch.ao.nn.quantized.ConvTranspose2d(2, 2, 2, 2),
            "good": nn.ConvTranspose2d(2, 2, 2, 2),
        }
    )
    report = pixelize.inspect(model)
    reasons = {s.name: s.reason for s in report.skipped}
    assert [s.name for s in report.found] == ["good"]
    assert "before torch.jit" in reasons["script"] and "run the model once" in reasons["lazy"]
    assert "stride 1" in reasons["same"]
    assert "model.module" in reasons["parallel.module"] and "quantise" in reasons["quantised"]
    pixelize.convert(model, inplace=True)
    assert type(model["lazy"]) is nn.LazyConvTranspose2d and isinstance(model["good"], iPixelDCL2d)
    for name in ("parallel", "script"):
        with pytest.raises(
            pixelize.NothingToConvertError, match=name if name == "script" else "model.module"
        ):
            pixelize.convert(model[name])


def test_include_and_exclude():
    model = Decoder()
    names = lambda m: {s.name for s in pixelize.report(m).converted}  # noqa: E731
    assert names(pixelize.convert(model, include="up")) == {"up"}
    assert names(pixelize.convert(model, include=["t*", "last"])) == {"twice", "last"}
    assert names(pixelize.convert(model, include="again")) == {"twice"}
    assert names(pixelize.convert(model, exclude="*s*")) == {"up", "twice"}
    assert names(pixelize.convert(model, include=lambda site: site.geometry.groups == 2)) == {"last"}
    converted = pixelize.convert(model, include="up")
    assert "include" in {s.name: s.reason for s in pixelize.report(converted).skipped}["last"]
    rest = pixelize.convert(converted, include="last")
    assert isinstance(rest.up, iPixelDCL2d) and isinstance(rest.last, iPixelDCL2d)


def test_designs():
    model = Decoder()
    converted = pixelize.convert(
        model, dependency_groups=-1, dependency_kernel_size=(3, 5), schedule="masked"
    )
    assert converted.up.dependency_kernels[0].shape == (4, 1, 3, 5) and converted.last.dependency_groups == 2
    assert pixelize.convert(model, init="random").up.dependency_kernels[0].any()
    with pytest.raises(pixelize.ArgumentError, match="does not divide"):
        pixelize.convert(model, dependency_groups=3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(layer="deconv"), "choose one of 'ipixeldcl'"),
        (dict(init="pretrained"), "choose one of 'inherit'"),
        (dict(sites="resize"), "pass a tuple"),
        (dict(sites=("resizes",)), "choose from"),
        (dict(include="decoder.*"), "matches no site; the model has: up, twice, last"),
        (dict(exclude=["up", "nothing"]), "'nothing' matches no site"),
        (dict(data=[torch.zeros(1)]), "data is not used"),
        (dict(init="calibrate"), "needs data"),
        (dict(layer="dcl", init="random"), "is exact"),
        (dict(schedule="spiral"), "schedule is 'spiral'"),
        (dict(example_inputs=torch.randn(1, 99, 2, 2)), "could not be run on example_inputs"),
    ],
)
@pytest.mark.parametrize("inplace", [True, False])
def test_bad_arguments_are_told_and_change_nothing(arguments, message, inplace):
    model = Decoder()
    before = snapshot(model)
    with pytest.raises(pixelize.ArgumentError, match=message):
        pixelize.convert(model, inplace=inplace, **arguments)
    assert same(before, snapshot(model)) and not hasattr(model, "_pixelize_report")


def test_nothing_to_convert_lists_what_was_found():
    with pytest.raises(pixelize.NothingToConvertError, match="No up-sampling layer was found"):
        pixelize.convert(nn.Linear(2, 2))
    with pytest.raises(pixelize.NothingToConvertError, match="stride 1 does not up-sample"):
        pixelize.convert(nn.Sequential(nn.ConvTranspose2d(2, 2, 3)))
    with pytest.raises(
        pixelize.NothingToConvertError, match=r"layer='ipixeldcl' or 'pixeldcl' would convert it"
    ):
        pixelize.convert(Decoder(), "dcl")
    with pytest.raises(
        pixelize.NothingToConvertError, match=r"would be converted with sites=.*'conv_transpose'"
    ):
        pixelize.convert(Decoder(), sites=("resize_conv",))
    with pytest.raises(pixelize.ArgumentError, match="not a torch"):
        pixelize.convert("smp:Linknet")
    with pytest.raises(pixelize.PixelizeError, match="was not converted"):
        pixelize.report(Decoder())
    with pytest.raises(pixelize.PixelizeError, match="nothing to revert"):
        pixelize.revert(Decoder())


class TF32(TorchDispatchMode):
    """A GPU's convolutions, as torch has them compute by default: operands rounded to 10 bits of mantissa."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            args = (_rounded(args[0]), _rounded(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


def _rounded(t):
    if t.is_meta or t.dtype != torch.float32:
        return t
    bits = t.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("layer", ["ipixeldcl", "dcl"])
def test_a_conversion_is_judged_by_the_arithmetic_that_it_runs_in(layer):
    torch.manual_seed(0)
    blocks = [
        module
        for _ in range(4)
        for module in (nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3, padding=1), nn.InstanceNorm2d(8))
    ]
    model, x = nn.Sequential(*blocks).eval(), torch.randn(1, 8, 4, 4)
    with TF32():
        converted = pixelize.convert(model, layer, example_inputs=x)
    assert pixelize.report(converted).error > 1e-4  # of TF32: hundreds of times float32's
    torch.testing.assert_close(converted(x), model(x), rtol=1e-4, atol=1e-4)


def test_converting_twice_is_a_no_op_that_says_so():
    model = pixelize.convert(Decoder())
    before = snapshot(model)
    with pytest.warns(pixelize.PixelizeWarning, match="converted already"):
        again = pixelize.convert(model)
    assert same(before, snapshot(again)) and again is not model and len(pixelize.report(again).converted) == 3
    with pytest.warns(pixelize.PixelizeWarning):
        assert pixelize.convert(model, inplace=True) is model


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_resize_that_a_converted_convolution_reads_is_no_site_of_its_own(mode):
    model = nn.Sequential(nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(3, 3, 3, padding=1)).eval()
    x = torch.randn(1, 3, 5, 7)
    converted = pixelize.convert(model, example_inputs=x)
    found = pixelize.inspect(converted, x)
    assert not found.found and "converted already" in found.skipped[0].reason
    with pytest.warns(pixelize.PixelizeWarning, match="converted already"):
        pixelize.convert(converted, example_inputs=x)


def test_a_second_conversion_reports_what_the_first_one_did_too():
    model = Decoder()
    first = pixelize.convert(model, "pixeldcl", include="up")
    second = pixelize.convert(first, "ipixeldcl", dependency_kernel_size=5, include="last")
    report, before = pixelize.report(second), pixelize.report(first)
    assert {s.name: s.layer for s in report.converted} == {"last": "iPixelDCL2d", "up": "PixelDCL2d"}
    assert {s.name for s in report.skipped} == {s.name for s in before.skipped} - {"last"}
    assert len({s.name for s in report.sites}) == len(report.sites) == len(before.sites)
    assert report.parameters_before == before.parameters_before < before.parameters_after
    next(s for s in report.converted if s.name == "up").error = -1.0
    assert before.converted[0].error != -1.0
    pixelize.revert(first)
    assert len(pixelize.report(pixelize.convert(first)).converted) == 3


class FailAt(TorchDispatchMode):
    """The n-th operator from now on runs out of memory; ``seen`` counts them."""

    def __init__(self, n):
        super().__init__()
        self.n, self.seen = n, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        if self.seen == self.n:
            raise RuntimeError("out of memory")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layer", ["ipixeldcl", "pixeldcl"])
def test_a_failure_anywhere_leaves_the_model_as_it_was(layer):
    def convert(model, n):
        with FailAt(n) as mode:
            pixelize.convert(model, layer, init="random", inplace=True)
        return mode.seen

    last = convert(Decoder(WRAPPERS["weight_norm"]), 0)
    failed = 0
    for n in (*range(1, last, last // 12), last - 1, last):
        model = Decoder(WRAPPERS["weight_norm"])
        before, random = snapshot(model), torch.get_rng_state()
        try:  # what fails while the model is looked at is seen in another way
            convert(model, n)
        except (RuntimeError, pixelize.ConversionError) as error:
            assert "out of memory" in str(error)
            assert same(before, snapshot(model)) and torch.equal(random, torch.get_rng_state())
            failed += 1
    assert failed > 3


def test_param_groups():
    model = pixelize.convert(Decoder())
    groups = pixelize.param_groups(model, 1e-3)
    assert [(g["name"], g["lr"]) for g in groups] == [("inherited", 1e-3), ("dependency", 1e-3 / 20)]
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    model.requires_grad_(False)
    with pytest.raises(pixelize.ArgumentError, match="frozen"):
        pixelize.param_groups(model, 1e-3)


def test_report_and_inspect_print_and_serialise():
    x = torch.randn(1, 3, 3, 3)
    report = pixelize.inspect(Decoder(), x)
    assert "stride 1 does not up-sample" in str(report).replace("\n", " ") and report.multiply_adds_before > 0
    assert json.loads(json.dumps(report.to_dict()))["sites"][0]["name"] == "up"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = str(pixelize.report(pixelize.convert(Decoder(), example_inputs=x)))
    assert "iPixelDCL2d" in text and "3 converted" in text
