"""Random networks: converting changes no call, at no size, in no mode, and nothing of the original.

By hand, any number of them: ``python tests/test_fuzz.py 1000 5000`` (from seed 1000 to 5000), with
``--compiled`` or ``--exported`` what is compiled or exported.
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


def captured(seed: int) -> tuple[Network, nn.Module | None, Tensor]:
    """A network, converted, and what it was converted with."""
    r = random.Random(seed)
    model = Network(seed).double().train(r.random() < 0.3)
    model.keeps = False  # no graph keeps what it made
    x = torch.randn(2, 3, *SIZES[0], dtype=torch.float64)
    try:
        return model, pixelize.convert(model, r.choice(["ipixeldcl", "dcl"]), example_inputs=x), x
    except NothingToConvertError:
        return model, None, x


def check_compiled(seed: int) -> int:
    """A converted network, compiled for sizes as they come or for all at once, in both modes, with a flag."""
    model, converted, _ = captured(seed)
    if converted is None:
        return 0
    torch._dynamo.reset()
    dynamic = (None, True, False)[seed % 3]
    compiled = torch.compile(converted, backend="aot_eager" if seed % 2 else "eager", dynamic=dynamic)
    compared = 0
    for mode in (False, True):
        for size in SIZES:
            given = {"flag": True} if mode and size == SIZES[-1] else {}
            y = torch.randn(2, 3, *size, dtype=torch.float64)
            model.train(mode), converted.train(mode)
            error = relative_error(outputs(model, y, **given), outputs(compiled, y, **given))
            assert error < 1e-9, (seed, mode, size, given, error)
            compared += 1
    return compared


def check_exported(seed: int) -> int:
    """A converted network, exported with free sides, beside its original, exported likewise."""
    model, converted, x = captured(seed)
    if converted is None:
        return 0
    sides = ({2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)

    def program(network: nn.Module) -> Any:
        return torch.export.export(network, (x,), dynamic_shapes=sides, strict=False).module()

    try:
        original = program(model)
    except Exception:  # random numbers, data that is asked for
        return 0
    exported, compared = program(converted), 0
    for size in SIZES:
        y = torch.randn(2, 3, *size, dtype=torch.float64)
        try:
            expected = outputs(original, y)
        except Exception:  # a size that the export of the original is not for
            continue
        error = relative_error(expected, outputs(exported, y))
        assert error < 1e-9, (seed, size, error)
        compared += 1
    return compared


@pytest.mark.parametrize("first", range(0, 200, PER_TEST))
def test_converting_changes_no_call(first: int) -> None:
    assert sum(check(seed) for seed in range(first, first + PER_TEST)) > PER_TEST


@pytest.mark.parametrize("seed", [7, 9, 11, 12])
def test_nor_does_compiling_what_was_converted(seed: int) -> None:
    assert check_compiled(seed)


def test_nor_does_exporting_what_was_converted() -> None:
    assert sum(check_exported(seed) for seed in range(20, 28)) > 16


if __name__ == "__main__":
    begin, end = map(int, sys.argv[1:3])
    failures = calls = 0
    way = {"--compiled": check_compiled, "--exported": check_exported}.get(sys.argv[-1], check)
    for number in range(begin, end):
        try:
            calls += way(number)
        except Exception as problem:
            failures += 1
            print(number, type(problem).__name__, str(problem)[:300].replace("\n", " "), flush=True)
    print(
        f"{end - begin} networks, {calls} calls compared, {failures} networks with differences or exceptions"
    )
