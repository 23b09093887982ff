"""Repair a trained face generator without training: every arm by the same measures, on fresh latents.

    python benchmarks/repair_dcgan.py --model gan-face-generate --data faces64.zip
    python benchmarks/repair_dcgan.py --model demo --data faces64.zip

Arms: the layers' own taps ("dcl"), windows of 3x3 and 5x5 taps a phase, the layers converted to iPixelDCL and
fitted with their dependency kernels, the last layer as a calibrated PixelDCL and then repaired, and the form
without data. Gradient fine-tuning, alone and after a repair, is in gan_repair.py, with the same measures.
Figures: the artifact by :func:`pixelize.checkerboard`, PSNR to the original's pictures (range 2), the change
of the power spectrum away from the artifact's frequencies, CPU and wall seconds. Writes
benchmarks/results/repair_<model>.json, .md and .png (original above, repaired below, enlarged).
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
import zipfile
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pixelize.conversion.convert import convert
from pixelize.measure.checkerboard import checkerboard
from pixelize.measure.decibels import decibels, psnr
from pixelize.measure.spectrum import power_spectrum
from pixelize.refit.repair import repair
from pixelize.refit.report import repair_report


def generator(name: str) -> tuple[nn.Module, int]:
    """The model in evaluation mode, and the length of its latents."""
    if name == "demo":
        from pixelize.demo.generator import LATENT_CHANNELS, load_demo_model

        return load_demo_model(), LATENT_CHANNELS
    from gan_face_generate.models import Generator

    model = Generator(0, 3, 100, 64)
    weights = resources.files("gan_face_generate") / "weights.tar"
    state = torch.load(io.BytesIO(weights.read_bytes()), map_location="cpu", weights_only=True)
    model.load_state_dict(state["netG_state_dict"])
    return model.eval(), 100


def faces(path: str, count: int) -> Tensor:
    """Real faces (N, 1, 64, 64) in [-1, 1] out of a zip of pictures."""
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.lower().endswith((".jpg", ".png"))]
        names = names[:: max(1, len(names) // count)][:count]
        pictures = [Image.open(io.BytesIO(archive.read(n))).convert("L") for n in names]
    return torch.stack([torch.tensor(np.asarray(p, dtype=np.float32))[None] for p in pictures]) / 127.5 - 1


def run(model: nn.Module, latents: Tensor) -> Tensor:
    """All pictures, a few at a time."""
    with torch.no_grad():
        return torch.cat([model(z) for z in latents.split(32)])


def spectrum_change(before: Tensor, after: Tensor, distance: float) -> dict[str, float]:
    """Change of the power spectrum, in dB, further than ``distance`` (cycles per pixel) from each multiple
    of 1/4: of the mean over rings of equal radius the largest, and over single frequencies the mean and the
    95th percentile of its magnitude."""
    a, b = power_spectrum(before), power_spectrum(after)
    near = torch.zeros_like(a.power, dtype=torch.bool)
    for j in range(4):
        for i in range(4):
            if (j, i) != (0, 0):
                down, across = ((v - n / 4 + 0.5) % 1 - 0.5 for v, n in ((a.vertical, j), (a.horizontal, i)))
                near |= torch.maximum(down.abs()[:, None], across.abs()) <= distance
    change = (b.power - a.power)[~near]
    ring = (torch.hypot(a.vertical[:, None], a.horizontal) * len(a.vertical)).round().long()
    linear = [10 ** (s.power / 10) for s in (a, b)]
    radial = [
        decibels((linear[1][m].sum() / linear[0][m].sum()).item())
        for r in range(int(ring.max()) + 1)
        if (m := (ring == r) & ~near).sum() >= 8
    ]
    return {
        "radial, largest": max(map(abs, radial)),
        "mean": change.mean().item(),
        "95th percentile": change.abs().quantile(0.95).item(),
    }


def figures(pictures: Tensor) -> dict[str, dict[str, float]]:
    """The artifact at multiples of 1/2 (both forms) and of 1/4 (global)."""
    half, quarter = checkerboard(pictures, 2), checkerboard(pictures, 4)
    named = {"global": half["global"], "windowed": half["windowed"], "global, quarters": quarter["global"]}
    return {k: {f"({f[0]:g},{f[1]:g})": round(v, 2) for f, v in d.items()} for k, d in named.items()}


def sheet(before: Tensor, after: Tensor, path: Path, count: int = 6, scale: int = 4) -> None:
    """Original above, repaired below, enlarged without smoothing."""
    rows = [torch.cat(list(p[:count]), -1) for p in (before, after)]
    picture = ((torch.cat(rows, -2).clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Repair a trained face generator without training.")
    parser.add_argument("--model", default="gan-face-generate", choices=("gan-face-generate", "demo"))
    parser.add_argument("--data", default="", help="a zip of real faces to compare with")
    parser.add_argument("--latents", type=int, default=1024)
    parser.add_argument("--fresh", type=int, default=1024)
    parser.add_argument("--arms", default="dcl,data-free,3x3,ipixeldcl,pixeldcl,5x5")
    parser.add_argument("--seed", type=int, default=1, help="of both")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    model, channels = generator(args.model)
    draw = torch.Generator().manual_seed(args.seed)
    data = torch.randn(args.latents, channels, 1, 1, generator=draw)
    fresh = torch.randn(args.fresh, channels, 1, 1, generator=draw)
    before = run(model, fresh)
    results: dict[str, dict] = {"as it came": {"artifact": figures(before)}}
    if args.data:
        results["real faces"] = {"artifact": figures(faces(args.data, args.fresh))}
    for arm in args.arms.split(","):
        wall, cpu = time.perf_counter(), time.process_time()
        if arm == "data-free":
            repaired = repair(model, example_inputs=data[:2], progress=False)
        elif arm == "pixeldcl":
            last = [n for n, m in model.named_modules() if isinstance(m, nn.ConvTranspose2d)][-1]
            calibrated = convert(model, "pixeldcl", init="calibrate", data=data.split(64), include=last)
            repaired = repair(calibrated, data, progress=False)
        else:
            repaired = repair(model, data, layer=arm, progress=False)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        after = run(repaired, fresh)
        distance = psnr([before], [after], peak=2)
        results[arm] = {
            "artifact": figures(after),
            "PSNR": round(distance, 2) if math.isfinite(distance) else None,
            "spectrum": spectrum_change(before, after, 3 / 32),
            "wall seconds": round(wall, 1),
            "CPU seconds": round(cpu, 1),
            "report": repair_report(repaired).to_dict(),
        }
        if arm == args.arms.split(",")[0]:
            sheet(before, after, args.out / f"repair_{args.model}.png")
        print(arm, json.dumps({k: v for k, v in results[arm].items() if k != "report"}), flush=True)
        write(args, results)


def write(args: argparse.Namespace, results: dict[str, dict]) -> None:
    """Writes what has been measured so far."""
    settings = {
        "seed": args.seed,
        "latents": args.latents,
        "fresh": args.fresh,
        "threads": args.threads,
        "torch": torch.__version__,
    }
    text = json.dumps({"settings": settings, "results": results}, indent=1)
    (args.out / f"repair_{args.model}.json").write_text(text + "\n")
    (args.out / f"repair_{args.model}.md").write_text(table(args.model, settings, results))


def table(name: str, settings: dict, results: dict[str, dict]) -> str:
    """The results as Markdown."""
    lines = [
        f"# Repairing {name} without training",
        "",
        f"Repaired with {settings['latents']} latents, a quarter held back at most, measured on",
        f"{settings['fresh']} fresh ones; {settings['threads']} threads. Three figures: (0,1/2), (1/2,0),",
        "(1/2,1/2), in dB. Spectrum: further than 3/32 cycles per pixel from every multiple of 1/4, the",
        "largest change of a ring's mean power and the 95th percentile over single frequencies, in dB.",
        "",
        "| what | global | worst multiple of 1/4 | windowed | PSNR | spectrum: ring, 95 % | CPU s | wall s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, r in results.items():
        a = r["artifact"]
        three = [", ".join(f"{v:.1f}" for v in a[k].values()) for k in ("global", "windowed")]
        s = r.get("spectrum")
        change = f"{s['radial, largest']:.2f}, {s['95th percentile']:.2f}" if s else ""
        psnr = "" if r.get("PSNR") is None else f"{r['PSNR']:.1f}"
        worst = max(a["global, quarters"].values())
        lines.append(
            f"| {arm} | {three[0]} | {worst:.1f} | {three[1]} | {psnr} | {change} "
            f"| {r.get('CPU seconds', '')} | {r.get('wall seconds', '')} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
