"""What checking in each call costs that a convolution's input is a resized picture.

    python benchmarks/check_cost.py --out benchmarks/results/check_cost_cpu          # writes .json and .md

``smp.Unet`` and diffusers' ``AutoencoderKL``: as they are, converted (``layer="dcl"``, a transposed
convolution in the place of each resize and convolution), and converted with the checks taken out; eagerly and
under ``torch.compile``, where the checks are made while compiling. All contenders in turns.
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pixelize
from pixelize.benchmarking.machine import describe_machine
from pixelize.benchmarking.timing import compare_modules
from pixelize.rewrites.watching.watched import unwatch


def smp_unet(side: int) -> tuple[nn.Module, Tensor]:
    """smp.Unet (ResNet-18)."""
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet18", encoder_weights=None), torch.randn(1, 3, side, side)


def autoencoder(side: int) -> tuple[nn.Module, Tensor]:
    """diffusers' AutoencoderKL, half as wide as Stable Diffusion's, two levels."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[32, 64, 128],
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
    )
    return model, torch.randn(1, 3, side, side)


def unchecked(model: nn.Module) -> nn.Module:
    """A copy of a converted model that takes for granted what it otherwise checks."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if getattr(module, "takes_claims", False):
            module.forward = partial(module.forward, claim=True)
        else:
            unwatch(module)
    return model


def main() -> None:
    """Runs both models and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="path without suffix for .json and .md")
    parser.add_argument("--side", type=int, default=128, help="of the pictures")
    parser.add_argument("--seconds", type=float, default=5.0, help="per contender")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    machine = describe_machine(options.device, 1)
    result: dict[str, Any] = {"machine": machine, "side": options.side, "models": {}}
    lines = [
        f"{machine['device']}, 1 thread, {machine['clock']}, torch {machine['torch']}, {options.side} x "
        f"{options.side} pixels.",
        "",
        "| model | mode | contender | ms | ratio to the original (quartiles) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, build in (("smp.Unet", smp_unet), ("AutoencoderKL", autoencoder)):
        torch.manual_seed(0)
        model, x = build(options.side)
        converted = pixelize.convert(model.eval(), "dcl", example_inputs=x)
        contenders = {"original": model, "converted": converted, "without checks": unchecked(converted)}
        for compiled in (False, True):
            if compiled:
                del contenders["without checks"]
            modules = {key: module.to(options.device) for key, module in contenders.items()}
            rows = compare_modules(
                modules, x.to(options.device), train=False, compiled=compiled, seconds=options.seconds
            )
            mode = "compiled" if compiled else "eager"
            result["models"][f"{name}, {mode}"] = [asdict(row) for row in rows]
            lines += [
                f"| {name} | {mode} | {row.contender} | {row.median * 1e3:.1f} "
                f"| {row.ratio:.3f} ({row.ratio_low:.3f} to {row.ratio_high:.3f}) |"
                for row in rows
            ]
            print("\n".join(lines[-len(rows) :]), flush=True)
            if options.out:
                options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
                options.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
