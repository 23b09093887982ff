"""The paper's VAE, or a DCGAN, on 64x64 faces: the pattern of each up-sampler as training goes on.

    python benchmarks/faces.py vae --data faces64.zip                  # 300 steps: minutes on a CPU
    python benchmarks/faces.py vae --data faces64.zip --preset medium  # 32 channels, longer: CPU hours
    python benchmarks/faces.py gan --data faces64.zip --preset full    # 20,000 steps, 3 seeds: wants a GPU

Writes benchmarks/results/<vae|gan>_faces_<preset>.json and .md after each seed, and .png, samples of each arm
as in the paper's figure 7; the run's folder has the VAE's sheets with pictures and reconstructions, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw
from written import run_and_write

from pixelize.recipes import gan, vae
from pixelize.recipes.recipe_settings import GanSettings, VaeSettings

RECIPES = {"vae": (vae.run, VaeSettings), "gan": (gan.run, GanSettings)}
CPU = {"cpu": True, "threads": 1, "save_every": 25}
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
    "medium": {
        "steps": 1500,
        "batch": 32,
        "width": 32,
        "latents": 64,
        "eval_every": 150,
        "seeds": "0,1,2",
        **CPU,
    },
    "small": {
        "steps": 300,
        "batch": 32,
        "width": 16,
        "latents": 64,
        "eval_every": 100,
        "seeds": "0,1",
        "limit": 4000,
        **CPU,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description="A VAE or a GAN on faces with different up-samplers.")
    parser.add_argument("what", choices=RECIPES)
    parser.add_argument("--data", required=True, help="faces, a folder or zip")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--arms", default="dcl-k4,ipixeldcl,pixeldcl,resize-conv")
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("--width", type=int, help="instead of the preset's")
    parser.add_argument("--seeds", help="instead of the preset's")
    parser.add_argument("--workers", type=int, help="instead of the preset's")
    parser.add_argument("--precision", help="no or bf16")
    parser.add_argument("--limit", type=int, help="only so many pictures")
    parser.add_argument("--cpu", action="store_true", default=None, help="stay on the CPU")
    parser.add_argument("--work", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()

    name = f"{args.what}_faces_{args.preset}"
    own = ("steps", "width", "seeds", "workers", "precision", "limit", "cpu")
    preset = PRESETS[args.preset] | {k: getattr(args, k) for k in own if getattr(args, k) is not None}
    run, settings = RECIPES[args.what]
    folder = args.work / name
    given = {"data": args.data, "channels": args.channels, "arms": args.arms, "out": str(folder)}
    run_and_write(run, settings(**given, **preset), args.out, name)
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
