"""Ctrl-C and failing operators at any moment: the model, random numbers, streams and log are as they were.

An operation is run again and again, interrupted each time at another operator, at another line of the
package, or at another of the places at which Python looks for signals, in the package and in the contexts of
Python and torch that it uses: some 2,900 times in all.
"""

from __future__ import annotations

import contextlib
import dis
import gc
import logging
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import CodeType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn, overrides
from torch.autograd import grad_mode
from torch.utils import _contextlib, _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

import pixelize
from pixelize.refit.limits import RepairLimits
from pixelize.rewrites.state import precision
from pixelize.running.models import copy_model

ROOT = Path(pixelize.__file__).parent.parent
OWN = tuple(str(ROOT / folder) for folder in ("pixelize", "rewrites", "adapters"))
CONTEXTS = tuple(m.__file__ for m in (contextlib, overrides, _contextlib, _python_dispatch, grad_mode))
OPERATORS, LINES, PLACES = 60, 110, 45
"""Moments tried of each operation, spread over all that it has; the first and last few always."""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm = nn.ConvTranspose2d(2, 3, 4, 2, 1), nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.w = nn.Parameter(torch.randn(1, 2, 4, 4))

    def forward(self, x):
        x = self.conv(F.interpolate(self.norm(self.up(F.dropout(x, 0.1, self.training))), scale_factor=2.0))
        return F.conv_transpose2d(F.pixel_shuffle(x, 2), self.w, None, 2, 1)


def net():
    torch.manual_seed(0)
    return Net().train()  # the mode that a look at it is most likely to change


X = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randn(8, 2, 2, 2, generator=torch.Generator().manual_seed(1))
LEAST = RepairLimits(period=2, rounds=1, steps=1, patience=0, done=0.5, steady=(1.0,))


def state(model: nn.Module) -> list:
    """All that is to be the same before and after, the values of tensors among it."""
    found: list = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    found += [sys.stdout, sys.stderr, logging.root.manager.disable, list(warnings.filters), gc.isenabled()]
    found += [nn.Module.__call__, nn.Module._call_impl, nn.Module.__getattr__, torch.is_grad_enabled()]
    found += [
        dict(nn.modules.module._global_forward_hooks),
        dict(nn.modules.module._global_forward_pre_hooks),
    ]
    found += [overrides._get_current_function_mode_stack(), torch.is_autocast_enabled("cpu")]
    found += [
        _python_dispatch._get_current_dispatch_mode_stack(),
        _python_dispatch._is_in_torch_dispatch_mode,
    ]
    found += [getattr(owner, name) for owner, name, _ in precision._settings()]
    found += [torch.get_default_dtype(), torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()]
    for name, module in model.named_modules(remove_duplicate=False):
        found += [name, id(module), type(module), module.training, sorted(module.__dict__)]
        for registry, held in module.__dict__.items():
            if isinstance(held, dict):
                found.append((registry, [(key, id(value)) for key, value in held.items()]))
        for value in (*module._parameters.values(), *module._buffers.values()):
            if value is not None:
                found += [value.requires_grad, value.grad, value.detach().tolist()]
    return found


class Interrupted(BaseException):
    """What nothing catches by its name."""


class AtOperator(TorchDispatchMode):
    """Raises when the ``n``-th operator is about to run, once."""

    def __init__(self, n: int, kind: type[BaseException]) -> None:
        super().__init__()
        self.n, self.kind, self.count = n, kind, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if self.count == self.n:
            raise self.kind("injected")
        return func(*args, **(kwargs or {}))


class AtLine:
    """Raises when the ``n``-th line of the package is about to run, once; as Ctrl-C does."""

    def __init__(self, n: int, kind: type[BaseException]) -> None:
        self.n, self.kind, self.count, self.place = n, kind, 0, ""

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.call)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)

    def call(self, frame, event, argument):
        return self.line if frame.f_code.co_filename.startswith(OWN) else None

    def line(self, frame, event, argument):
        if event == "line":
            self.count += 1
            if self.count == self.n:
                self.place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise self.kind("injected")
        return self.line


class AtPlace(AtLine):
    """Raises at the ``n``-th of the moments at which Python may raise ``KeyboardInterrupt``, once: as a
    function begins, after a call, and before a loop goes on. ``first`` holds one moment for each place.
    """

    def __init__(self, n: int, kind: type[BaseException]) -> None:
        super().__init__(n, kind)
        self.first: dict[tuple[CodeType, int], int] = {}

    def call(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith((*OWN, *CONTEXTS)):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self.line

    def line(self, frame, event, argument):
        if event == "opcode" and frame.f_lasti in places(frame.f_code):
            self.count += 1
            self.first.setdefault((frame.f_code, frame.f_lasti), self.count)
            if self.count == self.n:
                self.place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise self.kind("injected")
        return self.line


@cache
def places(code: CodeType) -> frozenset[int]:
    """Where in a function Python looks for signals."""
    instructions = list(dis.get_instructions(code))
    after = {
        b.offset for a, b in pairwise(instructions) if a.opname == "RESUME" or a.opname.startswith("CALL")
    }
    return frozenset(after | {i.offset for i in instructions if i.opname.startswith("JUMP_BACKWARD")})


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def prepared(*steps: Callable[[nn.Module], object]) -> nn.Module:
    model = net()
    for step in steps:
        step(model)
    return model


def converted(layer: str = "ipixeldcl", **options: object) -> nn.Module:
    return pixelize.convert(net(), layer, example_inputs=X, **options).train()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    top = tmp_path_factory.mktemp("saved")
    with quiet():
        model = converted()
    return pixelize.save(model, top / "read"), pixelize.save(model, top / "written")


OPERATIONS = {
    "inspect": (net, lambda m, f: pixelize.inspect(m, X)),
    "convert": (net, lambda m, f: pixelize.convert(m, example_inputs=X, inplace=True)),
    "convert a copy": (net, lambda m, f: pixelize.convert(m, example_inputs=X)),
    "convert to PixelDCL": (net, lambda m, f: pixelize.convert(m, "pixeldcl", include="up", inplace=True)),
    "convert at random": (net, lambda m, f: pixelize.convert(m, init="random", inplace=True)),
    "calibrate": (lambda: converted("pixeldcl"), lambda m, f: pixelize.calibrate(m, [X, X], progress=False)),
    "revert": (converted, lambda m, f: pixelize.revert(m)),
    "fold": (converted, lambda m, f: pixelize.fold(m, inplace=True)),
    "close the gates": (converted, lambda m, f: pixelize.set_input_gate(m, 0.5)),
    "harden": (lambda: pixelize.set_input_gate(converted(), 0.0), lambda m, f: pixelize.harden(m)),
    "repair": (net, lambda m, f: pixelize.repair(m, Y, inplace=True, limits=LEAST, progress=False)),
    "load": (net, lambda m, f: pixelize.load(f[0], m)),
    "save": (converted, lambda m, f: pixelize.save(m, f[1])),
}


def moments(count: int, tried: int) -> list[int]:
    ends = {*range(1, 11), *range(count - 9, count + 1)}
    spread = {1 + round(i * (count - 1) / max(tried - 1, 1)) for i in range(tried)}
    return sorted(n for n in ends | spread if 1 <= n <= count)


def chosen(counter: AtOperator | AtLine, tried: int) -> list[int]:
    if not isinstance(counter, AtPlace):
        return moments(counter.count, tried)
    found = sorted(counter.first.values())
    inside = [n for (code, _), n in counter.first.items() if code.co_filename.startswith(CONTEXTS)]
    return sorted({seen[n - 1] for seen in (found, inside) for n in moments(len(seen), tried // 2)})


@pytest.mark.parametrize(
    "at, tried",
    [(AtOperator, OPERATORS), (AtLine, LINES), (AtPlace, PLACES)],
    ids=["operators", "lines", "places"],
)
@pytest.mark.parametrize("name", OPERATIONS)
def test_interrupted_at_any_moment_nothing_has_changed(name, at, tried, folders):
    make, act = OPERATIONS[name]
    tried = tried // 6 if name == "repair" else tried  # the longest
    with quiet():
        model = make()
        counter = at(0, Interrupted)
        trial = copy_model(model)
        act(copy_model(model), folders)  # so that caches are filled
        with counter:
            act(trial, folders)
        before = state(model)
        injected = 0
        for n in chosen(counter, tried):
            injection = at(n, KeyboardInterrupt if n % 2 else Interrupted)
            try:
                with injection:
                    act(model, folders)
            except (KeyboardInterrupt, Interrupted):
                pass
            except (
                Exception
            ):  # torch tells some that are raised inside it as its own; the state is what counts
                assert at is AtOperator
            else:
                pytest.fail(
                    f"interrupt {n} of {counter.count} was swallowed ({getattr(injection, 'place', '')})"
                )
            injected += 1
            assert state(model) == before, f"{n} of {counter.count}: {getattr(injection, 'place', '')}"
        if name == "save":
            pixelize.load(folders[1], net())
    assert injected >= min(counter.count, tried) or at is AtPlace
