"""CamVid: the paper's U-Net from scratch with every up-sampler, and trained smp models, converted and not.

    python benchmarks/camvid.py scratch --data camvid256.zip --full          # 256x256, 3 seeds: wants a GPU
    python benchmarks/camvid.py scratch --data camvid256.zip                 # 64x64: half an hour on a CPU
    python benchmarks/camvid.py smp:Linknet --data camvid256.zip --full      # trained, converted, fine-tuned
    python benchmarks/camvid.py smp:Unet --data camvid256.zip --full

Several GPUs: `accelerate launch benchmarks/camvid.py ...`. The same command goes on after an interruption.
Writes benchmarks/results/camvid_<what>_<full|small>.json and .md after each seed, with the run's settings.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from written import run_and_write

from pixelize.recipes import segmentation
from pixelize.recipes.recipe_settings import SegmentationSettings

SCRATCH = "dcl-k3,dcl-k4,dcl-k2,ipixeldcl,pixeldcl,resize-conv,pixelshuffle-icnr"
CONVERTED = "control,ipixeldcl,ipixeldcl-dw,pixeldcl,annealed"
FULL = {
    "size": 256,
    "width": 32,
    "batch": 16,
    "steps": 8000,
    "eval_every": 400,
    "seeds": "0,1,2",
    "precision": "bf16",
    "channels_last": True,
    "workers": 8,
    "eval_batch": 32,
}
SMALL = {
    "size": 64,
    "width": 8,
    "batch": 8,
    "steps": 300,
    "eval_every": 100,
    "seeds": "0,1,2",
    "cpu": True,
    "threads": 1,
    "save_every": 25,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="CamVid with every up-sampler, or a trained smp model converted."
    )
    parser.add_argument("what", help="scratch, or a model such as smp:Linknet?encoder_name=resnet34")
    parser.add_argument("--data", required=True, help="CamVid, a folder or zip")
    parser.add_argument("--full", action="store_true", help="256x256 and three seeds, on a GPU")
    parser.add_argument("--size", type=int, default=0, help="instead of the preset's")
    parser.add_argument("--steps", type=int, default=0, help="instead of the preset's")
    parser.add_argument("--seeds", default="", help="instead of the preset's")
    parser.add_argument("--arms", default="", help="instead of all")
    parser.add_argument("--work", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()

    name = (
        f"camvid_{args.what.partition('?')[0].replace(':', '_').lower()}_{'full' if args.full else 'small'}"
    )
    preset: dict = dict(FULL if args.full else SMALL)
    preset |= {k: getattr(args, k) for k in ("size", "steps", "seeds") if getattr(args, k)}
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
    run_and_write(segmentation.run, settings, args.out, name, "mIoU")


if __name__ == "__main__":
    main()
