"""CamVid: the paper's U-Net from scratch with every up-sampler, and trained smp models, converted and not.

    python benchmarks/camvid.py scratch --data camvid256.zip                  # 64x64, 8 channels: minutes
    python benchmarks/camvid.py scratch --data camvid256.zip --preset medium  # 16 channels: CPU hours
    python benchmarks/camvid.py scratch --data camvid256.zip --preset full    # 256x256: wants a GPU
    python benchmarks/camvid.py smp:Linknet --data camvid256.zip --preset full  # trained, converted, tuned
    python benchmarks/camvid.py widths --preset full      # which widths match the paper's layers in capacity

Several GPUs: `accelerate launch benchmarks/camvid.py ...`. The same command goes on after an interruption.
Writes benchmarks/results/camvid_<what>_<preset>.json and .md after each seed, with the run's settings.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from written import run_and_write

from pixelize.recipes import segmentation
from pixelize.recipes.models.unet import UNet
from pixelize.recipes.recipe_settings import SegmentationSettings

SCRATCH = "dcl-k3,ipixeldcl,pixeldcl,dcl-k4,pixeldcl-masked,resize-conv,pixelshuffle-icnr"
CONVERTED = "control,ipixeldcl,ipixeldcl-dw,pixeldcl,annealed"
PRESETS: dict[str, dict] = {
    "full": {
        "size": 256,
        "width": 32,
        "batch": 16,
        "steps": 8000,
        "eval_every": 400,
        "seeds": "0,1,2,3,4",
        "precision": "bf16",
        "channels_last": True,
        "workers": 8,
        "eval_batch": 32,
    },
    "medium": {
        "size": 64,
        "width": 16,
        "batch": 8,
        "steps": 920,
        "eval_every": 115,
        "seeds": "0,1,2,3,4",
        "precision": "bf16",
        "channels_last": True,
        "cpu": True,
        "threads": 1,
        "save_every": 50,
    },
    "small": {
        "size": 64,
        "width": 8,
        "batch": 8,
        "steps": 300,
        "eval_every": 100,
        "seeds": "0,1,2",
        "cpu": True,
        "threads": 1,
        "save_every": 25,
    },
}


def capacity(arm: str, width: int, size: int) -> tuple[int, int]:
    """Parameters, and multiply-adds of one picture, of the paper's U-Net for CamVid's eleven classes."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = UNet(11, arm, width).eval()
        model(torch.zeros(1, 3, size, size))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def widths(width: int, size: int) -> None:
    """Prints the arms whose models are as wide as it takes to match one another in capacity."""
    arms = ("dcl-k3", "dcl-k4", "pixeldcl", "ipixeldcl")
    found = {arm: capacity(arm, width, size) for arm in arms}
    for arm in arms:
        print(f"{arm}: {found[arm][0]:,} parameters, {found[arm][1]:,} multiply-adds at {size}x{size}")
        for other in arms:
            for kind, name in enumerate(("parameters", "multiply-adds")):
                if found[other][kind] > found[arm][kind]:
                    best = min(
                        range(width, 3 * width),
                        key=lambda w: abs(capacity(arm, w, size)[kind] - found[other][kind]),
                    )
                    share = capacity(arm, best, size)[kind] / found[other][kind]
                    print(f"    {arm}-w{best} has {share:.2f} of the {name} of {other}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="CamVid with every up-sampler, or a trained smp model converted."
    )
    parser.add_argument("what", help="scratch, widths, or a model such as smp:Linknet?encoder_name=resnet34")
    parser.add_argument("--data", default="", help="CamVid, a folder or zip")
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--size", type=int, help="instead of the preset's")
    parser.add_argument("--width", type=int, help="instead of the preset's")
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("--batch", type=int, help="instead of the preset's")
    parser.add_argument("--seeds", help="instead of the preset's")
    parser.add_argument("--workers", type=int, help="instead of the preset's")
    parser.add_argument("--precision", help="instead of the preset's")
    parser.add_argument("--limit", type=int, help="of each set only so many pictures")
    parser.add_argument("--cpu", action="store_true", default=None, help="stay on the CPU")
    parser.add_argument("--arms", default="", help="instead of all")
    parser.add_argument("--work", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()

    preset = dict(PRESETS[args.preset])
    own = ("size", "width", "steps", "batch", "seeds", "workers", "precision", "limit", "cpu")
    preset |= {name: getattr(args, name) for name in own if getattr(args, name) is not None}
    if args.what == "widths":
        return widths(preset["width"], preset["size"])
    if not args.data:
        parser.error("--data: say where CamVid is")
    name = f"camvid_{args.what.partition('?')[0].replace(':', '_').lower()}_{args.preset}"
    if args.what == "scratch":
        preset["arms"] = args.arms or SCRATCH
    else:  # as long again for every arm, from the base's best weights, at a lower rate
        preset |= {
            "model": args.what,
            "arms": args.arms or CONVERTED,
            "base_steps": preset["steps"],
            "lr": 3e-4,
        }
    settings = SegmentationSettings(data=args.data, out=str(args.work / name), **preset)
    run_and_write(segmentation.run, settings, args.out, name)


if __name__ == "__main__":
    main()
