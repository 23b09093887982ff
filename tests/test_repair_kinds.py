"""Repair of every kind of up-sampling, of every kind of data, and what it must not touch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from test_repair import QUICK, smooth
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from pixelize.conversion.convert import convert
from pixelize.measure.checkerboard import checkerboard
from pixelize.refit.limits import RepairLimits
from pixelize.refit.repair import repair
from pixelize.refit.report import RepairReport, repair_report


class Stem(nn.Module):
    """Features of pictures."""

    def __init__(self, out: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, out, 3, padding=1)


class Shuffle(Stem):
    """Convolution, norm, activation, PixelShuffle, cropped, a convolution after it."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.norm = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.last = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(F.relu(self.norm(self.wide(F.relu(self.stem(x))))), 2)
        return self.last(x[..., 1:-1, 1:-1])


class Resized(Stem):
    """Nearest resize, then a convolution; an uneven convolution after an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.after, self.last = nn.Conv2d(8, 8, 2), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(F.relu(self.stem(x)), scale_factor=2.0, mode="nearest")
        x = self.after(F.pad(x, (1, 0, 1, 0)))
        pattern = torch.ones_like(x)
        pattern[..., ::2, ::2] = 1.3
        return self.last(F.relu(x * pattern))


class Functional(Stem):
    """A transposed convolution as a function, with the model's own tensor; the picture is cropped."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(0.2 * torch.randn(8, 3, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(F.relu(self.stem(x)), self.kernel, stride=2, padding=1)[..., 3:-3, 3:-3]


class Parametrized(Stem):
    """A transposed convolution whose weight is computed."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.up = norm(nn.ConvTranspose2d(8, 3, 4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.up(F.relu(self.stem(x))))


class Patches(Stem):
    """Tokens, a linear map to the pixels of each, folded into the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels = nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.pixels(F.relu(self.stem(x)).flatten(2).mT)
        return F.pixel_shuffle(tokens.mT.unflatten(-1, x.shape[-2:]), 2)


class Listed(Stem):
    """An up-sampler that is registered, and called out of a plain list named as a method of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 3, 4, 2, 1)
        self.modules = [self.up]

    def forward(self, x: Tensor) -> Tensor:
        return self.modules[0](F.relu(self.stem(x)))


class Film(Stem):
    """Three frames (N, 3, 3, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 9, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.relu(self.stem(x))).unflatten(1, (3, 3))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "shuffle": Shuffle,
    "resized": Resized,
    "functional": Functional,
    "weight norm": lambda: Parametrized(parametrizations.weight_norm),
    "spectral norm": lambda: Parametrized(parametrizations.spectral_norm),
    "orthogonal": lambda: Parametrized(parametrizations.orthogonal),
    "old weight norm": lambda: Parametrized(torch.nn.utils.weight_norm),
    "patches": Patches,
    "listed": Listed,
    "film": Film,
}


def worst(model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        y = model(x)
    return checkerboard(y.flatten(0, 1) if y.dim() == 5 else y, 2)["worst"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_pattern_goes_whatever_makes_it(kind: Callable[[], nn.Module]) -> None:
    model = kind().eval()
    data, fresh = smooth(48, 3, 24, 1), smooth(64, 3, 24, 2)
    before, kept = worst(model, fresh), copy.deepcopy(model.state_dict())
    repaired = repair(model, data, progress=False, limits=QUICK)
    assert before > 8, "the test's own model has no pattern"
    assert worst(repaired, fresh) < max(4, before - 12)
    state = repaired.state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in kept.items()}
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in kept.items()), "the model given is as it was"
    fitted = kind().eval()
    fitted.load_state_dict(state)
    with torch.no_grad():
        assert torch.allclose(fitted(fresh[:2]), repaired(fresh[:2]), atol=1e-5)


def test_a_model_that_is_the_up_sampler_itself() -> None:
    torch.manual_seed(0)
    model, data, fresh = nn.ConvTranspose2d(3, 3, 4, 2, 1), smooth(48, 3, 24, 1), smooth(64, 3, 24, 2)
    repaired = repair(model, data, progress=False, limits=QUICK)
    assert type(repaired) is nn.ConvTranspose2d and worst(repaired, fresh) < worst(model, fresh) - 10


class Endless:
    """Can be iterated once, has no end and is no iterator."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        seed = 0
        while True:
            yield smooth(4, 3, 24, seed := seed + 1), torch.zeros(4)


DATA: dict[str, Callable[[], object]] = {
    "picture and label": lambda: [(x, torch.zeros(8)) for x in smooth(48, 3, 24, 1).split(8)],
    "without a batch axis": lambda: list(smooth(48, 3, 24, 1)),
    "several sizes": lambda: [smooth(1, 3, 24 + 4 * (n % 3), n) for n in range(40)],
    "one large picture": lambda: smooth(1, 3, 200, 1),
    "one small picture": lambda: smooth(1, 3, 24, 1),
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_data_of_every_kind(data: Callable[[], object]) -> None:
    model, fresh = Functional().eval(), smooth(64, 3, 24, 2)
    repaired = repair(model, data(), progress=False, limits=QUICK)
    assert worst(repaired, fresh) < worst(model, fresh) - 3


def test_endless_data_is_read_as_far_as_needed_and_that_is_said() -> None:
    repaired = repair(
        Functional(), Endless(), progress=False, limits=RepairLimits(rounds=6, samples=32, portion=24)
    )
    assert any("first 32 samples" in note for note in repair_report(repaired).notes)
    few = repair(Functional(), smooth(2, 3, 24, 1), progress=False, limits=QUICK)
    assert any("few" in note for note in repair_report(few).notes)


class Stops(Functional):
    """Is interrupted after a few runs."""

    def __init__(self, runs: int) -> None:
        super().__init__()
        self.runs = runs
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        self.runs -= 1
        if self.runs < 0:
            raise KeyboardInterrupt
        return self.norm(super().forward(x))


def test_an_interrupted_repair_in_place_leaves_the_model_as_it_was() -> None:
    for runs in (1, 5, 15):
        model = Stops(runs).train()
        kept = copy.deepcopy(model.state_dict())
        with pytest.raises(KeyboardInterrupt):
            repair(model, smooth(48, 3, 24, 1), inplace=True, progress=False, limits=QUICK)
        assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in model.parameters()) and model.training
        assert model.kernel is model._parameters["kernel"]


def test_in_place_changes_values_and_nothing_else() -> None:
    model = Functional()
    model.stem.requires_grad_(False)
    kernel, shuffled = model.kernel, torch.get_rng_state()
    assert repair(model, smooth(48, 3, 24, 1), inplace=True, progress=False, limits=QUICK) is model
    assert model.kernel is kernel and kernel.requires_grad and not model.stem.weight.requires_grad
    assert torch.equal(torch.get_rng_state(), shuffled)


class Noisy(Functional):
    """Adds noise of its own at every run."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.02 * torch.randn_like(x))


def test_a_stochastic_model() -> None:
    model, fresh = Noisy(), smooth(64, 3, 24, 2)
    assert worst(repair(model, smooth(48, 3, 24, 1), progress=False, limits=QUICK), fresh) < 6


def test_a_report_says_what_came_of_it() -> None:
    repaired = repair(Functional(), smooth(48, 3, 24, 1), progress=False, limits=QUICK)
    report: RepairReport = repair_report(repaired)
    assert report.verdict().startswith("Repaired kernel") and "not measured" in str(report)
    clean = repair(nn.Upsample(scale_factor=2, mode="bilinear"), smooth(8, 3, 24, 1), progress=False)
    assert not repair_report(clean).repaired


@pytest.mark.parametrize("layer", ["pixeldcl", "ipixeldcl"])
def test_converted_layers_keep_their_kind(layer: str) -> None:
    """What dependency kernels make is not lost to a wider plain layer, nor is it taken for phases of taps."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(6, 3, 4, 2, 1)).eval()
    model = convert(plain, layer)
    with torch.no_grad():
        for p in model[2].dependency_kernels:
            p.normal_(0, 0.05)
    fresh = smooth(16, 3, 24, 2)
    before = model(fresh)
    unknown = repair(model, progress=False)
    (site,) = repair_report(unknown).sites
    assert site.status == "skipped" and "needs data" in site.reason
    assert torch.equal(unknown(fresh), before)
    wider = repair(model, smooth(24, 3, 24, 1), layer="3x3", limits=QUICK, progress=False)
    assert type(wider[2]) is type(model[2]) and {k: v.shape for k, v in wider.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    assert worst(wider, fresh) <= worst(model, fresh) + 0.5


def test_plain_pictures_are_left_and_said_to_be_plain():
    model = nn.Sequential(nn.ConvTranspose2d(3, 3, 4, 2, 1), nn.ReLU())
    nn.init.constant_(model[0].bias, -100.0)
    report = repair_report(repair(model, torch.rand(24, 3, 16, 16), limits=QUICK, progress=False))
    assert not report.repaired
    assert "one value" in " ".join(str(report).split())


class Passing(nn.Module):
    """The picture itself, and a little that an up-sampler adds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.ConvTranspose2d(1, 1, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.02 * self.up(F.avg_pool2d(x, 2))


def test_a_grid_that_the_pictures_bring_themselves_is_left():
    signs = torch.randint(2, (48, 1, 1, 1), generator=torch.Generator().manual_seed(1)) * 2 - 1
    grid = 1 - 2 * (torch.arange(64) % 2)
    model, pictures = Passing(), smooth(48, 1, 64, 3) + 0.2 * signs * grid
    repaired = repair(model, pictures, limits=QUICK, progress=False)
    report = repair_report(repaired)
    assert report.worst(report.before) > 10
    assert not report.repaired
    assert "content" in str(report)
    assert torch.equal(repaired.up.weight, model.up.weight)


def test_where_no_layer_can_be_another_that_is_said():
    report = repair_report(
        repair(Shuffle(), smooth(24, 3, 32, 3), layer="ipixeldcl", limits=QUICK, progress=False)
    )
    assert "no layer could become 'ipixeldcl'" in str(report).replace("\n    ", " ")
