"""Models written to trip the conversion: each computes what it did, or says why it is left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pixelize
from pixelize.running.outputs import relative_error

Up = nn.ConvTranspose2d


class Called(nn.Module):
    """A model whose forward is a function of its modules and its inputs."""

    def __init__(self, forward: Callable, **modules: nn.Module) -> None:
        super().__init__()
        self.called = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args, **kwargs):
        return self.called(self, *args, **kwargs)


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1)


def wide() -> nn.Conv2d:
    return nn.Conv2d(4, 16, 3, padding=1)


def doubled(x: Tensor, mode: str = "nearest") -> Tensor:
    return F.interpolate(x, scale_factor=2, mode=mode)


def repeated(m: nn.Module, x: Tensor) -> Tensor:
    n = 0
    while float(x.abs().max()) > 1e-3 and n < 2:
        x, n = m.conv(doubled(x)), n + 1
    return m.up(x + 1 if x.sum().item() > 0 else x)


def by_size(m: nn.Module, x: Tensor) -> Tensor:
    return m.conv(doubled(x, "nearest" if x.shape[-1] < 6 else "bilinear"))


def by_mode(m: nn.Module, x: Tensor) -> Tensor:
    return m.conv(m.up(x)) if m.training else m.conv(doubled(x))


def checkpointed(m: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(lambda v: m.conv(doubled(m.up(v))), x, use_reentrant=False)


def einops_like(m: nn.Module, x: Tensor) -> Tensor:
    n, c, h, w = (y := m.wide(x)).shape
    return m.up(y.reshape(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w))


def with_hooks() -> nn.Module:
    model = nn.Sequential(nn.Upsample(scale_factor=2), conv(), Up(4, 4, 2, 2))
    for module in model:
        module.register_forward_hook(lambda module, args, output: output * 2)
        module.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return model


def tied() -> nn.Module:
    model = Called(
        lambda m, x: m.up(m.second(doubled(m.first(m.down(x))))),
        down=nn.Conv2d(4, 6, 4, 2, 1),
        first=nn.Conv2d(6, 6, 3, padding=1),
        second=nn.Conv2d(6, 6, 3, padding=1),
        up=Up(6, 4, 4, 2, 1),
    )
    model.up.weight, model.second.weight = model.down.weight, model.first.weight
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "reused": (
        lambda: Called(
            lambda m, x: m.other["a"](m.up(m.many[0](m.up(x)))),
            up=Up(4, 4, 3, 2, 1, 1),
            many=nn.ModuleList([conv()]),
            other=nn.ModuleDict({"a": Up(4, 4, 2, 2)}),
        ),
        ["up", "other.a"],
    ),
    "output_size": (
        lambda: Called(lambda m, x: m.up(x, output_size=[2 * d for d in x.shape[2:]]), up=Up(4, 3, 3, 2, 1)),
        ["up"],
    ),
    "geometries": (
        lambda: nn.Sequential(
            Up(4, 8, 3, (2, 1), (1, 0), (1, 0), groups=2, bias=False),
            Up(8, 8, (5, 2), (3, 2), (2, 0), (1, 0), dilation=(1, 2)),
            Up(8, 4, 2, 4, output_padding=1),
            Up(4, 4, (1, 3), (2, 3), (0, 2)),
        ),
        ["0", "1", "2", "3"],
    ),
    "tied": (tied, ["second", "up"]),
    "hooks": (with_hooks, ["1", "2"]),
    "repeated": (lambda: Called(repeated, conv=conv(), up=Up(4, 4, 2, 2)), ["conv", "up"]),
    "by size": (lambda: Called(by_size, conv=conv()), ["conv"]),
    "by mode": (lambda: Called(by_mode, conv=conv(), up=Up(4, 4, 2, 2)), ["conv", "up"]),
    "checkpointed": (lambda: Called(checkpointed, conv=conv(), up=Up(4, 4, 2, 2)), ["up", "conv"]),
    "einops-like": (lambda: Called(einops_like, wide=wide(), up=Up(4, 4, 2, 2)), ["wide", "up"]),
    "shuffled in place": (
        lambda: Called(lambda m, x: F.pixel_shuffle(F.relu_(m.wide(x)), 2), wide=wide()),
        ["wide"],
    ),
    "ResNet generator": (
        lambda: nn.Sequential(
            conv(),
            nn.Upsample(scale_factor=2),
            nn.ReflectionPad2d(1),
            nn.Conv2d(4, 4, 3),
            nn.InstanceNorm2d(4),
            nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.ReflectionPad2d(3),
            nn.Conv2d(4, 3, 7),
        ),
        ["3", "8"],
    ),
    "1-D beside": (
        lambda: Called(
            lambda m, x: (m.up(x), m.line(x.flatten(2))),
            up=Up(4, 4, 2, 2),
            line=nn.ConvTranspose1d(4, 4, 2, 2),
        ),
        ["up", "line"],
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shown", [True, False])
def test_it_computes_what_it_did(name, shown):
    build, expected = MODELS[name]
    torch.manual_seed(0)
    model, x = build().double().eval(), torch.randn(2, 4, 5, 4).double()
    converted = pixelize.convert(model, example_inputs=x if shown else None)
    assert [s.name for s in pixelize.report(converted).converted] == expected
    for training in (False, True):
        for inputs in (x, torch.randn(1, 4, 9, 8).double()):
            with torch.no_grad():
                before = copy.deepcopy(model).train(training)(inputs)
                after = copy.deepcopy(converted).train(training)(inputs)
            assert relative_error(before, after) < 1e-12


def test_keyword_inputs_and_dictionaries_of_outputs():
    def forward(m, *, image, mask=None):
        u = m.up(image)
        return {"a": [u], "b": {"c": m.conv(doubled(u)), "n": mask}}

    model, inputs = Called(forward, conv=conv(), up=Up(4, 4, 2, 2)).double(), torch.randn(1, 4, 5, 4).double()
    converted = pixelize.convert(model, example_inputs={"image": inputs})
    assert [s.name for s in pixelize.report(converted).converted] == ["up", "conv"]
    assert relative_error(model(image=inputs), converted(image=inputs)) < 1e-12


def test_a_picture_that_is_partly_overwritten_is_reported():
    def forward(m, x):
        u = doubled(x)
        u[..., 0, 0] = 7.0
        return m.conv(u)

    report = pixelize.inspect(Called(forward, conv=conv()), torch.randn(1, 4, 5, 4))
    assert [(s.status, s.reason) for s in report.sites] == [
        ("skipped", "parts of its result are overwritten")
    ]


def test_scripted_parts_stay_what_they_are():
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1), Up(4, 4, 2, 2)))
    model, x = nn.Sequential(scripted, Up(4, 4, 2, 2)).eval(), torch.randn(2, 4, 5, 4)
    before = model(x)
    converted = pixelize.convert(model, example_inputs=x)
    assert [s.name for s in pixelize.report(converted).converted] == ["1"]
    assert torch.equal(model(x), before) and relative_error(before, converted(x)) < 1e-6


def test_on_the_meta_device_with_inputs():
    with torch.device("meta"):
        model = nn.Sequential(Up(4, 4, 2, 2), nn.Upsample(scale_factor=2, mode="bilinear"), conv())
        x = torch.empty(2, 4, 5, 4)
    report = pixelize.report(pixelize.convert(model, example_inputs=x))
    assert [s.name for s in report.converted] == ["0", "2"] and report.error is None


@pytest.mark.parametrize(
    "model, reason",
    [
        (nn.DataParallel(nn.Sequential(Up(4, 4, 2, 2))), "unwrap"),
        (torch.jit.script(nn.Sequential(Up(4, 4, 2, 2))), "scripted"),
        (nn.Sequential(nn.LazyConvTranspose2d(4, 2, 2)), "lazy"),
    ],
)
def test_what_cannot_be_converted_says_why(model, reason):
    x = torch.randn(1, 4, 3, 3)
    with pytest.raises(pixelize.NothingToConvertError, match=reason):
        pixelize.convert(model, example_inputs=x)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_inductor_takes_it_whole_and_at_other_sizes(mode):
    torch.compiler.reset()  # what other tests compiled counts towards the limit on recompilations
    model = Called(
        lambda m, x: m.up(F.pixel_shuffle(m.wide(m.conv(doubled(x, mode))), 2)),
        conv=conv(),
        wide=wide(),
        up=Up(4, 3, 4, 2, 1),
    ).eval()
    x = torch.randn(2, 4, 6, 6)
    compiled = torch.compile(pixelize.convert(model, example_inputs=x), fullgraph=True)
    with torch.no_grad():
        for inputs in (x, torch.randn(3, 4, 8, 10), x[:1]):
            assert relative_error(model(inputs), compiled(inputs)) < 1e-5


def written_in_steps(m: nn.Module, x: Tensor) -> Tensor:
    u = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    u[:, :, ::2, ::2] = x
    return m.conv(u)


def sampled(m: nn.Module, x: Tensor) -> Tensor:
    grid = F.affine_grid(
        torch.eye(2, 3)[None].expand(len(x), -1, -1), [len(x), 4, 12, 15], align_corners=False
    )
    return m.conv(F.grid_sample(x, grid, align_corners=False))


def beside_each_other(m: nn.Module, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return m.conv(x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 3).reshape(n, c, 2 * h, 3 * w))


ENLARGED: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "expand and reshape": beside_each_other,
    "kron": lambda m, x: m.conv(torch.kron(x, torch.ones(1, 1, 2, 2))),
    "indices": lambda m, x: m.conv(x[:, :, :, torch.arange(3 * x.shape[3]) // 3]),
    "zeros in between": written_in_steps,
    "a grid": sampled,
    "tiles": lambda m, x: m.conv(x.repeat(1, 1, 2, 2)),
}


@pytest.mark.parametrize("how", ENLARGED)
def test_what_makes_a_picture_larger_by_other_means_is_listed(how):
    found = pixelize.inspect(Called(ENLARGED[how], conv=conv()).eval(), torch.randn(2, 4, 5, 6))
    assert not found.found and "a picture made larger by" in found.skipped[0].reason


@pytest.mark.parametrize(
    "same",
    [
        lambda m, x: m.conv(x * x.mean((2, 3), keepdim=True).expand(-1, -1, *x.shape[2:])),
        lambda m, x: m.conv(F.pad(x, (1, 2, 3, 0))) + m.conv(x.flip(-1)).mean(),
        lambda m, x: m.conv(x[:, [3, 1, 0, 2]][..., ::2]),
        lambda m, x: m.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3)),
    ],
)
def test_what_makes_no_picture_larger_is_not(same):
    rows = pixelize.inspect(Called(same, conv=conv()).eval(), torch.randn(2, 4, 5, 6)).skipped
    assert not any("a picture made larger by" in row.reason for row in rows)
