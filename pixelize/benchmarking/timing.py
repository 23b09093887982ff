"""Speed, side by side: the layers and their peers timed in interleaved runs of one process, beside what the
machine could do at best.

On a CPU with one thread the clock is the thread's own CPU time, which other processes hardly disturb;
otherwise it is the wall clock.
"""

from __future__ import annotations

import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pixelize.adapters import call
from pixelize.inheritance.cost import count_parameters, measure_multiply_adds
from pixelize.layers.pixel_dcl import PixelDCL2d, iPixelDCL2d
from pixelize.running.outputs import tensors

REFERENCE = "ConvTranspose2d"


@dataclass(frozen=True)
class Case:
    """One comparison: a layer of 2 * ``channels`` to ``channels`` on (batch, 2 * channels, size, size),
    up-sampled twice.
    """

    channels: int
    size: int
    kernel_size: int = 4
    batch: int = 1
    train: bool = False
    channels_last: bool = False
    dtype: str = "float32"
    compiled: bool = False


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


def layer_contenders(channels: int, kernel_size: int) -> dict[str, nn.Module]:
    """The up-samplers that are compared, 2 * ``channels`` to ``channels``, twice the size. The first is the
    reference.
    """
    c, k = channels, kernel_size
    geometry = (2 * c, c, k, 2, (k - 2) // 2)
    return {
        REFERENCE: nn.ConvTranspose2d(*geometry),
        "resize + conv 3x3": nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(2 * c, c, 3, padding=1)),
        "sub-pixel conv 3x3": nn.Sequential(nn.Conv2d(2 * c, 4 * c, 3, padding=1), nn.PixelShuffle(2)),
        "PixelDCL": PixelDCL2d(*geometry),
        "PixelDCL masked": PixelDCL2d(*geometry, schedule="masked"),
        "PixelDCL 2x2": PixelDCL2d(*geometry, dependency_kernel_size=2),
        "PixelDCL depthwise": PixelDCL2d(*geometry, dependency_groups=c),
        "iPixelDCL": iPixelDCL2d(*geometry),
        "iPixelDCL 2x2": iPixelDCL2d(*geometry, dependency_kernel_size=2),
        "iPixelDCL depthwise": iPixelDCL2d(*geometry, dependency_groups=c),
    }


def run_bench(
    cases: Iterable[Case],
    *,
    device: str = "cpu",
    threads: int = 1,
    seconds: float = 2.0,
    contenders: Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Runs each case and returns plain data: the machine, its ceilings, and for each case its rows.

    ``seconds``: how long a case is repeated, at least five rounds. ``contenders``: names of
    :func:`layer_contenders`, all by default; the reference is always among them.
    ``progress`` is called with a line for each case.
    """
    cases = list(cases)
    result: dict[str, Any] = {"machine": describe_machine(device, threads), "cases": []}
    found = {
        dtype: measure_ceilings(device, getattr(torch, dtype)) for dtype in sorted({c.dtype for c in cases})
    }
    result["ceilings"] = {dtype: asdict(c) for dtype, c in found.items()}
    for case in cases:
        torch.manual_seed(0)
        modules = layer_contenders(case.channels, case.kernel_size)
        if contenders is not None:
            modules = {n: m for n, m in modules.items() if n == REFERENCE or n in contenders}
        memory_format = torch.channels_last if case.channels_last else torch.contiguous_format
        place: dict[str, Any] = dict(
            device=device, dtype=getattr(torch, case.dtype), memory_format=memory_format
        )
        modules = {n: m.to(**place) for n, m in modules.items()}
        x = torch.randn(case.batch, 2 * case.channels, case.size, case.size).to(**place)
        rows = compare_modules(
            modules, x, train=case.train, compiled=case.compiled, seconds=seconds, ceilings=found[case.dtype]
        )
        result["cases"].append({"case": asdict(case), "rows": [asdict(row) for row in rows]})
        if progress is not None:
            progress(f"{case}: " + ", ".join(f"{r.contender} {r.ratio:.2f}" for r in rows))
    return result


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


def describe_machine(device: str, threads: int) -> dict[str, Any]:
    """Sets the number of CPU threads and names the machine, the software and the clock."""
    torch.set_num_threads(threads)
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    cpu_time = not device.startswith("cuda") and threads == 1
    return {
        "device": name,
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "clock": "CPU time of the thread" if cpu_time else "wall clock",
    }


def as_table(result: dict[str, Any]) -> Table:
    """A result of :func:`run_bench` as a rich table: a line for each case, a column of ratios for each
    contender.
    """
    machine = result["machine"]
    names = list(dict.fromkeys(row["contender"] for entry in result["cases"] for row in entry["rows"]))
    table = Table(title=f"{machine['device']}, {machine['threads']} thread(s), {machine['clock']}")
    table.add_column("case")
    table.add_column(f"{names[0]}, ms", justify="right")
    for name in names[1:]:
        table.add_column(name, justify="right")
    for entry in result["cases"]:
        rows = {row["contender"]: row for row in entry["rows"]}
        cells = [f"{rows[n]['ratio']:.2f}" if n in rows else "" for n in names[1:]]
        table.add_row(case_label(entry["case"]), f"{rows[names[0]]['median'] * 1e3:.3g}", *cells)
    return table


def case_label(case: dict[str, Any]) -> str:
    """One case in a few words."""
    layout = "NHWC" if case["channels_last"] else "NCHW"
    words = f"k{case['kernel_size']} {2 * case['channels']}>{case['channels']} at {case['size']}, {layout}"
    words += ", training" if case["train"] else ", prediction"
    words += "" if case["dtype"] == "float32" else f", {case['dtype']}"
    return words + (", compiled" if case["compiled"] else "")


def plot_ratios(result: dict[str, Any], path: str | Path) -> None:
    """Draws the ratio of every contender over the size of the input: a line of panels for each kernel, memory
    format and mode, a panel for each number of channels.
    """
    from matplotlib.figure import Figure

    panels: dict[tuple[Any, ...], dict[int, list[dict[str, Any]]]] = {}
    for entry in result["cases"]:
        case = entry["case"]
        key = (case["kernel_size"], case["channels_last"], case["train"], case["dtype"], case["compiled"])
        panels.setdefault(key, {}).setdefault(case["channels"], []).append(entry)
    widths = sorted({channels for line in panels.values() for channels in line})
    figure = Figure(figsize=(3.6 * len(widths), 2.6 * len(panels) + 0.6), layout="constrained")
    grid = figure.subplots(len(panels), len(widths), squeeze=False, sharey=True)
    for axes, line in zip(grid, panels.values(), strict=True):
        for axis, channels in zip(axes, widths, strict=True):
            entries = sorted(line.get(channels, []), key=lambda e: e["case"]["size"])
            axis.set_visible(bool(entries))
            if not entries:
                continue
            sizes = [e["case"]["size"] for e in entries]
            for number, row in enumerate(entries[0]["rows"][1:], 1):
                ratios = [e["rows"][number]["ratio"] for e in entries]
                axis.plot(sizes, ratios, "o-", ms=3, lw=1, label=row["contender"])
            axis.axhline(1.0, color="black", lw=0.8)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_yticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"], minor=False)
            axis.set_yticks([], minor=True)
            axis.set_xticks(sizes, [str(size) for size in sizes], minor=False)
            kernel, *rest = case_label(entries[0]["case"]).split(", ")
            words = kernel.split()
            axis.set_title(", ".join([f"{words[0]} {words[1]}", *rest]), fontsize=8)
        axes[0].set_ylabel(f"time / {REFERENCE}", fontsize=8)
    for axis in grid[-1]:
        axis.set_xlabel("height and width of the input", fontsize=8)
    handles, names = next(a for a in grid.flatten() if a.get_visible()).get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), fontsize=8)
    figure.savefig(path, dpi=80)


def save_result(result: dict[str, Any], path: str | Path) -> None:
    """Writes a result as JSON."""
    Path(path).write_text(json.dumps(result, indent=1) + "\n")


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


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
