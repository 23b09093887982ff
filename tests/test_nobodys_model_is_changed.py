"""What was once seen is not taken for granted; what was looked at is not changed; what a class is stays."""

from __future__ import annotations

import copy
import importlib
import io
import threading
import time
from functools import partialmethod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune

import pixelize
from pixelize.errors import NothingToConvertError
from pixelize.pages.measuring import measure
from pixelize.running.outputs import relative_error

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def up() -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(4, 4, 4, 2, 1)


def conv(out: int = 4) -> nn.Conv2d:
    return nn.Conv2d(4, out, 3, padding=1)


class Model(nn.Module):
    """A forward of one's own, and the modules that it calls."""

    def __init__(self, forward: Any, **modules: nn.Module) -> None:
        super().__init__()
        self.called = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.called(self, *args, **kwargs)


def error(a: nn.Module, b: nn.Module, *inputs: Any) -> float:
    with torch.no_grad():
        torch.manual_seed(0)
        expected = a(*inputs)
        torch.manual_seed(0)
        return relative_error(expected, b(*inputs))


def reason(model: nn.Module, *inputs: Any) -> str:
    with pytest.raises(NothingToConvertError) as told:
        pixelize.convert(model, example_inputs=inputs or None)
    return str(told.value)


# what a site assumes is known in the very call ------------------------------------------------------------


def guided() -> Model:
    return Model(lambda m, x, g: m.conv(F.interpolate(x, g.shape[-2:])), conv=conv()).eval()


@pytest.mark.parametrize("seen", [32, 16])
def test_a_guided_resize_follows_its_guide(seen):
    model, guide = guided(), torch.randn(1, 1, 64, 64)
    converted = pixelize.convert(model, example_inputs=(torch.randn(1, 4, seen, seen), guide))
    assert pixelize.report(converted).converted
    for side in (32, 48, 16, 30, 64):
        assert error(model, converted, torch.randn(1, 4, side, side), guide) < 1e-5
        converted(torch.zeros(1, 4, side, side), guide)  # a warm-up on nothing
        assert error(model, converted, torch.randn(1, 4, side, side), guide) < 1e-5


class DownAndUp(nn.Module):
    """Down by a stride and up to the size of the input: by two where that is even."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(4, 4, 3, 2, 1)
        self.conv = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.cat([F.interpolate(self.down(x), size=x.shape[-2:]), x], 1))


@pytest.mark.parametrize("dynamic", [False, None, True])
def test_so_does_compiled_code(dynamic):
    model = DownAndUp().eval()
    converted = pixelize.convert(model, example_inputs=torch.randn(2, 4, 8, 10))
    torch._dynamo.reset()
    compiled = torch.compile(converted, backend="eager", dynamic=dynamic, fullgraph=True)
    for size in ((8, 10), (9, 10), (11, 13), (12, 16), (2, 2)):
        assert error(model, compiled, torch.randn(2, 4, *size)) < 1e-5


def test_and_an_export_with_free_sizes():
    model = DownAndUp().eval()
    x = torch.randn(2, 4, 8, 10)
    converted = pixelize.convert(model, example_inputs=x)
    sides = {2: torch.export.Dim("h", min=4, max=512), 3: torch.export.Dim("w", min=4, max=512)}
    exported = torch.export.export(converted, (x,), dynamic_shapes=(sides,), strict=False).module()
    for size in ((8, 10), (9, 10), (11, 13)):
        assert error(model, exported, torch.randn(2, 4, *size)) < 1e-5


@pytest.mark.parametrize("layer", ["ipixeldcl", "dcl"])
def test_and_what_make_fx_writes_down(layer):
    class Net(DownAndUp):
        def __init__(self):
            super().__init__()
            self.up = up()

        def forward(self, x):
            return self.up(super().forward(x))

    model = Net().eval()
    x = torch.randn(2, 4, 8, 10)
    converted = pixelize.convert(model, layer, example_inputs=x)
    with torch.enable_grad():
        graph = make_fx(converted, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x)
    for size in ((8, 10), (9, 10), (11, 13), (6, 20)):
        assert error(model, graph, torch.randn(2, 4, *size)) < 1e-5


CAPTURES: dict[str, Any] = {
    "jit.trace": lambda model, x: torch.jit.trace(model, x),
    "fx": lambda model, x: torch.fx.symbolic_trace(model),
    "make_fx": lambda model, x: make_fx(model, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x),
    "export": lambda model, x: torch.export.export(
        model, (x,), dynamic_shapes=({2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},), strict=False
    ).module(),
    "compile": lambda model, x: torch.compile(model, backend="eager", dynamic=True),
}


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_trained_layer_is_the_same_function_however_it_is_captured(capture):
    torch.manual_seed(0)
    enlarging = nn.Sequential(conv(), nn.Upsample(scale_factor=2, mode="bilinear"), conv())
    for model in (DownAndUp(), enlarging):
        x = torch.randn(2, 4, 8, 10)
        converted = pixelize.convert(model.eval(), example_inputs=x)
        with torch.no_grad():  # weights that are no convolution's any more
            for parameter in converted.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        torch._dynamo.reset()
        captured = CAPTURES[capture](converted, x)
        for size in ((8, 10), (9, 10), (12, 7)):
            assert error(converted, captured, torch.randn(2, 4, *size)) < 1e-5


def test_what_a_subclass_of_tensors_makes_of_its_operators_is_kept():
    class Tagged(Tensor):
        pass

    model = nn.Sequential(up(), nn.Upsample(scale_factor=2), conv())
    for layer in ("ipixeldcl", "pixeldcl"):
        converted = pixelize.convert(model, layer, example_inputs=X)
        y = converted(X.as_subclass(Tagged))
        assert type(y) is Tagged
        torch.testing.assert_close(y.as_subclass(Tensor), converted(X))


def test_the_layer_is_what_runs_where_a_resize_is_what_it_reads():
    model = DownAndUp().eval()
    converted = pixelize.convert(model, example_inputs=torch.randn(2, 4, 8, 10))
    ran = []
    converted.conv.layer.register_forward_hook(lambda *_: ran.append(1))
    converted(torch.randn(2, 4, 8, 10))
    assert len(ran) == 1
    x = torch.randn(2, 8, 8, 10)  # called by itself: nobody knows what this is
    assert relative_error(model.conv(x), converted.conv(x)) < 1e-5


@pytest.mark.parametrize(
    "between",
    [
        lambda m, u: u + torch.randn_like(u) if m.training else u,
        lambda m, u: u.add_(torch.randn_like(u)) if m.training else u,
        lambda m, u: u.index_fill_(-1, torch.tensor([1]), 7.0) if m.training else u,
        lambda m, u: (u.detach()[..., :1].mul_(3), u)[1] if m.training else u,
        lambda m, u: (u.view(-1).__setitem__(0, 9.0), u)[1] if m.training else u,
        lambda m, u: u.roll(1, -1) if m.training else u,
    ],
)
def test_what_happens_in_training_only_is_seen_when_it_happens(between):
    model = Model(lambda m, x: m.conv(between(m, F.interpolate(x, scale_factor=2))), conv=conv())
    converted = pixelize.convert(model, example_inputs=X)
    assert pixelize.report(converted).converted
    for mode in (False, True):
        assert error(model.train(mode), converted.train(mode), X) < 1e-5
    with torch.inference_mode():
        assert error(model, converted, X) < 1e-5


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_what_is_rounded_on_the_way_to_the_convolution_is_seen(mode):
    def forward(m, x):
        u = F.interpolate(x, scale_factor=2, mode=mode)
        return m.conv(u.bfloat16().double() if m.training else u)

    model = Model(forward, conv=conv()).double()
    converted = pixelize.convert(model, example_inputs=X.double())
    for training in (False, True):
        assert error(model.train(training), converted.train(training), X.double()) < 1e-12


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "area", "nearest"])
def test_a_mode_that_is_an_argument(mode):
    model = Model(
        lambda m, x, mode="nearest": m.conv(F.interpolate(x, scale_factor=2, mode=mode)), conv=conv()
    )
    converted = pixelize.convert(model, example_inputs=X)
    assert error(model, converted, X, mode) < 1e-5


def test_vmap_autocast_empty_batches_and_single_pictures():
    model = nn.Sequential(nn.Upsample(scale_factor=2), conv(), conv(16), nn.PixelShuffle(2)).eval()
    converted = pixelize.convert(model, example_inputs=X)
    assert torch.func.vmap(converted)(X[:, None]).shape == (2, 1, 4, 24, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert converted(X).dtype == model(X).dtype == torch.bfloat16
    assert converted(X[:0]).shape == (0, 4, 24, 24)
    repeated = Model(lambda m, x: m.c(x.repeat_interleave(2, -1).repeat_interleave(2, -2)), c=conv())
    assert error(repeated, pixelize.convert(repeated, example_inputs=X), X[0]) < 1e-5


# a forward stays what it is -------------------------------------------------------------------------------


class Functional(nn.Module):
    """A transposed convolution called as a function, in a forward that branches."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4, 2, 2))
        self.alpha = 1.0
        self.last: Any = None

    def forward(self, x: Tensor, flag: Any = None) -> Tensor:
        self.last = x.shape
        with torch.autocast("cpu", torch.bfloat16, enabled=flag == "half"):
            y = F.conv_transpose2d(x, self.w, stride=2)
        return y * (1.0 if flag is None else 2.0) * self.alpha

    def penalty(self) -> Tensor:
        return self.w.square().sum()


@pytest.mark.parametrize("shown", [(), (X,)])
def test_a_functional_site_keeps_its_branches_contexts_and_parameter(shown):
    model = Functional()
    converted = pixelize.convert(model, example_inputs=shown or None)
    assert isinstance(converted.w_conv_transpose, pixelize.iPixelDCL2d)
    model.alpha = converted.alpha = 0.5
    for flag in (None, 1, "half"):
        assert error(model, converted, X, flag) == 0
        assert converted(X, flag).dtype == model(X, flag).dtype
    converted.penalty().backward()
    assert converted.w_conv_transpose.weight.grad is converted.w.grad is not None
    assert not isinstance(model.last, torch.fx.Proxy)


def test_reverting_gives_class_and_keys_back():
    for model in (Functional(), nn.Sequential(nn.Upsample(scale_factor=2), conv())):
        kinds, keys = [type(m) for m in model.modules()], list(model.state_dict())
        converted = pixelize.convert(model, example_inputs=X)
        assert isinstance(converted, type(model))
        reverted = pixelize.revert(converted)
        assert [type(m) for m in reverted.modules()] == kinds
        assert list(reverted.state_dict()) == keys


def test_models_are_pickled_and_copied():
    sub = nn.Sequential(Subclass(4, 4, 4, 2, 1), nn.Upsample(scale_factor=2), conv()).eval()
    for model in (sub, Functional()):
        converted = pixelize.convert(model, example_inputs=X)
        file = io.BytesIO()
        torch.save(converted, file)
        file.seek(0)
        for other in (torch.load(file, weights_only=False), copy.deepcopy(converted)):
            assert type(other) is type(converted) and error(converted, other, X) == 0


# the caller's model and process ---------------------------------------------------------------------------

GRIDS: dict[Any, Tensor] = {}


class Keeps(nn.Module):
    """Keeps what it computed: on itself, on its class, in its module."""

    shape: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.up = up()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.shape != x.shape:
            self.shape, self.grid = x.shape, torch.arange(x.shape[-1]).float()
        key = tuple(x.shape)
        if key not in GRIDS:
            GRIDS[key] = torch.ones_like(x)
        self.seen.append(x)
        y = self.up(x * GRIDS[key] + self.grid)
        y[y > 0] *= 2
        return y


def test_a_look_leaves_nothing_behind():
    model = Keeps().eval()
    held = dict(model.__dict__)
    for look in (pixelize.inspect, pixelize.convert):
        for inputs in ({}, {"example_inputs": X}):
            look(model, **inputs)
            assert model.__dict__ == held and not model.seen and model.shape is None
    assert type(model(X)) is Tensor


class Merging(nn.ConvTranspose2d):
    """As a LoRA layer's: going into evaluation mode writes to the weight."""

    merged = False

    def train(self, mode: bool = True) -> Any:
        self.merged = not mode
        return super().train(mode)


class Initialising(nn.Module):
    """Initialised by the first numbers that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, 4, 1, 1))
        self.done = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.done:
            self.loc.data.copy_(-x.mean((0, 2, 3), keepdim=True))
            self.done = True
        return x + self.loc


def test_modes_first_passes_and_hooks_are_the_callers():
    model = nn.Sequential(Merging(4, 4, 4, 2, 1), Initialising()).train()
    fired = []
    model[0].register_forward_hook(lambda *_: fired.append(1))
    for inputs in (None, X):
        pixelize.inspect(model, inputs)
        pixelize.convert(model, example_inputs=inputs)
    assert model[0].training and not model[0].merged
    assert not model[1].done and not model[1].loc.any() and not fired


LIBRARY = """
from torch import nn

COLLECTED = {}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.up = nn.Conv2d(4, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 4, 2, 1)
        self.seen = {} if METHOD else COLLECTED
        self.stem.register_forward_hook(self._keep if METHOD else collect)

    def _keep(self, module, args, output):
        self.seen["stem"] = output

    def forward(self, x):
        self.stem(x)
        return self.up((self.seen if METHOD else COLLECTED).pop("stem"))

def collect(module, args, output):
    COLLECTED["stem"] = output
"""


@pytest.mark.parametrize("method", [True, False])
def test_hooks_by_which_a_model_computes_stay_on(method, tmp_path, monkeypatch):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    name = f"a_library_with_hooks_{method}"
    (folder / f"{name}.py").write_text(LIBRARY.replace("METHOD", str(method)))
    monkeypatch.syspath_prepend(folder)
    model = importlib.import_module(name).Net().eval()
    fired = []
    model.up.register_forward_hook(lambda *_: fired.append(1))
    before = model(X)
    fired.clear()
    for inputs in (None, X):
        assert pixelize.inspect(model, inputs).capture == "record"
        converted = pixelize.convert(model, example_inputs=inputs)
        assert not fired and not model.seen
        torch.testing.assert_close(converted(X), before)
        fired.clear()
    assert pixelize.report(converted).error < 1e-5


def test_a_model_that_does_not_run_without_the_callers_hooks_says_so():
    kept = {}
    model = Model(lambda m, x: m.up(m.first(x) + kept["first"]), first=conv(), up=up())
    model.first.register_forward_hook(lambda module, args, output: kept.update(first=output))
    with pytest.raises(pixelize.ArgumentError, match=r"hooks on it off.*KeyError"):
        pixelize.convert(model, example_inputs=X)
    assert not kept


def test_inputs_are_written_to_by_nobody():
    x = X.clone()
    pixelize.convert(Model(lambda m, x: m.up(x.mul_(255)), up=up()), example_inputs=x)
    assert torch.equal(x, X)


def test_data_is_written_to_by_nobody():
    data = [torch.rand(2, 4, 16, 16) for _ in range(3)]
    kept = [batch.clone() for batch in data]
    model = Model(lambda m, x: m.up(m.first(x.mul_(2))), first=conv(), up=up()).eval()
    pixelize.convert(model, "pixeldcl", init="calibrate", data=data, example_inputs=data[0])
    pixelize.convert(model, "auto", data=data, example_inputs=data[0])
    pixelize.diagnose(model, data)
    found = measure({"one": model, "the same": model}, data, title="", told="")
    assert found.variants[1].error == 0
    assert all(torch.equal(a, b) for a, b in zip(data, kept, strict=True))


class Unguessable(nn.Module):
    """Takes what nobody guesses: it is traced on symbols."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor, a: dict[str, Tensor]) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2)) + a["b"]


def test_no_other_thread_notices():
    serving = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(40)), up()).eval()
    expected, problems = serving(X), []
    until = time.monotonic() + 3

    def serve() -> None:
        while time.monotonic() < until:
            try:
                with torch.no_grad():
                    assert torch.equal(serving(X), expected)
            except Exception as problem:
                problems.append(problem)

    def look() -> None:
        while time.monotonic() < until:
            try:
                pixelize.inspect(serving, X)
                model = Unguessable()
                assert pixelize.report(pixelize.convert(model)).converted  # nothing known to run it with
            except Exception as problem:
                problems.append(problem)

    threads = [threading.Thread(target=work) for work in (serve, look, look)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


# what is not the class that it looks like -----------------------------------------------------------------


class Subclass(nn.ConvTranspose2d):
    pass


class Standardised(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Any) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class Partial(nn.ConvTranspose2d):
    forward = partialmethod(nn.ConvTranspose2d.forward, output_size=None)


class Gained(nn.Conv2d):
    gain = 1.0

    def doubled(self) -> float:
        return 2 * self.gain


def test_what_computes_otherwise_is_listed_with_the_reason():
    bound = nn.Sequential(up()).eval()
    bound[0].forward = bound[0].forward
    assert "set on the instance" in reason(bound, X)
    for shown in ((), (X,)):
        model = nn.Sequential(nn.Upsample(scale_factor=2), Standardised(4, 4, 3, padding=1)).eval()
        assert "forward of its own" in reason(model, *shown)
        read = Model(
            lambda m, x: m.conv(F.interpolate(x, scale_factor=2)).mean() + F.conv2d(x, m.conv.weight).mean(),
            conv=conv(),
        )
        assert "weight is read" in reason(read, *shown)
    tiled = nn.Sequential(nn.Upsample(scale_factor=2), conv()).eval()
    tiled[1]._conv_forward = lambda x, w, b: 2 * F.conv2d(x, w, b, padding=1)
    assert "_conv_forward was set on the instance" in reason(tiled, X)
    assert "does not go through" in reason(nn.Sequential(Partial(4, 4, 4, 2, 1)), X)
    for module in (up(), conv()):
        prune.l1_unstructured(module, "weight", 0.5)
        assert "pruned" in reason(nn.Sequential(nn.Upsample(scale_factor=2), module).eval(), X)
    stale = conv()
    stale.weight = nn.Parameter(torch.randn(5, 4, 3, 3))
    stale.bias = nn.Parameter(torch.randn(5))
    assert "shape" in reason(nn.Sequential(nn.Upsample(scale_factor=2), stale).eval(), X)


def test_a_replacement_is_of_the_class_that_it_replaces():
    layer = Gained(4, 4, 3, padding=1, padding_mode="replicate")
    layer.gain = 3.0
    model = nn.Sequential(nn.Upsample(scale_factor=2), layer)
    fired: list[int] = []
    layer.register_full_backward_hook(lambda *_: fired.append(1))
    converted = pixelize.convert(model, example_inputs=X)
    assert isinstance(converted[1], Gained) and converted[1].doubled() == 6
    assert converted[1].padding_mode == "replicate"
    converted(X.clone().requires_grad_()).sum().backward()
    assert fired == [1]


@pytest.mark.parametrize("layer", ["ipixeldcl", "dcl"])
def test_layers_are_made_beside_a_replacement_from_its_class(layer):
    class Adapted(nn.Module):
        """As LoRA has it: ``type(base)`` makes the layers of low rank."""

        def __init__(self, base: Any) -> None:
            super().__init__()
            self.base = base
            self.a = type(base)(4, 2, base.kernel_size, base.stride, base.padding, bias=False)
            self.b = type(base)(2, base.out_channels, 1, bias=False)
            nn.init.zeros_(self.b.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.b(self.a(x))

    model = nn.Sequential(nn.Upsample(scale_factor=2), conv(16), nn.PixelShuffle(2)).eval()
    shuffled = nn.Sequential(conv(16), nn.PixelShuffle(2))
    for original, at in ((model, "1"), (shuffled, "0")):
        converted = pixelize.convert(original, layer, example_inputs=X)
        site = converted.get_submodule(at)
        before, made = converted(X), type(site)(4, 6, 3)
        assert type(made) is nn.Conv2d and made(X).shape[1] == 6
        if at == "1":
            converted.set_submodule(at, Adapted(site))
            torch.testing.assert_close(converted(X), before)
            converted(X).sum().backward()
            assert converted.get_submodule(at).b.weight.grad is not None
            torch.testing.assert_close(copy.deepcopy(converted)(X), before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("padding_mode", "circular"),
        ("padding", (0, 0)),
        ("dilation", (2, 2)),
        ("stride", (2, 2)),
        ("groups", 2),
        ("_conv_forward", lambda *_: None),
        ("weight", nn.Parameter(torch.zeros(16, 4, 3, 3))),
        ("bias", None),
    ],
)
def test_what_a_replacement_was_made_for_is_not_changed_in_silence(name, value):
    for model, at in (
        (nn.Sequential(nn.Upsample(scale_factor=2), conv(16)), "1"),
        (nn.Sequential(conv(16), nn.PixelShuffle(2)), "0"),
    ):
        converted = pixelize.convert(model, example_inputs=X)
        site, before = converted.get_submodule(at), converted(X)
        with pytest.raises(AttributeError, match=f"{name} of a converted Conv2d.*revert"):
            setattr(site, name, value)
        site.padding_mode = "zeros"  # as it is
        assert torch.equal(converted(X), before)
        setattr(pixelize.revert(converted).get_submodule(at), name, value)


def test_what_is_frozen_stays_frozen():
    model = nn.Sequential(nn.Upsample(scale_factor=2), conv())
    model[1].weight.requires_grad_(False)
    converted = pixelize.convert(model, "dcl")
    assert [n for n, p in converted.named_parameters() if p.requires_grad] == ["1.layer.bias"]


@pytest.mark.parametrize(("layer", "frozen"), [("dcl", True), ("ipixeldcl", False)])
def test_a_weight_computed_from_several_parameters_is_repaired(layer, frozen):
    torch.manual_seed(0)
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), norm(nn.ConvTranspose2d(6, 3, 4, 2, 1)))
    model.eval().requires_grad_(not frozen)
    x = torch.randn(40, 4, 8, 8)
    before = model(x)
    repaired = pixelize.repair(model, x, layer=layer, progress=False)
    assert torch.equal(model(x), before) and not torch.equal(repaired(x), before)
    assert {p.requires_grad for p in repaired.parameters()} == {not frozen}


@pytest.mark.parametrize("between", [nn.Identity(), nn.BatchNorm2d(16), nn.PReLU(16), nn.Dropout(0.1)])
def test_a_shuffle_is_seen_behind_a_norm(between):
    model = nn.Sequential(conv(16), between, nn.PixelShuffle(2)).eval()
    converted = pixelize.convert(model, example_inputs=X)
    assert [s.kind for s in pixelize.report(converted).converted] == ["pixel_shuffle"]
    assert error(model, converted, X) < 1e-5


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4, 2, 2))
        self.up = up()

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.conv_transpose2d(x, self.w, stride=2))


def test_a_feature_extractor_goes_on_changing_its_graph():
    features = pytest.importorskip("torchvision.models.feature_extraction")
    model = features.create_feature_extractor(Both(), {"up": "o"}).eval()
    converted = pixelize.convert(model, example_inputs=X)
    for mode in (True, False):
        assert error(model.train(mode), converted.train(mode), X) < 1e-5


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dec = Both()

    def forward(self, x: Tensor) -> Tensor:
        return self.dec(x)


def test_a_part_is_converted_and_the_whole_is_saved(tmp_path):
    model = Whole()
    model.dec = pixelize.convert(model.dec, example_inputs=X)
    assert error(model, pixelize.load(pixelize.save(model, tmp_path / "saved"), Whole()), X) == 0


class Delegating(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["inner"], name)


def test_a_wrapper_that_delegates_around_something_compiled():
    inner = nn.Sequential(up())
    converted = pixelize.convert(Delegating(torch.compile(inner, backend="eager")), example_inputs=X)
    assert isinstance(converted, Delegating) and pixelize.report(converted).converted
