"""Whoever reads or writes the weight of a convolution that was replaced finds the convolution's."""

from __future__ import annotations

import copy
import functools
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pixelize
from pixelize.running.outputs import relative_error

X = torch.randn(2, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def joined(convolve, mode, parts=((0, 2), (4, 6)), axes=2):
    """A convolution of enlarged channels before, between or after others."""

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = convolve

        def forward(self, x):
            u = F.interpolate(x[(..., *[slice(None, None, 2)] * axes)], scale_factor=2, mode=mode)
            pieces, at = [], 0
            for a, b in (*parts, (convolve.in_channels,) * 2):
                pieces += [x[:, : a - at], u[:, : b - a]]
                at = b
            return self.conv(torch.cat([p for p in pieces if p.shape[1]], 1))

    return Joined()


class Unfolded(nn.Module):
    """A linear layer over a grid, unfolded into pixels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Linear(4, 18)

    def forward(self, x):
        n, _, h, w = x.shape
        y = self.conv(x.permute(0, 2, 3, 1)).view(n, h, w, 2, 3, 3)
        return y.permute(0, 5, 1, 3, 2, 4).reshape(n, 3, 2 * h, 3 * w)


class OwnOrder(nn.Module):
    """A shuffle in an order of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 12, 3, padding=1)

    def forward(self, x):
        n, _, h, w = x.shape
        return self.conv(x).view(n, 2, 2, 3, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, 3, 2 * h, 2 * w)


def chain(*modules, name):
    model = nn.Sequential(*modules)
    model.name = name
    return model


MODELS = {
    "nearest": lambda: chain(nn.Upsample(scale_factor=2), nn.Conv2d(4, 3, 3, padding=1), name="1"),
    "bilinear": lambda: chain(
        nn.Upsample(scale_factor=3, mode="bilinear"),
        nn.Conv2d(4, 3, (3, 5), padding=(1, 2), dilation=(2, 1)),
        name="1",
    ),
    "groups": lambda: chain(
        nn.Upsample(scale_factor=(2, 3)), nn.Conv2d(4, 6, 3, padding=1, groups=2), name="1"
    ),
    "joined": lambda: joined(nn.Conv2d(7, 3, 3, padding=1), "nearest"),
    "joined bilinear": lambda: joined(nn.Conv2d(7, 3, 3, padding=1), "bilinear", ((1, 4),)),
    "joined volumes": lambda: joined(nn.Conv3d(7, 3, 3, padding=1), "nearest", ((1, 4),), 3),
    "shuffle": lambda: chain(nn.Conv2d(4, 18, 3, padding=1), nn.PixelShuffle(3), name="0"),
    "grouped shuffle": lambda: chain(nn.Conv2d(4, 16, 5, padding=2, groups=2), nn.PixelShuffle(2), name="0"),
    "own order": OwnOrder,
    "linear": Unfolded,
}


def made(kind):
    torch.manual_seed(0)
    model = MODELS[kind]().double().eval()
    x = X[..., None].repeat(1, 1, 1, 1, 6) if "volumes" in kind else X
    return model, pixelize.convert(model, example_inputs=x), getattr(model, "name", "conv"), x


@pytest.mark.parametrize("kind", MODELS)
def test_read_it_is_what_the_convolution_had(kind):
    model, converted, name, x = made(kind)
    before, after = model.get_submodule(name), converted.get_submodule(name)
    assert type(after) is not type(before)
    for mine, other in ((after.weight, before.weight), (after.bias, before.bias)):
        assert relative_error(mine, other) < 1e-12
        assert (mine.shape, mine.dtype, mine.device, mine.requires_grad) == (
            other.shape, other.dtype, other.device, other.requires_grad
        )  # fmt: skip
    penalty = [(m(x).mean() + m.get_submodule(name).weight.square().sum()) for m in (model, converted)]
    assert relative_error(*penalty) < 1e-12
    loaded = copy.deepcopy(converted).load_state_dict(model.state_dict(), strict=False)
    assert not loaded.unexpected_keys


def set_item(w):
    w[0] = 0.5


def times(w):
    w *= 2


WRITES = {
    "copy_": lambda w: w.copy_(torch.linspace(0, 1, w.numel(), dtype=w.dtype).view(w.shape)),
    "data": lambda w: w.data.clamp_(-0.05, 0.05),
    "init": lambda w: nn.init.constant_(w, 0.1),
    "a part": lambda w: w[1].zero_(),
    "parts": lambda w: [part.mul_(i) for i, part in enumerate(w.unbind(0))],
    "setitem": set_item,
    "out": lambda w: torch.add(w, 1, out=w),
    "operator": times,
    "detached": lambda w: w.detach().view(-1)[3:].fill_(0.2),
}


@pytest.mark.parametrize("kind", MODELS)
def test_written_to_the_model_computes_what_the_original_would(kind):
    model, converted, name, x = made(kind)
    for write in WRITES.values():
        both = copy.deepcopy([model, converted])
        with torch.no_grad():
            for one in both:
                write(one.get_submodule(name).weight)
                one.get_submodule(name).bias.add_(1)
            assert relative_error(*(one(x) for one in both)) < 1e-11 < relative_error(model(x), both[0](x))


def test_written_as_an_attribute_of_its_module():
    model, converted, name, x = made("joined")
    with torch.no_grad():
        for one in (model, converted):
            one.get_submodule(name).weight *= 2
            one.get_submodule(name).bias *= 2
    assert relative_error(model(x), converted(x)) < 1e-12
    with pytest.raises(AttributeError, match="cannot be changed"):
        converted.get_submodule(name).weight = nn.Parameter(torch.zeros(3, 7, 3, 3))


@pytest.mark.parametrize("kind", ["joined", "shuffle"])
def test_frozen_by_it_the_layer_is_frozen(kind):
    _, converted, name, _ = made(kind)
    module = converted.get_submodule(name)
    module.weight.requires_grad = False
    module.bias.requires_grad_(False)
    assert not module.weight.requires_grad and not module.bias.requires_grad
    trained = [key for key, p in module.named_parameters() if p.requires_grad]
    assert trained and all("dependency" in key for key in trained)
    module.weight.requires_grad_()
    assert module.weight.requires_grad


def squared(m):
    return m.weight.square().sum()


def penalty(m):
    return squared(m.conv) + m.conv.bias.sum() + m.wide.bias.mean() + sum(map(squared, [m.wide]))


class Table:
    """Something that is called, and no function."""

    rows = {"l2": penalty}  # noqa: RUF012

    def __call__(self, m):
        return self.rows["l2"](m)


class Penalized(nn.Module):
    """A forward of which a flag decides whether what was handed to it reads the weights."""

    def __init__(self, reads):
        super().__init__()
        self.conv, self.wide = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 16, 3, padding=1)
        self.reads = reads

    def forward(self, x, flag=False):
        y = F.pixel_shuffle(self.wide(self.conv(F.interpolate(x, scale_factor=2))), 2)
        return y + self.reads(self) if flag else y


READERS = {"function": penalty, "partial": functools.partial(penalty), "object": Table()}


@pytest.mark.parametrize("reads", READERS)
def test_what_a_flag_has_read_by_a_free_function_is_right(reads):
    torch.manual_seed(0)
    model = Penalized(READERS[reads]).double().eval()
    converted = pixelize.convert(model, example_inputs=X)
    assert len(pixelize.report(converted).converted) == 2
    for flag in (False, True):
        assert relative_error(model(X, flag), converted(X, flag)) < 1e-12
        moved = [m.get_submodule("conv") for m in (model, converted)]
        inputs = [X.clone().requires_grad_() for _ in moved]
        for m, x in zip((model, converted), inputs, strict=True):
            m(x, flag).square().sum().backward()
        assert relative_error(inputs[0].grad, inputs[1].grad) < 1e-12


def test_captured_it_is_the_convolution_s_too():
    torch.manual_seed(0)
    model = Penalized(penalty).double().eval()
    converted = pixelize.convert(model, example_inputs=X)
    exported = torch.export.export(converted, (X,), {"flag": True}).module()
    traced = torch.jit.trace(converted, (X, torch.tensor(True)))
    compiled = torch.compile(converted, backend="eager")
    with torch.no_grad():
        for captured in (
            lambda x: exported(x, flag=True),
            lambda x: traced(x, torch.tensor(True)),
            lambda x: compiled(x, True),
        ):
            assert relative_error(model(X, True), captured(X)) < 1e-12
        mapped = torch.func.functional_call(converted, dict(converted.named_parameters()), (X, True))
        assert relative_error(model(X, True), mapped) < 1e-12


def test_copied_and_saved_it_is_a_tensor():
    model, converted, name, _ = made("joined")
    weight = converted.get_submodule(name).weight
    file = io.BytesIO()
    torch.save(weight, file)
    file.seek(0)
    for value in (copy.deepcopy(weight), torch.load(file, weights_only=True)):
        assert type(value) is torch.Tensor and relative_error(value, model.get_submodule(name).weight) < 1e-12


@pytest.mark.parametrize("kind", ["joined", "shuffle", "linear"])
def test_where_a_layer_does_not_tell_it_is_said(kind):
    torch.manual_seed(0)
    model = MODELS[kind]().double().eval()
    name = getattr(model, "name", "conv")
    converted = pixelize.convert(model, "pixeldcl", example_inputs=X)
    weight, before = converted.get_submodule(name).weight, model.get_submodule(name).weight
    assert (weight.shape, weight.dtype, weight.device) == (before.shape, before.dtype, before.device)
    assert weight.numel() == before.numel() and X.to(weight.dtype) is X
    for ask in (torch.sum, torch.Tensor.zero_, lambda w: F.conv2d(X, w), lambda w: w + 1, lambda w: w.data):
        with pytest.raises(ValueError, match=r"does not tell: leave this module out"):
            ask(weight)


def test_its_gradient_is_asked_of_the_layer():
    _, converted, name, _ = made("nearest")
    with pytest.raises(ValueError, match=r"layer\.weight"):
        converted.get_submodule(name).weight.grad  # noqa: B018
