"""Seconds and memory that ``pixelize.convert`` takes in place, beside those of copying the model.

    python benchmarks/convert_time.py                      # writes results/convert_time.json and .md
    python benchmarks/convert_time.py --only smp diffusers

Real models with random weights, then chains of more and more up-samplers, which show how the time grows. Each
conversion has a process of its own for its memory: the most that it holds beyond the model and what the new
layers keep (the originals of converted weights among it, which ``pixelize.revert`` puts back).
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from models import stable_diffusion_vae
from torch import Tensor, nn

import pixelize
from pixelize.benchmarking.machine import describe_machine
from pixelize.inheritance.cost import count_parameters

RESULTS = Path(__file__).parent / "results"
Built = tuple[nn.Module, Any]


def smp_unet() -> Built:
    """smp.Unet, ResNet-101, four times as wide a decoder as usual."""
    import segmentation_models_pytorch as smp

    model = smp.Unet("resnet101", encoder_weights=None, decoder_channels=(1024, 512, 256, 128, 64))
    return model, torch.randn(1, 3, 64, 64)


def smp_linknet() -> Built:
    """smp.Linknet, ResNeXt-101 32x8d: transposed convolutions."""
    import segmentation_models_pytorch as smp

    return smp.Linknet("resnext101_32x8d", encoder_weights=None), torch.randn(1, 3, 64, 64)


def autoencoder() -> Built:
    """diffusers' AutoencoderKL, a quarter wider than Stable Diffusion's."""
    return stable_diffusion_vae(160), torch.randn(1, 3, 64, 64)


def sam() -> Built:
    """transformers' SAM, ViT-B, on 256 x 256."""
    from transformers import SamConfig, SamModel

    config = SamConfig()
    config.vision_config.image_size = config.prompt_encoder_config.image_size = 256
    config.prompt_encoder_config.image_embedding_size = 256 // 16
    return SamModel(config), {"pixel_values": torch.randn(1, 3, 256, 256)}


def generator() -> Built:
    """pix2pixHD's global generator: transposed convolutions after residual blocks of 1024 channels."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            twice = [_conv(1024, 1024, nn.Conv2d(1024, 1024, 3, padding=1)) for _ in range(2)]
            self.body = nn.Sequential(*twice[0], *twice[1])

        def forward(self, x: Tensor) -> Tensor:
            return x + self.body(x)

    widths = (64, 128, 256, 512, 1024)
    parts: list[nn.Module] = [nn.Conv2d(3, 64, 7, padding=3)]
    for a, b in pairwise(widths):
        parts += _conv(a, b, nn.Conv2d(a, b, 3, 2, 1))
    parts += [Block() for _ in range(9)]
    for a, b in pairwise(widths[::-1]):
        parts += _conv(a, b, nn.ConvTranspose2d(a, b, 3, 2, 1, 1))
    return nn.Sequential(*parts, nn.Conv2d(64, 3, 7, padding=3)), torch.randn(1, 3, 64, 64)


def _conv(before: int, after: int, layer: nn.Module) -> list[nn.Module]:
    return [layer, nn.InstanceNorm2d(after), nn.ReLU()]


def chain(sites: int) -> Callable[[], Built]:
    """That many transposed convolutions of 4 channels, each with a convolution that halves the size again."""

    def build() -> Built:
        steps = [
            nn.Sequential(nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.Conv2d(4, 4, 2, 2), nn.Tanh())
            for _ in range(sites)
        ]
        return nn.Sequential(*steps), torch.randn(1, 4, 4, 4)

    return build


MODELS: dict[str, Callable[[], Built]] = {
    "smp.Unet resnet101": smp_unet,
    "smp.Linknet resnext101": smp_linknet,
    "diffusers AutoencoderKL": autoencoder,
    "transformers SAM ViT-B": sam,
    "pix2pixHD generator": generator,
    **{f"chain of {n}": chain(n) for n in (10, 100, 1000)},
}


def measure(name: str, layer: str, given: bool) -> dict[str, Any]:
    """One model: seconds of running it, of copying it and of converting it in place, the medians of three."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    _first_conversion(layer)
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    model.eval()
    options = {"example_inputs": inputs} if given else {}
    forwards, copies, times = [], [], []
    _forward(model, inputs)  # what a library builds at its first run is not counted
    for _ in range(3):
        forwards.append(_forward(model, inputs))
        start = time.thread_time()
        twin = copy.deepcopy(model)
        copies.append(time.thread_time() - start)
        start = time.thread_time()
        pixelize.convert(twin, layer, inplace=True, **options)
        times.append(time.thread_time() - start)
        del twin
    return {
        "model": name,
        "layer": layer,
        "example_inputs": given,
        "parameters": count_parameters(model),
        "modules": sum(1 for _ in model.modules()),
        "forward": sorted(forwards)[1],
        "copy": sorted(copies)[1],
        "convert": sorted(times)[1],
    }


def _first_conversion(layer: str) -> None:
    # imports what is imported at the first use
    small = nn.Sequential(nn.ConvTranspose2d(2, 2, 2, 2))
    pixelize.convert(small, layer, example_inputs=torch.randn(1, 2, 4, 4))


def _forward(model: nn.Module, inputs: Any) -> float:
    start = time.thread_time()
    with torch.no_grad():
        pixelize.adapters.call(model, inputs)
    return time.thread_time() - start


def measure_memory(name: str, layer: str, given: bool) -> dict[str, Any]:
    """One model, in bytes: its weights, what it holds more once converted in place, how much of that is zero
    and so takes no memory yet, the peak on the way beyond the rest (and beyond what a run takes)."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    _first_conversion(layer)
    model, inputs = MODELS[name]()
    model.eval()
    _forward(model, inputs)
    weights = _bytes(model)
    before = _peak()
    pixelize.convert(model, layer, inplace=True, **({"example_inputs": inputs} if given else {}))
    grown = _bytes(model) - weights
    layers = [m for m in model.modules() if isinstance(m, pixelize.iPixelDCL2d)]
    zero = sum(kernel.nbytes for m in layers for kernel in m.dependency_kernels)
    return {
        "weights": weights,
        "grown": grown,
        "zero": zero,
        "beyond": _peak() - before - (grown - zero),
    }


def _bytes(model: nn.Module) -> int:
    # what the model holds, the originals that a conversion keeps for revert included
    found: dict[int, int] = {}
    states: list[dict[str, Any]] = [m.__dict__ for m in model.modules()]
    for m in model.modules():
        record = m.__dict__.get("_pixelize_record")
        if record is not None and record.origin is not None:
            states.append(record.origin[1])
    for state in states:
        for t in [*state["_parameters"].values(), *state["_buffers"].values()]:
            if t is not None:
                found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
    return sum(found.values())


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measures every model and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], help="models whose name begins so")
    parser.add_argument("--out", type=Path, default=RESULTS / "convert_time")
    a = parser.parse_args()
    machine = describe_machine("cpu", 1)
    rows = []
    lines = [
        f"{machine['device']}, one thread, {machine['clock']}, torch {machine['torch']}: medians of three.",
        "With example inputs the model is run on them before and after its conversion: `besides` is the time",
        "less two forwards of the original.",
        "`kept`: what the model holds more than before (dependency kernels, merged kernels, originals for",
        "`revert`), `zero`: how much of it is zero kernels, which take no memory until they are written;",
        "`beyond`: the highest resident memory on the way, less what is kept and not zero.",
        "",
        "| model | parameters | modules | layer | example inputs | one forward, s | copy, s | convert, s | "
        "besides, s | weights, MiB | kept, MiB | zero, MiB | beyond, MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in MODELS:
        if not name.startswith(tuple(a.only)):
            continue
        for layer, given in (("ipixeldcl", True), ("ipixeldcl", False)):
            row = _apart(measure, name, layer, given)
            row.update(_apart(measure_memory, name, layer, given))
            rows.append(row)
            cells = [name, f"{row['parameters']:,}", str(row["modules"]), layer, "yes" if given else "no"]
            row["besides"] = row["convert"] - (2 * row["forward"] if given else 0)
            cells += [f"{row[key]:.2f}" for key in ("forward", "copy", "convert", "besides")]
            cells += [f"{row[key] / 2**20:.0f}" for key in ("weights", "grown", "zero", "beyond")]
            lines.append("| " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
            result = {"machine": machine, "rows": rows}
            a.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
            a.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _apart(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


if __name__ == "__main__":
    main()
