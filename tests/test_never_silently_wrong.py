"""What a converted model is asked for that its layers cannot give is right, refused or said; never wrong."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.fusion import fuse_conv_bn_eval

import pixelize
from pixelize.running.outputs import relative_error

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def conv(out=4):
    return nn.Conv2d(4, out, 3, padding=1)


class Block(nn.Module):
    """A resize and a convolution; its weight is read where the model is made, and a norm's in its forward."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(4)
        nn.init.normal_(self.conv.weight)

    def init_weights(self):
        nn.init.normal_(self.conv.weight)

    def up(self, x):
        return self.norm(self.conv(F.interpolate(x, scale_factor=2)))

    def forward(self, x):
        return self.up(x) * self.norm.weight.mean()


class InTraining(Block):
    def forward(self, x):
        return self.up(x) + (F.conv2d(x, self.conv.weight, padding=1).mean() if self.training else 0)


class ByALocalName(Block):
    def forward(self, x, flag=False):
        inner = self.conv
        return self.up(x) + inner.weight.mean() if flag else self.up(x)


class InAMethod(Block):
    @torch.no_grad()
    def deploy(self):
        return [w * 2 for w in (self.conv.weight,)]


class FromOutside(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()

    def forward(self, x):
        return self.block(x) + (self.block.conv.weight.mean() if self.training else 0)


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Upsample(scale_factor=2), conv())

    def forward(self, x):
        return self.net(x) + (self.net[1].weight.mean() if self.training else 0)


class BeforeAShuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv(16)

    def forward(self, x):
        return F.pixel_shuffle(self.conv(x), 2) + (self.conv.weight.mean() if self.training else 0)


def by_getattr(m):
    return sum(getattr(m, name).weight.mean() for name in ("conv", "norm"))


def by_attrgetter(m):
    return operator.attrgetter("conv.weight")(m).mean()


def by_parameters(m):
    return sum(p.square().mean() for p in m.parameters())


def by_name_among_parameters(m):
    return dict(m.named_parameters())["conv.weight"].mean()


def from_the_state_dict(m):
    return m.state_dict()["conv.weight"].mean()


def of_all_children(m):
    return torch.stack([c.weight.mean() for c in m.children() if isinstance(c, nn.Conv2d)]).sum()


def of_the_registry(m):
    return m._modules["conv"]._parameters["weight"].mean()


def through_vars(m):
    return vars(m)["_modules"]["conv"].weight.mean()


INDIRECT = (by_getattr, by_attrgetter, by_parameters, by_name_among_parameters, from_the_state_dict)
INDIRECT = (*INDIRECT, of_all_children, of_the_registry, through_vars)


class ReadingWhenTrained(Block):
    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def forward(self, x):
        return self.up(x) + (self.reads(self) if self.training else 0)


@pytest.mark.parametrize("reads", INDIRECT)
def test_a_weight_that_is_read_in_training_stays_however_it_is_read(reads):
    found = pixelize.inspect(ReadingWhenTrained(reads).eval(), X)
    assert not found.found and "its weight is read by" in found.skipped[0].reason


class Flagged(Block):
    def forward(self, x, flag=False):
        return self.up(x) + (self.reads() if flag else 0)


class Penalized(Block):
    def forward(self, x, flag=False):
        return self.up(x) + (sum(p.square().mean() for p in self.parameters()) if flag else 0)


FLAGGED = [type(f.__name__, (Flagged,), {"reads": f}) for f in INDIRECT if f is not by_parameters]


@pytest.mark.parametrize("kind", [*FLAGGED, Penalized])
def test_a_weight_that_is_read_under_a_flag_stays_however_it_is_read(kind):
    found = pixelize.inspect(kind().eval(), X)
    assert not found.found and "its weight is read by" in found.skipped[0].reason


class ManyConvolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([conv(), conv()])

    def forward(self, x, flag=False):
        for c in self.convs:
            x = c(F.interpolate(x, scale_factor=2))
        return x * sum(c.weight.mean() for c in self.convs) if flag else x


def test_a_weight_that_is_read_in_a_loop_over_a_list_stays():
    found = pixelize.inspect(ManyConvolutions().eval(), X)
    assert not found.found and all("its weight is read by" in row.reason for row in found.skipped)


class AskingForItsType(Block):
    """Reads nothing of a weight but what every weight has."""

    def forward(self, x):
        return self.up(x.to(next(self.parameters()).dtype))


def test_a_model_that_asks_its_parameters_for_their_type_is_converted():
    assert [site.name for site in pixelize.inspect(AskingForItsType().eval(), X).found] == ["conv"]


@pytest.mark.parametrize("kind", [InTraining, ByALocalName, InAMethod, FromOutside, Counted, BeforeAShuffle])
def test_a_weight_that_is_read_under_another_flag_stays(kind):
    found = pixelize.inspect(kind().eval(), X)
    assert not found.found and "its weight is read by" in found.skipped[0].reason


def test_a_weight_that_is_read_when_the_model_is_made_is_converted():
    assert [site.name for site in pixelize.inspect(Block().eval(), X).found] == ["conv"]


class Watching(nn.Module):
    """Asks for the gradient of what was resized."""

    def __init__(self, ask):
        super().__init__()
        self.up, self.conv, self.ask, self.found = nn.Upsample(scale_factor=2), conv(), ask, []

    def forward(self, x):
        u = self.up(x)
        if u.requires_grad:
            self.ask(u, self.found)
        return self.conv(u)


def kept(u, found):
    u.retain_grad()
    found.append(u)


ASKING = {"retain_grad": kept, "register_hook": lambda u, found: u.register_hook(found.append)}


def gradient(model):
    model.found.clear()
    model(X.clone().requires_grad_()).square().sum().backward()
    value = model.found[0]
    return value.grad if value.grad is not None else value


@pytest.mark.parametrize("ask", ASKING)
def test_the_gradient_of_a_resized_picture_is_that_of_the_original(ask):
    model = Watching(ASKING[ask]).eval()
    assert relative_error(gradient(model), gradient(pixelize.convert(model, example_inputs=X))) < 1e-5


def test_backward_hooks_see_the_gradients_of_the_original():
    seen = []
    model = Watching(lambda u, found: None).eval()
    for one in (model, pixelize.convert(model, example_inputs=X)):
        handles = [
            one.up.register_full_backward_hook(lambda module, given, got: seen.append(got[0])),
            one.conv.register_full_backward_hook(lambda module, given, got: seen.append(given[0])),
        ]
        one(X.clone().requires_grad_()).square().sum().backward()
        for handle in handles:
            handle.remove()
    assert relative_error(seen[:2], seen[2:]) < 1e-5


def normed(make, seed=0):
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(4)
    for tensor in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
        tensor.uniform_(0.5, 2)
    return nn.Sequential(make(), norm).eval()


@pytest.mark.parametrize("layer", ["ipixeldcl", "pixeldcl"])
def test_a_norm_is_folded_into_a_layer_only_where_that_is_right(layer):
    model = normed(lambda: nn.ConvTranspose2d(4, 4, 4, 2, 1))
    model = pixelize.convert(model, layer, init="random" if layer == "pixeldcl" else "inherit")
    if layer == "ipixeldcl":
        assert relative_error(model(X), fuse_conv_bn_eval(*model, transpose=True)(X)) < 1e-5
        for kernel in model[0].dependency_kernels:
            nn.init.normal_(kernel, std=0.1)
    with pytest.raises(pixelize.PixelizeError, match=r"pixelize\.fold"):
        fuse_conv_bn_eval(*model, transpose=True)
    folded = pixelize.fold(model)
    assert relative_error(folded(X), fuse_conv_bn_eval(*folded, transpose=True)(X)) < 1e-5


def test_a_norm_is_not_folded_into_a_trained_pixel_convolution():
    model = pixelize.convert(normed(conv), sites=("conv",), example_inputs=X)
    for kernel in model[0].dependency_kernels:
        nn.init.normal_(kernel, std=0.1)
    with pytest.raises(pixelize.PixelizeError, match="norm cannot be folded"):
        fuse_conv_bn_eval(*model)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_other_weights_are_taken_by_a_trained_layer(scale):
    model = pixelize.convert(normed(lambda: nn.ConvTranspose2d(4, 4, 4, 2, 1)))
    for kernel in model[0].dependency_kernels:
        nn.init.normal_(kernel, std=0.1)
    state = {key: torch.randn_like(value) for key, value in model.state_dict().items() if value.dim()}
    model.load_state_dict(state, strict=False, assign=True)
    model[0].weight = nn.Parameter(
        model[0].weight.detach() * scale
    )  # of all channels alike: the layer's gain
    assert torch.equal(model[0].weight, state["0.weight"] * scale)


def test_fused_by_fx_a_converted_model_computes_what_it_did():
    model = nn.Sequential(
        nn.Upsample(scale_factor=2), *normed(conv), *normed(lambda: nn.ConvTranspose2d(4, 4, 4, 2, 1)),
        *normed(lambda: conv(4)), conv(16), nn.PixelShuffle(2),
    ).eval()  # fmt: skip
    converted = pixelize.convert(model, example_inputs=X)
    assert len(pixelize.report(converted).converted) == 3
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    assert relative_error(converted(X), fuse(converted)(X)) < 1e-5


class Yielding(nn.Module):
    """A forward that gives one picture after another, maybe without end."""

    def __init__(self, endless=False):
        super().__init__()
        self.conv, self.up, self.endless = conv(), nn.ConvTranspose2d(4, 4, 4, 2, 1), endless

    def forward(self, x):
        yield self.up(x)
        while True:
            yield self.conv(F.interpolate(x, scale_factor=2.0))
            if not self.endless:
                return


@pytest.mark.parametrize("endless", [False, True])
@pytest.mark.parametrize("inputs", [X, None])
def test_what_a_generator_computes_is_seen(endless, inputs):
    model = Yielding(endless).eval()
    found = pixelize.inspect(model, inputs)
    assert [site.name for site in found.found] == ["up"]
    assert [(site.name, site.kind) for site in found.skipped] == [("conv", "resize_conv")]
    converted = pixelize.convert(model, example_inputs=inputs)
    assert pixelize.report(converted).error < 1e-6
    assert relative_error(next(model(X)), next(converted(X))) < 1e-6


def test_a_model_that_reads_its_generator_itself_is_converted():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Yielding()

        def forward(self, x):
            return torch.stack(list(self.inner(x)))

    model = Whole().eval()
    converted = pixelize.convert(model, example_inputs=X)
    assert len(pixelize.report(converted).converted) == 2
    assert relative_error(model(X), converted(X)) < 1e-5


class Demanding(Watching):
    """A forward that does not run without gradients."""

    def forward(self, x):
        u = self.up(x)
        self.ask(u, self.found)
        return self.conv(u)


@pytest.mark.parametrize("ask", ASKING)
def test_a_forward_that_needs_gradients_is_looked_at_with_them(ask):
    model = Demanding(ASKING[ask]).eval()
    model.up = nn.ConvTranspose2d(4, 4, 4, 2, 1)  # whose weight has a gradient
    converted = pixelize.convert(model, example_inputs=X)
    assert pixelize.report(converted).error < 1e-6 and not model.found
    assert all(p.grad is None for p in model.parameters())
    assert relative_error(model(X), converted(X)) < 1e-6


def test_where_nothing_could_be_seen_nothing_is_said_of_it():
    class Opaque(nn.Module):
        def forward(self, x):
            raise RuntimeError("not today")

    with pytest.raises(pixelize.NothingToConvertError, match="could not be seen"):
        pixelize.convert(Opaque(), example_inputs=X)


@pytest.mark.parametrize(
    "name, value", [("mode", "nearest"), ("scale_factor", 3.0), ("size", (5, 5)), ("align_corners", True)]
)
def test_what_a_resize_was_converted_for_cannot_be_changed_in_silence(name, value):
    model = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.ReLU()).eval()
    converted = pixelize.convert(model, example_inputs=X, sites=("resize",))
    with pytest.raises(AttributeError, match="cannot be changed"):
        setattr(converted[0], name, value)
    converted[0].mode = "bilinear"  # what it is
    setattr(pixelize.revert(converted)[0], name, value)


class WithoutNumbers(Block):
    """Part of what it gives is no number, whatever its weights are."""

    def __init__(self, columns):
        super().__init__()
        self.columns = columns

    def forward(self, x):
        y = self.up(x).clone()
        y[..., : self.columns] = float("nan")
        return y


@pytest.mark.parametrize("columns", [1, 12])
def test_outputs_that_are_no_numbers_are_not_called_equal(columns):
    with pytest.warns(pixelize.PixelizeWarning, match=r"all values" if columns == 12 else r"8.33 %"):
        converted = pixelize.convert(WithoutNumbers(columns).eval(), example_inputs=X)
    report = pixelize.report(converted)
    assert any("NaN" in note for note in report.notes)
    assert (report.error is None) == (columns == 12)
    with pytest.warns(pixelize.PixelizeWarning, match="which hold such values"):
        pixelize.convert(Block().eval(), example_inputs=X * float("nan"))


@pytest.mark.parametrize("layer", ["ipixeldcl", "pixeldcl", "dcl"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 4, 2, 1)),
        lambda: nn.Sequential(nn.Upsample(scale_factor=2), conv()),
        lambda: nn.Sequential(conv(8), nn.PixelShuffle(2)),
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(4, 4, 4, 2, 1))),
    ],
)
def test_a_weight_that_is_no_number_is_not_inherited(make, value, layer):
    model = make().eval()
    parameter = next(p for p in model.parameters() if p.dim() == 4)
    with torch.no_grad():
        parameter[0, 0, 0, 0] = value
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plain = layer == "dcl" and isinstance(model[0], nn.ConvTranspose2d)
    told = "a plain transposed convolution already" if plain else r"(?s)\d: .* NaN or infinite.*exclude"
    with pytest.raises(pixelize.PixelizeError, match=told):
        pixelize.convert(model, layer, inplace=True)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0, equal_nan=True)
    if layer != "dcl":
        pixelize.convert(model, layer, init="random")  # nothing is inherited


@pytest.mark.parametrize("place", ["data", "weights"])
@pytest.mark.parametrize("joint_steps", [0, 1])
def test_nothing_is_fitted_to_what_is_no_number(place, joint_steps):
    model = nn.Sequential(conv(), nn.ReLU(), nn.ConvTranspose2d(4, 4, 4, 2, 1)).eval()
    data = [X, X.clone()]
    if place == "data":
        data[1][0, 0, 0, 0] = float("nan")
    else:
        model[0].weight.data[0, 0, 0, 0] = float("inf")
    with pytest.raises(pixelize.ArgumentError, match=r"2: .* NaN or infinite"):
        pixelize.convert(model, "auto", data=data)
    converted = pixelize.convert(model, "pixeldcl", example_inputs=None)
    before = {k: v.clone() for k, v in converted.state_dict().items()}
    with pytest.raises(pixelize.ArgumentError, match=r"2: .* NaN or infinite"):
        pixelize.calibrate(converted, data, progress=False, joint_steps=joint_steps)
    torch.testing.assert_close(converted.state_dict(), before, rtol=0, atol=0)


def norm_of(parameters):
    return sum(p.square().mean() for p in parameters)


def decay(m):
    return norm_of(m.parameters())


class ByAFunction(Block):
    def forward(self, x, flag=False):
        return self.up(x) + (self.penalty() if flag else 0)

    def penalty(self):
        return decay(self)


class ByAHeldFunction(Block):
    def __init__(self):
        super().__init__()
        self.penalty = decay

    def forward(self, x, flag=False):
        return self.up(x) + (self.penalty(self) if flag else 0)


def in_a_closure():
    class Closed(Block):
        def forward(self, x, flag=False):
            return self.up(x) + (norm(self) if flag else 0)

    def norm(m):
        return norm_of(m.parameters())

    return Closed()


@pytest.mark.parametrize("make", [ByAFunction, ByAHeldFunction, in_a_closure])
def test_all_parameters_that_a_function_reads_under_a_flag_stay(make):
    found = pixelize.inspect(make().eval(), X)
    assert not found.found and "its weight is read by" in found.skipped[0].reason
