"""Random networks: converting changes no call, at no size, in no mode, and nothing of the original.

By hand, any number of them: ``python tests/test_fuzz.py 1000 5000`` (from seed 1000 to 5000).
"""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy
import pytest
import torch
from random_networks import GRIDS, Network
from torch import Tensor, nn

import pixelize
from pixelize.errors import NothingToConvertError
from pixelize.running.outputs import relative_error

SIZES = ((8, 6), (9, 7), (12, 12), (6, 13))
PER_TEST = 20


def state(model: nn.Module) -> list[Any]:
    """All of a model that a look at it could change."""
    held: list[Any] = [
        torch.get_rng_state().tolist(),
        random.getstate(),
        numpy.random.get_state()[1].tolist(),
    ]
    for name, module in model.named_modules():
        hooks = [(k, len(v)) for k, v in module.__dict__.items() if k.endswith("hooks")]
        plain = {k: id(v) for k, v in module.__dict__.items() if not k.startswith("_")}
        held.append((name, type(module), module.training, hooks, plain))
    held += [(n, id(t), t._version, t.requires_grad) for n, t in model.named_parameters()]
    held += [(n, id(t), t.tolist()) for n, t in model.named_buffers()]
    return held


def outputs(model: nn.Module, x: Tensor, **given: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        return model(x.clone(), **given)


def check(seed: int) -> int:
    """Converts one network in one way and compares calls; how many were compared."""
    r = random.Random(seed)
    model = Network(seed).double().train(r.random() < 0.3)
    x = torch.randn(2, 3, *SIZES[0], dtype=torch.float64)
    before, weights = state(model), [p.detach().clone() for p in model.parameters()]
    shown: dict[str, Any] = {} if r.random() < 0.15 else {"example_inputs": x}
    layer = r.choice(["ipixeldcl", "ipixeldcl", "dcl", "pixeldcl"])
    kinds = ("conv_transpose", "resize_conv", "pixel_shuffle", *(["resize"] if r.random() < 0.3 else []))
    pixelize.inspect(model, **shown)
    try:
        converted = pixelize.convert(model, layer, sites=kinds, **shown)
    except NothingToConvertError:
        converted = None
    after = state(model)
    assert after == before, next(p for p in zip(before, after, strict=False) if p[0] != p[1])
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    assert all(type(t) is Tensor and not t.is_meta for t in GRIDS.values())
    if converted is None:
        return 0
    compared = 0
    for size in SIZES:
        for mode in (False, True):
            for given in ({}, {"flag": True}, {"gain": 0.5}):
                y = torch.randn(2, 3, *size, dtype=torch.float64)
                model.train(mode), converted.train(mode)
                expected = outputs(model, y, **given)
                if layer == "pixeldcl":
                    try:
                        outputs(converted, y, **given)
                    except ValueError as error:  # a size that its layers are not for
                        assert "not known to be resized" in str(error)
                    continue
                error = relative_error(expected, outputs(converted, y, **given))
                assert error < 1e-9, (seed, layer, size, mode, given, error)
                compared += 1
    if layer != "pixeldcl" and r.random() < 0.3:
        compared += check_half(model.eval(), converted.eval())
    return compared


def check_half(model: nn.Module, converted: nn.Module) -> int:
    """The same in bfloat16: no farther from the exact numbers than the original is, a few times."""
    y = torch.randn(2, 3, *SIZES[2], dtype=torch.float64)
    exact = outputs(model, y)
    model.bfloat16(), converted.bfloat16()
    rounding = relative_error(exact, outputs(model, y.bfloat16()))
    assert relative_error(exact, outputs(converted, y.bfloat16())) < 4 * rounding + 0.01
    return 1


def check_compiled(seed: int) -> int:
    """A converted network, compiled for all sizes, in both modes."""
    model = Network(seed).double()
    x = torch.randn(2, 3, *SIZES[0], dtype=torch.float64)
    try:
        converted = pixelize.convert(model, "dcl", example_inputs=x)
    except NothingToConvertError:
        return 0
    torch._dynamo.reset()
    compiled = torch.compile(converted, backend="eager")
    for mode in (False, True):
        for size in SIZES[:3]:
            y = torch.randn(2, 3, *size, dtype=torch.float64)
            model.train(mode), converted.train(mode)
            error = relative_error(outputs(model, y), outputs(compiled, y))
            assert error < 1e-9, (seed, mode, size, error)
    return 6


@pytest.mark.parametrize("first", range(0, 200, PER_TEST))
def test_converting_changes_no_call(first: int) -> None:
    assert sum(check(seed) for seed in range(first, first + PER_TEST)) > PER_TEST


@pytest.mark.parametrize("seed", range(4))
def test_nor_does_compiling_what_was_converted(seed: int) -> None:
    check_compiled(seed)


if __name__ == "__main__":
    begin, end = map(int, sys.argv[1:3])
    failures = calls = 0
    for number in range(begin, end):
        try:
            calls += check(number) if "--compiled" not in sys.argv else check_compiled(number)
        except Exception as problem:
            failures += 1
            print(number, type(problem).__name__, str(problem)[:300].replace("\n", " "), flush=True)
    print(
        f"{end - begin} networks, {calls} calls compared, {failures} networks with differences or exceptions"
    )
