"""How close one layer of the trained DCGAN of ``gan-face-generate`` could come as a PixelDCL: the least
error that any linear layer with its bottleneck can have, the closed-form fit's, and what joint training of
the first phase and the kernels makes of that, by Adam on the weights and by Adam in whitened coordinates.

    python benchmarks/pixeldcl_limits.py --layers 9 --seconds 50
    python benchmarks/pixeldcl_limits.py --layers 12 --window 5 --seconds 50

Errors are relative (root of squared error over squared output) on 256 latents that nothing was fitted to; the
layer's input is the original's. The bottleneck: all phases are made of one map of C_out channels at low
resolution, so at each frequency a matrix of rank C_out makes the s_h s_w C_out phases' channels; the least
error is what the largest C_out eigenvalues leave of the phases' cross-spectrum (periodic, windows of any
size).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import pathlib
import time

import torch
from pixeldcl_dcgan import generator, latents, rate_groups
from torch import Tensor, nn

import pixelize
from pixelize.calibration.joint_fit import RATE, rate_share
from pixelize.calibration.layer_fit import fit_layer
from pixelize.calibration.whitened_adam import WhitenedAdam
from pixelize.files import write_text
from pixelize.layers.pixel_dcl import PixelDCL2d

RESULTS = pathlib.Path(__file__).parent / "results" / "pixeldcl_limits.json"
Pair = tuple[Tensor, Tensor]


def least_error(outputs: Tensor) -> float:
    """Of any linear layer through C maps at half the resolution, for outputs (N, C, H, W)."""
    channels = outputs.shape[1]
    phases = torch.cat([outputs[..., a::2, b::2] for a in (0, 1) for b in (0, 1)], 1)
    spectra = torch.fft.fft2(phases, norm="ortho").permute(2, 3, 1, 0).flatten(0, 1)
    total = lost = 0.0
    for spectrum in spectra:
        power = torch.linalg.eigvalsh(spectrum @ spectrum.mH)
        total += float(power.sum())
        lost += float(power[:-channels].clamp_min(0).sum())
    return math.sqrt(lost / total)


def train(
    model: nn.Sequential,
    place: int,
    layer: PixelDCL2d,
    pairs: list[Pair],
    test: list[Pair],
    arguments: argparse.Namespace,
    whitened: bool,
) -> tuple[float, int]:
    """Trains a copy of ``layer`` on fresh latents; its error on ``test``, and the steps taken.

    What is measured before the training, scale and whitening, is measured on ``pairs``.
    """
    layer = copy.deepcopy(layer).requires_grad_(True)
    optimizer: torch.optim.Optimizer
    start, steps = time.process_time(), 0
    if whitened:
        optimizer = WhitenedAdam(layer, [x for x, _ in pairs[:4]], arguments.rate)
    else:
        optimizer = torch.optim.Adam(rate_groups(layer, arguments.plain_rate), betas=(0.9, 0.98))
    power = sum(float(y.square().mean()) for _, y in pairs) / len(pairs)
    rates = [group["lr"] for group in optimizer.param_groups]
    random = torch.Generator().manual_seed(arguments.seed)
    while (share := (time.process_time() - start) / arguments.seconds) < 1:
        with torch.no_grad():
            x = model[:place](torch.randn(arguments.batch, 100, 1, 1, generator=random))
            y = model[place](x)
        loss = (layer(x) - y).square().mean() / power
        optimizer.zero_grad()
        loss.backward()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * rate_share(steps, share)
        optimizer.step()
        steps += 1
    with torch.no_grad():
        return error(layer, test), steps


def error(layer, test: list[Pair]) -> float:  # type: ignore[no-untyped-def]
    """Relative error of a layer on pairs of its input and wanted output."""
    missed = sum(float((layer(x) - y).double().square().sum()) for x, y in test)
    return math.sqrt(missed / sum(float(y.double().square().sum()) for _, y in test))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="*", default=[9, 12], help="places in the generator")
    parser.add_argument("--window", type=int, default=3, help="dependency kernel size")
    parser.add_argument("--seconds", type=float, default=60, help="CPU seconds of each training")
    parser.add_argument("--rate", type=float, default=RATE, help="of Adam in whitened coordinates")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--plain-rate", type=float, default=3e-3, help="of Adam, relative to each weight")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = generator().main
    for place in arguments.layers:
        with torch.no_grad():
            pairs = [(x, model[place](x)) for x in map(model[:place], latents(512, 0))]
            test = [(x, model[place](x)) for x in map(model[:place], latents(256, 12345))]
            least = least_error(torch.cat([model[: place + 1](z) for z in latents(1500, 1)]))
        holder = nn.Sequential(copy.deepcopy(model[place]))
        layer = pixelize.convert(holder, "pixeldcl", dependency_kernel_size=arguments.window)[0]
        fit_layer(layer, lambda pairs=pairs: pairs)
        with torch.no_grad():
            row: dict[str, object] = {"least": round(least, 4), "closed form": round(error(layer, test), 4)}
        for name, whitened in (("adam", False), ("whitened adam", True)):
            found, steps = train(model, place, layer, pairs, test, arguments, whitened)
            row[name] = {"error": round(found, 4), "steps": steps}
        row |= {
            "batch": arguments.batch,
            "cpu_seconds": arguments.seconds,
            "seed": arguments.seed,
            "threads": arguments.threads,
        }
        name = f"main.{place}, {arguments.window}x{arguments.window}, seed {arguments.seed}"
        print(name, json.dumps(row), flush=True)
        rows = json.loads(arguments.results.read_text())["rows"] if arguments.results.exists() else {}
        text = json.dumps({"torch": torch.__version__, "rows": {**rows, name: row}}, indent=1) + "\n"
        write_text(arguments.results, text)


if __name__ == "__main__":
    main()
