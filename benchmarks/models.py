"""Whole models: table 2 of *Pixel Deconvolutional Networks* today, and converted third-party models against
their originals.

    python benchmarks/models.py --out benchmarks/results/models_cpu          # writes .json and .md
    python benchmarks/models.py --models unet linknet --channels-last

The models are built with random weights: only their speed is measured.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pixelize
from pixelize.benchmarking.machine import describe_machine
from pixelize.benchmarking.timing import compare_modules, measure_ceilings
from pixelize.recipes.models.unet import UNet

Built = tuple[dict[str, nn.Module], Tensor]


def unet() -> Built:
    """The paper's U-Net, 21 classes, 256x256. DCL is the authors' own: 3x3 kernels with stride 2."""
    x = torch.randn(1, 3, 256, 256)
    arms = {"DCL": "dcl-k3", "iPixelDCL": "ipixeldcl", "PixelDCL": "pixeldcl", "DCL k4": "dcl-k4"}
    modules: dict[str, nn.Module] = {name: UNet(21, arm) for name, arm in arms.items()}
    depthwise: dict[str, Any] = dict(init="random", dependency_groups=-1, example_inputs=x)
    modules["iPixelDCL k4 depthwise"] = pixelize.convert(modules["DCL k4"], "ipixeldcl", **depthwise)
    modules["PixelDCL k4 depthwise"] = pixelize.convert(modules["DCL k4"], "pixeldcl", **depthwise)
    return modules, x


def linknet() -> Built:
    """smp.Linknet (ResNet-18): transposed convolutions, k4 s2."""
    import segmentation_models_pytorch as smp

    return _converted(smp.Linknet("resnet18", encoder_weights=None), torch.randn(1, 3, 256, 256))


def smp_unet() -> Built:
    """smp.Unet (ResNet-18): resize, concatenation with a skip, convolution."""
    import segmentation_models_pytorch as smp

    return _converted(smp.Unet("resnet18", encoder_weights=None), torch.randn(1, 3, 256, 256))


def autoencoder() -> Built:
    """diffusers' AutoencoderKL decoder, half as wide as Stable Diffusion's, to 128x128: resize, then
    convolution.
    """
    return _converted(stable_diffusion_vae(64).decoder, torch.randn(1, 4, 16, 16))


def stable_diffusion_vae(width: int) -> nn.Module:
    """diffusers' AutoencoderKL as in Stable Diffusion, which has a width of 128."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[width, 2 * width, 4 * width, 4 * width],
        layers_per_block=2,
        latent_channels=4,
    )


def _converted(model: nn.Module, x: Tensor) -> Built:
    model.eval()
    given: dict[str, Any] = dict(example_inputs=x)
    modules = {
        "original": model,
        "one ConvTranspose2d each": None,
        "iPixelDCL": pixelize.convert(model, "ipixeldcl", **given),
        "iPixelDCL masked": pixelize.convert(model, "ipixeldcl", schedule="masked", **given),
        "iPixelDCL 2x2": pixelize.convert(model, "ipixeldcl", dependency_kernel_size=2, **given),
        "PixelDCL": pixelize.convert(model, "pixeldcl", init="random", **given),
        "PixelDCL 2x2": pixelize.convert(model, "pixeldcl", init="random", dependency_kernel_size=2, **given),
        "iPixelDCL depthwise": pixelize.convert(model, "ipixeldcl", dependency_groups=-1, **given),
        "PixelDCL depthwise": pixelize.convert(
            model, "pixeldcl", init="random", dependency_groups=-1, **given
        ),
    }
    try:
        modules["one ConvTranspose2d each"] = pixelize.convert(model, "dcl", **given)
    except pixelize.PixelizeError:  # it has transposed convolutions already
        del modules["one ConvTranspose2d each"]
    return {name: module for name, module in modules.items() if module is not None}, x


def generator() -> Built:
    """The package's own face generator."""
    from pixelize.demo.generator import LATENT_CHANNELS, load_demo_model

    return _converted(load_demo_model(), torch.randn(16, LATENT_CHANNELS))


MODELS: dict[str, Callable[[], Built]] = {
    "unet": unet,
    "generator": generator,
    "linknet": linknet,
    "smp-unet": smp_unet,
    "autoencoder": autoencoder,
}


def main() -> None:
    """Runs the models and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--out", type=Path, help="path without suffix for .json and .md")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="per model and mode")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compiled", action="store_true", help="torch.compile every contender")
    a = parser.parse_args()
    warnings.filterwarnings("ignore")
    memory_format = torch.channels_last if a.channels_last else torch.contiguous_format
    result: dict[str, Any] = {"machine": describe_machine(a.device, a.threads), "models": []}
    machine = result["machine"]
    dtype = getattr(torch, a.dtype)
    ceilings = measure_ceilings(a.device, dtype)
    result["ceilings"] = asdict(ceilings)
    lines = [
        f"{machine['device']}, {machine['threads']} thread(s), {machine['clock']}, torch {machine['torch']}, "
        f"{'NHWC' if a.channels_last else 'NCHW'}, {a.dtype}{', compiled' if a.compiled else ''}.",
        "Ratios to the first line of each model (quartiles); at best: the roofline (benchmarks/NOTES.md).",
        "",
        "| model | contender | prediction, ms | at best | ratio | training, ms | at best | ratio | "
        "peak memory, training | multiply-adds | parameters |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in a.models:
        torch.manual_seed(0)
        modules, x = MODELS[name]()
        x = x.to(a.device, dtype).contiguous(memory_format=memory_format)
        for module in modules.values():
            module.to(device=a.device, dtype=dtype, memory_format=memory_format)
        rows = []
        for train in (False, True):
            for module in modules.values():
                module.train(train)
            rows.append(
                compare_modules(
                    modules, x, train=train, compiled=a.compiled, seconds=a.seconds, ceilings=ceilings
                )
            )
        for predicted, trained in zip(*rows, strict=True):
            cells = [name, predicted.contender]
            for row in (predicted, trained):
                cells.append(f"{row.median * 1e3:.0f}")
                cells.append(f"{row.roofline * 1e3:.0f}" if row.roofline else "")
                cells.append(f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})")
            cells.append(f"{trained.peak_memory / 2**20:.0f} MiB")
            cells.append(f"{(predicted.multiply_adds or 0) / 1e9:.2f}G")
            cells.append(f"{predicted.parameters / 1e6:.2f}M")
            lines.append("| " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
        entry = {
            "model": name,
            "prediction": [asdict(r) for r in rows[0]],
            "training": [asdict(r) for r in rows[1]],
        }
        result["models"].append(entry)
        if a.out:
            a.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
            a.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
