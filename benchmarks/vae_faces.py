"""The paper's VAE on 64x64 faces: ConvTranspose2d against iPixelDCL and PixelDCL.

    python benchmarks/vae_faces.py --data faces64.zip  # 300 steps: a quarter of an hour on a CPU
    python benchmarks/vae_faces.py --data faces64.zip --preset full  # 20,000 steps, 3 seeds: wants a GPU

Writes benchmarks/results/vae_faces_<preset>.json and .md after each seed, and .png, samples of each arm
as in the paper's figure 7; the run's folder has sheets with pictures and their reconstructions, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw
from written import run_and_write

from pixelize.recipes import vae
from pixelize.recipes.recipe_settings import VaeSettings

PRESETS: dict[str, dict] = {
    "full": {
        "steps": 20_000,
        "batch": 64,
        "width": 64,
        "latents": 128,
        "eval_every": 1000,
        "seeds": "0,1,2",
        "workers": 8,
    },
    "small": {
        "steps": 300,
        "batch": 32,
        "width": 16,
        "latents": 64,
        "eval_every": 100,
        "seeds": "0,1",
        "cpu": True,
        "threads": 1,
        "save_every": 25,
        "limit": 4000,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description="A VAE on faces with different up-samplers.")
    parser.add_argument("--data", required=True, help="faces, a folder or zip")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--arms", default="dcl-k4,ipixeldcl,pixeldcl,resize-conv")
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("--width", type=int, help="instead of the preset's")
    parser.add_argument("--seeds", help="instead of the preset's")
    parser.add_argument("--precision", help="no or bf16")
    parser.add_argument("--limit", type=int, help="only so many pictures")
    parser.add_argument("--cpu", action="store_true", default=None, help="stay on the CPU")
    parser.add_argument("--work", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()

    name = f"vae_faces_{args.preset}"
    own = ("steps", "width", "seeds", "precision", "limit", "cpu")
    preset = PRESETS[args.preset] | {k: getattr(args, k) for k in own if getattr(args, k) is not None}
    folder = args.work / name
    settings = VaeSettings(data=args.data, channels=args.channels, arms=args.arms, out=str(folder), **preset)
    run_and_write(vae.run, settings, args.out, name)
    draw_samples(folder, args.arms.split(","), args.out / f"{name}.png")


def draw_samples(folder: Path, arms: list[str], path: Path) -> None:
    """Writes the samples of each arm's sheet side by side, with the arm's name over them."""
    sheets = {}
    for arm in arms:
        sheet = Image.open(folder / f"samples-{arm}.png").convert("L")
        sheets[arm] = sheet.crop((0, sheet.height // 2, sheet.width, sheet.height))  # no picture of the data
    width, height = next(iter(sheets.values())).size
    page = Image.new("L", (width * len(sheets), height + 16), 255)
    for i, (arm, sheet) in enumerate(sheets.items()):
        page.paste(sheet, (i * width, 16))
        ImageDraw.Draw(page).text((i * width + 4, 2), arm, 0)
    page.save(path, optimize=True)


if __name__ == "__main__":
    main()
