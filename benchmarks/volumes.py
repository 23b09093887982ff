"""A small U-Net on volumes drawn here, with different up-samplers: does a layer of this package help?

    python benchmarks/volumes.py                   # about twenty minutes on one CPU core
    python benchmarks/volumes.py --seconds 5 --seeds 0 --out /tmp

Ellipsoids and boxes of varying brightness in smooth noise, 24x24x24, three classes. Arms from scratch, each
with the same seconds of CPU time on the same batches in the same order; the first is the control:

- dcl-k3: ConvTranspose3d k3 s2 p1 op1, whose taps overlap unevenly; dcl-k2: k2 s2;
- ipixeldcl, pixeldcl: the layers of Gao et al. in their place, schedule "near", k3;
- ipixelconv, pixelconv: dcl-k3, and the convolution after it a pixel convolution (section 2.4), "near".

Then every trained dcl-k3 goes on for half as long, as it is (control) and converted to iPixelDCL, of which
the change by the conversion itself is told too. And dcl-k3 and dcl-k2 are repaired (``pixelize.repair`` on
96 volumes that they trained on, without the classes), beside what a filter at run time does to the logits
(``pixelize.notch``). Measures on held-back volumes: the mean Dice coefficient of
the two shapes in percent, and the artifact of the logits by ``pixelize.checkerboard_nd`` (the highest figure,
dB). Differences from the control are paired by seed, with a 95 % interval. Seeds that the file holds already,
of as many seconds, are kept. Writes ``results/volumes.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pixelize
from pixelize.benchmarking.machine import describe_machine
from pixelize.measure.decibels import psnr
from pixelize.recipes.training.results import difference
from pixelize.refit.limits import RepairLimits
from pixelize.running.outputs import relative_error

SIZE, CLASSES = 24, 3
ARMS = ("dcl-k3", "dcl-k2", "ipixeldcl", "pixeldcl", "ipixelconv", "pixelconv")
TUNED = ("control, longer", "converted, longer")
REMEDIES = tuple(f"{arm}, {how}" for arm in ("dcl-k3", "dcl-k2") for how in ("repaired", "notched"))
CONTROL = {TUNED[1]: TUNED[0], **{name: name.split(",")[0] for name in REMEDIES}}
"""What an arm is compared with, where not the first."""
MEASURES = ("Dice %", "global dB", "windowed dB")


class UNet(nn.Module):
    """(N, 1, D, H, W) to logits (N, 3, D, H, W), through a quarter of each axis."""

    def __init__(self, arm: str, width: int = 8) -> None:
        super().__init__()
        w = width
        self.first = self.block(1, w)
        self.down = nn.ModuleList([self.block(w, 2 * w, 2), self.block(2 * w, 4 * w, 2)])
        self.up = nn.ModuleList([self.up_sampler(arm, 4 * w, 2 * w), self.up_sampler(arm, 2 * w, w)])
        self.join = nn.ModuleList([self.block(4 * w, 2 * w, arm=arm), self.block(2 * w, w, arm=arm)])
        self.head = nn.Conv3d(w, CLASSES, 1)

    @staticmethod
    def up_sampler(arm: str, c_in: int, c_out: int) -> nn.Module:
        if arm == "dcl-k2":
            return nn.ConvTranspose3d(c_in, c_out, 2, 2)
        if arm in ("ipixeldcl", "pixeldcl"):
            kind = pixelize.iPixelDCL3d if arm == "ipixeldcl" else pixelize.PixelDCL3d
            return kind(c_in, c_out, 3, 2, 1, 1, schedule="near")
        return nn.ConvTranspose3d(c_in, c_out, 3, 2, 1, 1)

    @staticmethod
    def block(c_in: int, c_out: int, stride: int = 1, arm: str = "") -> nn.Module:
        conv: nn.Module = nn.Conv3d(c_in, c_out, 3, stride, 1)
        if arm in ("ipixelconv", "pixelconv"):
            kind = pixelize.iPixelConv3d if arm == "ipixelconv" else pixelize.PixelConv3d
            conv = kind(c_in, c_out, 3, padding=1, schedule="near")
        return nn.Sequential(conv, nn.InstanceNorm3d(c_out, affine=True), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.first(x)]
        for down in self.down:
            levels.append(down(levels[-1]))
        y = levels.pop()
        for up, join in zip(self.up, self.join, strict=True):
            y = join(torch.cat([up(y), levels.pop()], 1))
        return self.head(y)


def volumes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Volumes (N, 1, 24, 24, 24) and their classes (N, 24, 24, 24): 0 around, 1 ellipsoids, 2 boxes."""
    draw = torch.Generator().manual_seed(seed)
    axes = torch.stack(torch.meshgrid(*[torch.arange(SIZE) + 0.5] * 3, indexing="ij"))
    classes = torch.zeros(count, SIZE, SIZE, SIZE, dtype=torch.long)
    light = torch.zeros(count, 1, SIZE, SIZE, SIZE)
    for n in range(count):
        for kind in (1, 2, 1, 2):
            centre, radius = torch.rand(2, 3, generator=draw)
            away = (axes - (4 + 16 * centre)[:, None, None, None]) / (2.5 + 4 * radius)[:, None, None, None]
            inside = (away.square().sum(0) if kind == 1 else away.abs().amax(0)) < 1
            classes[n][inside] = kind
            light[n, 0][inside] = 0.4 + 0.8 * torch.rand((), generator=draw)
    noise = torch.randn(count, 1, SIZE, SIZE, SIZE, generator=draw)
    return light + 0.6 * F.avg_pool3d(noise, 3, 1, 1, count_include_pad=False) + 0.15 * noise, classes


def train(model: nn.Module, data: tuple[Tensor, Tensor], seconds: float, seed: int) -> int:
    """Adam on the cross entropy for so many seconds of CPU time, its rate falling to a tenth; the steps."""
    optimizer, steps = torch.optim.Adam(model.parameters(), 3e-3), 0
    draw, began = torch.Generator().manual_seed(seed), time.process_time()
    while (spent := time.process_time() - began) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * max(0.1, 1 - spent / seconds)
        at = torch.randint(len(data[0]), (4,), generator=draw)
        optimizer.zero_grad()
        F.cross_entropy(model(data[0][at]), data[1][at]).backward()
        optimizer.step()
        steps += 1
    return steps


def logits_of(model: nn.Module, volumes: Tensor) -> Tensor:
    """(N, 3, 24, 24, 24)"""
    with torch.no_grad():
        return torch.cat([model(x) for x in volumes.split(8)])


def measure(logits: Tensor, data: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Dice of both shapes, over all volumes together, and the artifact of the logits."""
    found = logits.argmax(1)
    dice = [
        float(2 * ((found == k) & (data[1] == k)).sum() / ((found == k).sum() + (data[1] == k).sum()))
        for k in range(1, CLASSES)
    ]
    levels = pixelize.checkerboard_nd(logits)
    worst = max(levels["windowed"].values())
    return dict(zip(MEASURES, (100 * sum(dice) / len(dice), levels["worst"], worst), strict=True))


def remedies(
    arm: str, model: nn.Module, data: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor]
) -> dict[str, dict[str, float]]:
    """The model repaired, and a filter on its logits: each with the change of the logits, as PSNR."""
    rows = {}
    before = logits_of(model, held[0])
    limits = RepairLimits(multiply_adds=1e11)  # convolutions along three axes are slow on a CPU
    repaired = pixelize.repair(model, data[0][:96].split(8), progress=False, limits=limits)
    report = pixelize.repair_report(repaired)
    print(report, flush=True)
    for how, logits in (("repaired", logits_of(repaired, held[0])), ("notched", pixelize.notch(before))):
        rows[f"{arm}, {how}"] = {**measure(logits, held), "PSNR": psnr([before], [logits]), "steps": 0}
        print(arm, how, rows[f"{arm}, {how}"], flush=True)
    rows[f"{arm}, repaired"]["seconds"] = report.seconds
    return rows


def run_seed(seed: int, seconds: float, arms: list[str]) -> dict[str, dict[str, float]]:
    """All arms with one seed."""
    data, held = volumes(256, 1000 + seed), volumes(64, 1)
    rows: dict[str, dict[str, float]] = {}
    trained: dict[str, nn.Module] = {}
    for arm in arms:
        torch.manual_seed(seed)
        model = UNet(arm)
        steps = train(model, data, seconds, seed)
        trained[arm] = model.eval()
        rows[arm] = {**measure(logits_of(model, held[0]), held), "steps": steps}
        print(seed, arm, rows[arm], flush=True)
    base = trained["dcl-k3"]
    for arm in ("dcl-k3", "dcl-k2"):
        if arm in trained:
            rows.update(remedies(arm, trained[arm], data, held))
    exact = pixelize.convert(
        copy.deepcopy(base).double(), schedule="near", example_inputs=held[0][:1].double()
    )
    with torch.no_grad():
        x = held[0][:4, :, :20, :, :16].double()
        change = relative_error(copy.deepcopy(base).double()(x), exact(x))
    for name in TUNED:
        model = copy.deepcopy(base)
        if name.startswith("converted"):
            model = pixelize.convert(model, schedule="near", example_inputs=held[0][:1])
        steps = train(model.train(), data, seconds / 2, seed + 1)
        rows[name] = {**measure(logits_of(model.eval(), held[0]), held), "steps": steps}
        if name.startswith("converted"):
            rows[name]["change by conversion"] = change
        print(seed, name, rows[name], flush=True)
    return rows


def table(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    seeds = result["seeds"]
    lines = [
        "# A small U-Net on drawn volumes",
        "",
        f"{result['seconds']:g} CPU seconds of training for each arm and seed, one thread, {len(seeds)}",
        "seeds; two arms go on from dcl-k3 for half as long; repaired and notched ones are not trained. Mean",
        "over seeds; in brackets the difference from the control, paired by seed, with its 95 % interval",
        "(dcl-k3 is the control of the arms from scratch, `control, longer` that of the converted one, the",
        "model as it was that of a repaired one). Dice of held-back volumes; the logits' artifact by",
        "`pixelize.checkerboard_nd`, highest figure; PSNR of the logits to those before, of seeds that were",
        "changed. Made by `benchmarks/volumes.py`.",
        "",
        f"| arm | seeds | steps | {' | '.join(MEASURES)} | PSNR |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    arms = list(dict.fromkeys(arm for rows in seeds.values() for arm in rows))
    for arm in arms:
        control = CONTROL.get(arm, arm if arm in TUNED else arms[0])
        cells = []
        for name in MEASURES:
            both = {s: rows for s, rows in seeds.items() if arm in rows and control in rows}
            own, other = ({s: rows[a][name] for s, rows in both.items()} for a in (arm, control))
            mean = sum(own.values()) / len(own)
            cells.append(f"{mean:.1f}" + (f" ({difference(own, other)})" if arm != control else ""))
        steps = sum(rows[arm]["steps"] for rows in both.values()) / len(both)
        kept = [rows[arm]["PSNR"] for rows in both.values() if rows[arm].get("PSNR", math.inf) < math.inf]
        cells.append(f"{sum(kept) / len(kept):.1f}" if kept else "")
        lines.append(f"| {arm} | {len(both)} | {steps:.0f} | {' | '.join(cells)} |")
    changes = [rows[TUNED[1]]["change by conversion"] for rows in seeds.values()]
    lines += [
        "",
        f"Largest relative change by the conversion itself, float64, at another size: {max(changes):.1e}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the benchmark as the command line asks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.arms[0] != ARMS[0]:
        parser.error(f"the first arm is the control: {ARMS[0]}")
    path = options.out / "volumes.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    seeds = known["seeds"] if known.get("seconds") == options.seconds else {}
    machine = describe_machine("cpu", 1)
    result: dict[str, Any] = {"machine": machine, "seconds": options.seconds, "seeds": seeds}
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        result["seeds"][str(seed)] = run_seed(seed, options.seconds, options.arms)
        path.write_text(json.dumps(result, indent=1) + "\n")
        (options.out / "volumes.md").write_text(table(result))


if __name__ == "__main__":
    main()
