"""How far an adapter (depthwise dependency kernels alone) takes a trained segmentation model to a new domain:
CamVid with red and blue exchanged.

    python benchmarks/new_palette.py --data camvid256.zip --weights runs/camvid/dcl-k3-seed0/best.safetensors

The weights are those of the recipe's U-Net, arm dcl-k3. Fine-tuned side by side: the model itself (control),
its iPixelDCL with depthwise dependencies, and that one's dependency kernels alone, at `--adapter-lr`. Writes
benchmarks/results/new_palette.json and .md; `as it came` is the model before, on the new pictures.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import zipfile
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image
from written import command

from pixelize.files import replacing, write_text
from pixelize.recipes import segmentation
from pixelize.recipes.data.segmentation import load_segmentation
from pixelize.recipes.recipe_settings import SegmentationSettings
from pixelize.recipes.training.processes import start
from pixelize.recipes.training.results import markdown


def exchanged(source: Path, target: Path) -> None:
    """Writes a copy of a zip of pictures, those of three channels with red and blue exchanged, as PNG."""
    with replacing(target) as path, zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            if info.is_dir():
                continue
            contents, name = old.read(info), Path(info.filename)
            picture = Image.open(io.BytesIO(contents))
            if picture.mode == "RGB":
                red, green, blue = picture.split()
                written = io.BytesIO()
                Image.merge("RGB", (blue, green, red)).save(written, "png")
                contents, name = written.getvalue(), name.with_suffix(".png")
            new.writestr(name.as_posix(), contents)


def main() -> None:
    parser = argparse.ArgumentParser(description="An adapter for CamVid with red and blue exchanged.")
    parser.add_argument("--data", required=True, type=Path, help="CamVid, a zip")
    parser.add_argument("--weights", required=True, help="of the recipe's U-Net, arm dcl-k3")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--steps", type=int, default=184)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--adapter-lr", type=float, default=1e-2)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--arms", default="control,ipixeldcl-dw,adapter")
    parser.add_argument("--work", type=Path, default=Path("runs/new_palette"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()

    data = args.work / "camvid-bgr.zip"
    if not data.exists():
        exchanged(args.data, data)
    metrics = ("mIoU", "boundary IoU", "accuracy")
    rows = [["arm", "trained numbers", "rate", *metrics]]
    found: dict = {}
    for arm in args.arms.split(","):
        rate = args.adapter_lr if arm == "adapter" else args.lr
        s = SegmentationSettings(
            data=str(data), out=str(args.work), weights=args.weights, size=args.size, batch=8,
            model=f"pixelize.recipes.models.unet:UNet?classes=11&arm=dcl-k3&width={args.width}",
            steps=args.steps, eval_every=args.steps, warmup=args.steps // 10, seeds=args.seeds,
            arms=arm, lr=rate, cpu=True, threads=1, precision="bf16", channels_last=True,
        )  # fmt: skip
        if not found:
            sets = load_segmentation(s.data, s.size)
            model = segmentation.first_model(s, len(sets.classes)).eval()
            with torch.no_grad():
                before = segmentation.measure(model, sets.test, s.eval_batch, start(s))
            rows.append(["as it came", "0", "", *(f"{before[m]:.3f}" for m in metrics)])
            found = {
                "settings": asdict(s) | {"weights": "", "out": "", "data": data.name},
                "as it came": before,
            }
        found[arm] = segmentation.run(s)["arms"][arm]
        means = (statistics.fmean(r[m] for r in found[arm]["results"]) for m in metrics)
        trained = f"{found[arm]['facts']['trained']:,}"
        rows.append([f"`{arm}`", trained, f"{rate:g}", *(f"{mean:.3f}" for mean in means)])
    told = f"{args.size}x{args.size}, {args.steps} steps of 8, seeds {args.seeds}"
    write_text(args.out / "new_palette.json", json.dumps(found) + "\n")
    write_text(args.out / "new_palette.md", f"{told}\n\n    {command()}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
