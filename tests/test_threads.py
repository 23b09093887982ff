"""What one thread does with the package, no other thread notices."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pixelize
from pixelize.rewrites.state.precision import _settings

SECONDS = 2.0
X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Three sites: a module's, one that is watched, one called as a function; and statistics."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.a, self.up = nn.Conv2d(3, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 4, 2, 1)
        self.norm, self.rc = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1)
        self.w = nn.Parameter(torch.empty(3, 3, 4, 4))
        for parameter in self.parameters():
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.rc(F.interpolate(self.norm(self.up(self.a(x))), scale_factor=2.0))
        return F.conv_transpose2d(x, self.w, None, 2, 1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()


def train(model: nn.Module, steps: int) -> list[torch.Tensor]:
    optimizer = torch.optim.SGD(model.train().parameters(), 0.1)
    for _ in range(steps):
        step(model, optimizer)
    return [value.clone() for value in model.state_dict().values()]


def process() -> list[object]:
    """What of the process another thread relies on."""
    return [
        sys.stdout, sys.stderr, logging.root.manager.disable, list(warnings.filters), gc.isenabled(),
        nn.Module.__call__, nn.Module._call_impl, nn.Module.__getattr__, torch.is_grad_enabled(),
        dict(nn.modules.module._global_forward_hooks), dict(nn.modules.module._global_forward_pre_hooks),
        [getattr(owner, name) for owner, name, _ in _settings()], torch.get_default_dtype(),
    ]  # fmt: skip


@contextmanager
def beside(*work: Callable[[], object]) -> Iterator[None]:
    """In this each of ``work`` is done again and again, by a thread of its own; afterwards what they raised
    is raised, and the process is as it was."""
    for once in work:  # so that what is imported on the way is there
        once()
    before, until = process(), time.monotonic() + SECONDS
    problems: list[BaseException] = []
    counts = [0] * len(work)

    def again(place: int) -> None:
        try:
            while time.monotonic() < until:
                work[place]()
                counts[place] += 1
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=again, args=(place,)) for place in range(len(work))]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()
    if problems:
        raise problems[0]
    assert min(counts) > 0 and process() == before


def convert_one(seed: int) -> Callable[[], None]:
    model = Net(seed).eval()
    wanted = model(X)

    def work() -> None:
        converted = pixelize.convert(model, example_inputs=X)
        assert len(pixelize.report(converted).converted) == 3
        torch.testing.assert_close(converted(X), wanted)

    return work


def train_one() -> None:
    wanted = train(Net(7), 5)
    assert all(map(torch.equal, train(Net(7), 5), wanted))


def test_two_threads_convert_while_a_third_trains() -> None:
    with beside(convert_one(1), convert_one(2), train_one):
        pass


@pytest.mark.parametrize("act", ["inspect", "convert", "refused"])
def test_a_model_is_looked_at_while_it_is_trained(act: str) -> None:
    def look() -> None:
        if act == "inspect":
            assert len(pixelize.inspect(model, X).found) == 3
        elif act == "convert":
            assert len(pixelize.report(pixelize.convert(model, "pixeldcl", example_inputs=X)).converted) == 3
        else:  # an ordinary refusal undoes nothing of what the training has done since
            with pytest.raises(pixelize.PixelizeError):
                pixelize.convert(model, include="no such site", example_inputs=X)
            with pytest.raises(pixelize.PixelizeError):
                pixelize.inspect(model, X[0, 0])

    model, steps = Net(), 300
    with beside(look):
        found = train(model, steps)
    assert all(map(torch.equal, found, train(Net(), steps)))


def test_a_repair_and_a_calibration_beside_a_training() -> None:
    data = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    up = nn.Sequential(nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 4, 2, 1)).eval()
    converted = pixelize.convert(up, "pixeldcl")
    limits = pixelize.refit.limits.RepairLimits(period=2, rounds=1, steps=1, patience=0, steady=(1.0,))
    with beside(
        lambda: pixelize.repair(up, data, limits=limits, progress=False),
        lambda: pixelize.calibrate(converted, [data], progress=False),
        train_one,
    ):
        pass
