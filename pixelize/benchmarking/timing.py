"""Speed, side by side: the layers and their peers timed in interleaved runs of one process, beside what the
machine could do at best.

On a CPU with one thread the clock is the thread's own CPU time, which other processes hardly disturb;
otherwise it is the wall clock.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pixelize.adapters import call
from pixelize.inheritance.cost import count_parameters, measure_multiply_adds
from pixelize.running.outputs import tensors


@dataclass(frozen=True)
class Row:
    """One contender in one comparison. Times in seconds, memory in bytes.

    ``ratio``: the median over rounds of its time over the reference's in the same round; ``ratio_low`` and
    ``ratio_high`` are the quartiles. ``roofline``: the least time that the machine's measured ceilings allow
    for ``multiply_adds`` (of convolutions and linear layers) and for ``bytes_moved`` (input, weights and
    output once each; in training also their gradients, and input and weights once more), None where it is
    not known.
    """

    contender: str
    median: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int
    peak_memory: int
    parameters: int
    multiply_adds: int | None = None
    bytes_moved: int | None = None
    roofline: float | None = None


@dataclass(frozen=True)
class Ceilings:
    """What the machine was measured to do at best: multiply-adds per second in a matrix product, bytes per
    second in a copy.
    """

    multiply_adds: float
    bytes: float


def compare_modules(
    modules: dict[str, nn.Module],
    inputs: Any,
    *,
    train: bool,
    compiled: bool = False,
    seconds: float = 2.0,
    ceilings: Ceilings | None = None,
) -> list[Row]:
    """Times each module on ``inputs`` (a tensor, a tuple or a dict), if ``train`` with gradients for its
    floating-point tensors and all parameters; the first module is the reference.
    """
    inputs = tree_map(lambda v: _leaf(v, train), inputs)
    given = tensors(inputs)
    place = next(v.device for v in tree_leaves(inputs) if isinstance(v, Tensor))
    calls: dict[str, Callable[[], Any]] = {}
    if compiled:
        torch.compiler.reset()  # else earlier comparisons count towards the limit on recompilations
    for name, module in modules.items():
        run: Any = torch.compile(module) if compiled else module
        if train:
            leaves = [*given, *(p for p in module.parameters() if p.requires_grad)]
            with torch.no_grad():
                directions = [torch.randn_like(t) for t in tensors(call(module, inputs))]
            calls[name] = partial(_training_step, run, inputs, leaves, directions)
        else:
            calls[name] = partial(_prediction, run, inputs)
    times = interleaved(calls, seconds, place)
    reference = times[next(iter(modules))]
    rows = []
    for name, module in modules.items():
        ratios = sorted(a / b for a, b in zip(times[name], reference, strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        macs, moved = _work(module, inputs, train)
        least = None
        if ceilings is not None and macs:
            least = max(macs / ceilings.multiply_adds, moved / ceilings.bytes)
        rows.append(
            Row(name, statistics.median(times[name]), middle, low, high, len(ratios),
                peak_memory(calls[name], place), count_parameters(module), macs or None, moved, least)
        )  # fmt: skip
    return rows


def interleaved(
    calls: dict[str, Callable[[], Any]], seconds: float, device: torch.device
) -> dict[str, list[float]]:
    """Times the calls in rounds, each round in a random order, for about ``seconds`` and at least five
    rounds.
    """
    clock = time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    order, draw = list(calls), random.Random(0)
    for name in order:
        calls[name]()
        calls[name]()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while len(times[order[0]]) < 5 or time.perf_counter() < end:
        draw.shuffle(order)
        for name in order:
            _synchronize(device)
            start = clock()
            calls[name]()
            _synchronize(device)
            times[name].append(clock() - start)
    return times


def peak_memory(call: Callable[[], Any], device: torch.device) -> int:
    """The most memory, in bytes, that one call holds at a time beyond what was held before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        result = call()
    del result
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def measure_ceilings(device: str, dtype: torch.dtype) -> Ceilings:
    """The machine's ceilings: the best of several matrix products (1024 cubed, 8192 on a GPU) and of several
    copies of 64 MiB.
    """
    where = torch.device(device)
    n = 8192 if where.type == "cuda" else 1024
    a = torch.randn(n, n, device=where).to(dtype)
    source = torch.zeros(2**26, dtype=torch.uint8, device=where)
    target = torch.zeros_like(source)
    times = interleaved({"product": lambda: a @ a, "copy": lambda: target.copy_(source)}, 1.0, where)
    return Ceilings(n**3 / min(times["product"]), 2 * source.numel() / min(times["copy"]))


def _leaf(value: Any, train: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().requires_grad_(train and value.is_floating_point())


def _prediction(run: nn.Module, inputs: Any) -> Any:
    with torch.no_grad():
        return call(run, inputs)


def _training_step(run: nn.Module, inputs: Any, leaves: list[Tensor], directions: list[Tensor]) -> Any:
    pairs = [p for p in zip(tensors(call(run, inputs)), directions, strict=True) if p[0].requires_grad]
    return torch.autograd.grad([y for y, _ in pairs], leaves, [d for _, d in pairs], allow_unused=True)


def _work(module: nn.Module, inputs: Any, train: bool) -> tuple[int, int]:
    # multiply-adds (a gradient for the input and one for the weights cost as much as the output), and the
    # bytes that must move
    with torch.no_grad():
        output, counts = measure_multiply_adds({"": module}, lambda: call(module, inputs))
    total, outputs = counts[""], tensors(output)
    made = sum(t.nbytes for t in outputs)
    moved = sum(t.nbytes for t in [*tensors(inputs), *module.parameters()]) + made
    return (3 * total, 3 * moved - made) if train else (total, moved)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
