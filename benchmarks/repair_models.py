"""Repair models of many kinds, and measure on fresh inputs of other sources than those fitted on.

    python benchmarks/repair_models.py --models FOLDER --only fsrcnn_x2,srgan_x4 --draws 3
    python benchmarks/repair_models.py --only gan-face-generate,demo,shuffle,nearest,logits,film

Beside gan-face-generate's generator and the demo's, four networks are trained here for minutes
(small_networks.py; kept in runs/small_networks). ``--models`` is a folder with a ``zoo.py`` that has
``NAMES`` and ``load(name, fit, fresh)``, which gives a model in evaluation mode, inputs to fit to, fresh
inputs, the truth or None, and the period. A draw takes other inputs to fit to.

Arms: the model as it came, repaired, its pictures blurred (2x2, 3x3 mean) and notched at run time. Figures,
on fresh inputs: the worst global level of :func:`pixelize.checkerboard` at each period, the largest rise of a
frequency over the original's level (or over 0 dB, if that is more), PSNR to the original, the task (PSNR to
the truth, or the pixels right in per cent), seconds. Every row is written to
benchmarks/results/repair_models.json as soon as it is measured; rows that are there are not measured again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import small_networks
import torch
from repair_dcgan import generator
from torch import Tensor, nn
from torch.nn import functional as F

import pixelize
from pixelize.measure.decibels import psnr
from pixelize.measure.notch import clean_target
from pixelize.running.pictures import picture_along, run

PERIODS = (2, 4, 8, 16)
Loaded = tuple[nn.Module, Any, Any, Tensor | None]


def load(name: str, zoo: Any, draw: int, fit: int) -> Loaded:
    """A model, inputs to fit to, fresh ones and the truth."""
    if name in ("gan-face-generate", "demo"):
        model, channels = generator(name)
        seeded = torch.Generator().manual_seed(1000 + draw)
        fresh = torch.randn(512, channels, 1, 1, generator=torch.Generator().manual_seed(999))
        return model, torch.randn(8 * fit, channels, 1, 1, generator=seeded), fresh, None
    if name in small_networks.NAMES:
        given, _ = small_networks.scenes(name, 2000 + 1000 * draw, fit)
        fresh, truth = small_networks.scenes(name, 10_000, 64)
        return small_networks.trained(name, Path("runs/small_networks")), given, fresh, truth
    model, given, fresh, truth, _ = zoo.load(name, fit=(draw + 1) * fit, fresh=32)
    return model, given[draw * fit : (draw + 1) * fit], fresh, truth


def pictures(model: nn.Module, inputs: Any) -> Tensor:
    """Of all inputs, a few at a time."""
    batches = inputs if isinstance(inputs, list) else inputs.split(8)
    with torch.no_grad():
        return torch.cat([frames(run(model, batch)) for batch in batches]).float()


def frames(output: Any) -> Tensor:
    """The picture in a model's output; frames as channels."""
    found = picture_along(output, 2)
    assert found is not None
    return found


def levels(y: Tensor) -> dict[int, dict[tuple[float, float], float]]:
    """Global levels by period, where pictures are large enough."""
    return {p: pixelize.checkerboard(y, p)["global"] for p in PERIODS if 8 * p <= min(y.shape[-2:])}


def figures(y: Tensor, original: Tensor, truth: Tensor | None) -> dict[str, Any]:
    now, was = levels(y), levels(original)
    rises = [now[p][f] - max(was[p][f], 0.0) for p in now for f in now[p]]
    fidelity = psnr([original], [y])
    return {
        "worst": {str(p): round(max(v.values()), 2) for p, v in now.items()},
        "largest rise": round(max(rises), 2),
        "PSNR to the original": None if fidelity == float("inf") else round(fidelity, 2),
        "task": None if truth is None else round(task(y, truth), 3),
    }


def task(y: Tensor, truth: Tensor) -> float:
    """PSNR to the true pictures, or the pixels in per cent that are of the right class."""
    if truth.dim() == 3:
        return 100 * (y.argmax(1) == truth).double().mean().item()
    return psnr([frames(truth)], [y])


def measured(name: str, zoo: Any, draw: int, fit: int) -> dict[str, Any]:
    """One model, one draw of the data, all arms."""
    model, given, fresh, truth = load(name, zoo, draw, fit)
    wall, cpu = time.perf_counter(), time.process_time()
    repaired = pixelize.repair(model, given, progress=False)
    seconds = {"wall": time.perf_counter() - wall, "CPU": time.process_time() - cpu}
    before = pictures(model, fresh)
    period = max(p for p in (2, 4) if 8 * p <= min(before.shape[-2:]))
    arms = {
        "as it came": before,
        "repaired": pictures(repaired, fresh),
        "notched at run time": clean_target(before, period),
        "mean of 2x2": F.avg_pool2d(F.pad(before, (0, 1, 0, 1), mode="replicate"), 2, 1),
        "mean of 3x3": F.avg_pool2d(F.pad(before, (1, 1, 1, 1), mode="replicate"), 3, 1),
    }
    found: dict[str, Any] = {arm: figures(y, before, truth) for arm, y in arms.items()}
    if truth is not None and truth.dim() > 3:
        truth = frames(truth)
        found["truth"] = {"worst": {str(p): round(max(v.values()), 2) for p, v in levels(truth).items()}}
    found["seconds"] = {k: round(v, 1) for k, v in seconds.items()}
    found["verdict"] = pixelize.repair_report(repaired).verdict()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Repair models of many kinds.")
    parser.add_argument("--models", type=Path, help="a folder with a zoo.py")
    parser.add_argument("--only", default="", help="names, with commas between")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--fit", type=int, default=64, help="samples to fit to; eight times as many latents")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    zoo = None
    if args.models:
        spec = importlib.util.spec_from_file_location("zoo", args.models / "zoo.py")
        assert spec is not None and spec.loader is not None
        zoo = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(zoo)
    names = (
        args.only.split(",")
        if args.only
        else [*(zoo.NAMES if zoo else ()), "gan-face-generate", "demo", *small_networks.NAMES]
    )
    file = args.out / "repair_models.json"
    rows: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for draw in range(args.draws):
        for name in names:
            row = f"{name}, draw {draw}, {args.fit}"
            if row not in rows:
                rows[row] = measured(name, zoo, draw, args.fit)
                args.out.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(rows, indent=1) + "\n")
                print(row, rows[row]["repaired"], rows[row]["seconds"], rows[row]["verdict"], flush=True)


if __name__ == "__main__":
    main()
