"""Train small networks for a few minutes, then repair them without training: artifact and task before and
after.

    python benchmarks/repair_trained.py --data faces64.zip --seconds 90

- super-resolution: 32x32 faces to 64x64, one transposed convolution (k4 s2 p1) with convolutions around it;
- style: a style-transfer generator (two strided convolutions, residual blocks with instance norm, two
  transposed convolutions k3 s2 p1 op1, whose taps overlap unevenly, a 9x9 convolution, tanh), trained to draw
  faces as pencil sketches;
- autoencoder: the same up-samplers with nothing after the last one, 64x64 faces;
- U-Net: the paper's (k3 s2, uneven), logits of 6 classes on scenes drawn on the fly: a dense prediction;
- identity: bilinear up-sampling written as a transposed convolution, which has nothing to repair.

The seconds are CPU seconds of training. Half of the data trains, a quarter repairs, a quarter measures. The
task's measure is PSNR to the true picture (range 2), the U-Net's its pixel accuracy in percent. Writes
benchmarks/results/repair_trained.json and .md. Pictures before and after go to --pictures: they show the
data, which may not be ours to publish.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from repair_dcgan import sheet
from torch import Tensor, nn
from torch.nn import functional as F

from pixelize.measure.checkerboard import checkerboard
from pixelize.measure.decibels import psnr
from pixelize.recipes.data.scenes import draw_scene
from pixelize.recipes.models.unet import UNet
from pixelize.refit.repair import repair
from pixelize.refit.report import repair_report


class SuperResolution(nn.Module):
    """(N, 1, h, w) to (N, 1, 2h, 2w)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
        )
        self.up = nn.ConvTranspose2d(width, width, 4, 2, 1)
        self.out = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.up(self.body(x))))


class Autoencoder(nn.Module):
    """(N, 1, h, w) to the same, through h/4 x w/4."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU()
        )
        self.up1 = nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1)
        self.up2 = nn.ConvTranspose2d(width, 1, 3, 2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.up2(F.relu(self.up1(self.encode(x)))))


class Style(nn.Module):
    """(N, 1, h, w) to the same, through h/4 x w/4."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()

        def norm(n: int) -> nn.Module:
            return nn.InstanceNorm2d(n, affine=True)

        def residual(n: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(n, n, 3, padding=1), norm(n), nn.ReLU(), nn.Conv2d(n, n, 3, padding=1)
            )

        self.encode = nn.Sequential(
            nn.Conv2d(1, width, 9, padding=4), norm(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1), norm(2 * width), nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, 2, 1), norm(4 * width), nn.ReLU(),
        )  # fmt: skip
        self.body = nn.ModuleList([residual(4 * width) for _ in range(2)])
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(4 * width, 2 * width, 3, 2, 1, 1), norm(2 * width), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1), norm(width), nn.ReLU(),
            nn.Conv2d(width, 1, 9, padding=4), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.encode(x)
        for block in self.body:
            x = x + block(x)
        return self.decode(x)


class Identity(nn.Module):
    """Bilinear x2 as a transposed convolution: [1, 3, 3, 1]/4 on a replicate-padded input, cropped."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(1, 1, 4, 2, 3, bias=False)
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
        self.up.weight.data = (row[:, None] * row)[None, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.pad(x, (1, 1, 1, 1), mode="replicate"))


def faces(path: str) -> Tensor:
    """Real faces (N, 1, 64, 64) in [-1, 1] out of a zip of pictures."""
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.lower().endswith((".jpg", ".png"))][::3]
        pictures = [Image.open(io.BytesIO(archive.read(n))).convert("L") for n in names]
    return torch.stack([torch.tensor(np.asarray(p, dtype=np.float32))[None] for p in pictures]) / 127.5 - 1


def sketches(pictures: Tensor) -> Tensor:
    """Pencil drawings of faces: dark where the brightness changes, in [-1, 1]."""
    smooth = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    padded = F.pad(smooth, (0, 1, 0, 1), mode="replicate")
    edges = (padded[..., 1:, :-1] - smooth).abs() + (padded[..., :-1, 1:] - smooth).abs()
    return 1 - 2 * (edges * 2.5).clamp(0, 1)


def scenes(count: int, first: int = 0, side: int = 64) -> tuple[Tensor, Tensor]:
    """Scenes of textured shapes (N, 3, side, side) in [-1, 1] and their classes (N, side, side)."""
    drawn = [draw_scene(first + n, side) for n in range(count)]
    pictures = torch.stack([torch.tensor(p).permute(2, 0, 1) for p, _ in drawn]).float() / 127.5 - 1
    return pictures, torch.stack([torch.tensor(m).long() for _, m in drawn])


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target) if target.dim() == 3 else (output - target).abs().mean()


def train(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    seconds: float,
    loss: Callable[[Tensor, Tensor], Tensor] = loss,
) -> int:
    """Adam, on the mean absolute error or the cross entropy if not told; returns the number of steps."""
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    began, steps = time.process_time(), 0
    draw = torch.Generator().manual_seed(0)
    while (spent := time.process_time() - began) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * max(0.05, 1 - spent / seconds)
        at = torch.randint(len(inputs), (32,), generator=draw)
        optimizer.zero_grad()
        loss(model(inputs[at]), targets[at]).backward()
        optimizer.step()
        steps += 1
    return steps


def task(output: Tensor, target: Tensor) -> float:
    """PSNR in dB, or pixel accuracy in percent."""
    if target.dim() == 3:
        return 100 * (output.argmax(1) == target).double().mean().item()
    return psnr([output], [target], peak=2)


def main() -> None:
    parser = argparse.ArgumentParser(description="Repair small networks trained here.")
    parser.add_argument("--data", required=True, help="a zip of 64x64 faces")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--arms", default="dcl,5x5")
    parser.add_argument("--tasks", default="identity,style,super-resolution,U-Net,autoencoder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--pictures", type=Path, default=Path("runs/repair_trained"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pictures = faces(args.data)
    pictures = pictures[torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))]
    small = F.interpolate(pictures, scale_factor=0.5, mode="bilinear", antialias=True)
    args.out.mkdir(parents=True, exist_ok=True)
    args.pictures.mkdir(parents=True, exist_ok=True)
    results = {"real faces": {"artifact": _figures(pictures[len(pictures) * 3 // 4 :])}}
    pictures_of_scenes, classes = scenes(1200)
    tasks: dict[str, tuple[Callable[[], nn.Module], Tensor, Tensor]] = {
        "super-resolution": (SuperResolution, small, pictures),
        "style": (Style, pictures, sketches(pictures)),
        "autoencoder": (Autoencoder, pictures, pictures),
        "U-Net": (
            lambda: UNet(classes=int(classes.max()) + 1, arm="dcl-k3", width=8),
            pictures_of_scenes,
            classes,
        ),
        "identity": (Identity, small, pictures),
    }
    for name in args.tasks.split(","):
        kind, inputs, targets = tasks[name]
        half, rest = len(inputs) // 2, len(inputs) * 3 // 4
        torch.manual_seed(0)
        model = kind()
        steps = 0 if name == "identity" else train(model, inputs[:half], targets[:half], args.seconds)
        model.eval()
        with torch.no_grad():
            before = model(inputs[rest:])
        results[name] = {"steps": steps, "artifact": _figures(before), "task": task(before, targets[rest:])}
        for arm in args.arms.split(","):
            began, wall = time.process_time(), time.perf_counter()
            repaired = repair(model, inputs[half:rest], layer=arm, progress=False)
            cpu, wall = time.process_time() - began, time.perf_counter() - wall
            with torch.no_grad():
                after = repaired(inputs[rest:])
            results[f"{name}, {arm}"] = {
                "artifact": _figures(after),
                "task": task(after, targets[rest:]),
                "PSNR to before": psnr([before], [after], peak=2),
                "same to the bit": bool(torch.equal(after, before)),
                "CPU seconds": round(cpu, 1),
                "wall seconds": round(wall, 1),
                "report": str(repair_report(repaired)),
            }
            print(name, arm, results[f"{name}, {arm}"], flush=True)
            if arm == "dcl" and before.shape[1] == 1:
                sheet(before, after, args.pictures / f"{name}.png")
            settings = {"seconds": args.seconds, "threads": args.threads, "torch": torch.__version__}
            text = json.dumps({"settings": settings, "results": results}, indent=1)
            (args.out / "repair_trained.json").write_text(text + "\n")
            (args.out / "repair_trained.md").write_text(_table(settings, results))


def _figures(pictures: Tensor) -> dict[str, list[float]]:
    found = {}
    for period in (2, 4):
        measured = checkerboard(pictures, period)
        for form in ("global", "windowed"):
            found[f"{form} 1/{period}"] = [round(v, 2) for v in measured[form].values()]
    return found


def _table(settings: dict, results: dict[str, dict]) -> str:
    lines = [
        "# Repairing networks trained for a few minutes",
        "",
        f"{settings['seconds']:.0f} CPU seconds of training each. Figures at (0,1/2), (1/2,0), (1/2,1/2),",
        "in dB; then the worst multiple of 1/4 (global), the task (PSNR to the truth, for the U-Net pixel",
        "accuracy), and PSNR to the pictures before.",
        "",
        "| what | global | windowed | worst 1/4 | task | to before | CPU s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, r in results.items():
        a = r["artifact"]
        three = [", ".join(f"{v:.1f}" for v in a[f"{form} 1/2"]) for form in ("global", "windowed")]
        done = f"{r['task']:.2f}" if "task" in r else ""
        same = "same to the bit" if r.get("same to the bit") else f"{r.get('PSNR to before', math.nan):.1f}"
        to_before = same if "PSNR to before" in r else ""
        worst = max(a["global 1/4"])
        lines.append(
            f"| {name} | {three[0]} | {three[1]} | {worst:.1f} | {done} | {to_before} "
            f"| {r.get('CPU seconds', '')} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
