"""The trained DCGAN of ``gan-face-generate`` (MIT) as PixelDCL: what calibration and label-free
distillation keep of its pictures.

    python benchmarks/pixeldcl_dcgan.py --latents 256 1024 --tolerance 0.03 --minutes 1 5

Writes ``benchmarks/results/pixeldcl_dcgan.json`` after every row: PSNR to the original's pictures on 256
fresh latents (range 2, as tanh gives), the checkerboard at each frequency, and the CPU seconds that it
took.
"""

from __future__ import annotations

import argparse
import copy
import json
import pathlib
import time

import torch
from torch import Tensor, nn

import pixelize
from pixelize.checkerboard import checkerboard
from pixelize.report import report

RESULTS = pathlib.Path(__file__).parent / "results" / "pixeldcl_dcgan.json"
FREQUENCIES = ((0.0, 0.5), (0.5, 0.0), (0.5, 0.5))


def generator() -> nn.Module:
    """The generator as it was published: 100 latents to 64x64x3 pictures."""
    import gan_face_generate
    from gan_face_generate.models import Generator

    weights = pathlib.Path(gan_face_generate.__file__).parent / "weights.tar"
    model = Generator(0, 3, 100, 64)
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True)["netG_state_dict"])
    return model.eval()


def latents(count: int, seed: int, batch: int = 64) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, 100, 1, 1, generator=random).split(batch))


def artifact_error(difference: Tensor) -> Tensor:
    """Power of the difference at the three artifact frequencies, in Hann windows of the whole picture and
    of 16 pixels.
    """
    total = difference.new_zeros(())
    for size in (difference.shape[-1], 16):
        window = torch.hann_window(size)
        window = torch.outer(window, window) / window.square().sum()
        patches = difference.unfold(-2, size, size // 2).unfold(-2, size, size // 2)
        sign = (-1.0) ** torch.arange(size)
        for down, across in FREQUENCIES:
            wave = torch.outer(sign ** (2 * down), sign ** (2 * across)) * window
            total = total + (patches * wave).sum((-1, -2)).square().mean()
    return total


def distil(teacher: nn.Module, student: nn.Module, minutes: list[float], rate: float, weight: float):  # type: ignore[no-untyped-def]
    """Trains ``student`` on the teacher's pictures of fresh latents; yields (CPU minutes, steps, averaged
    model) at each of ``minutes``.
    """
    student = student.eval()  # batch norm keeps its statistics: the target is what evaluation computes
    average = copy.deepcopy(student)
    optimizer = torch.optim.Adam(student.parameters(), lr=rate, betas=(0.9, 0.99))
    random = torch.Generator().manual_seed(99)
    start, step = time.process_time(), 0
    for limit in minutes:
        while time.process_time() - start < 60 * limit:
            z = torch.randn(16, 100, 1, 1, generator=random)
            with torch.no_grad():
                wanted = teacher(z)
            difference = student(z) - wanted
            loss = difference.square().mean() + weight * artifact_error(difference)
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 20)
            optimizer.step()
            step += 1
            keep = min(0.99, step / (step + 10))
            with torch.no_grad():
                for a, p in zip(average.parameters(), student.parameters(), strict=True):
                    a.lerp_(p, 1 - keep)
        yield limit, step, average


class Results:
    """Rows written to a file as they come; a later run with other arguments adds to them."""

    def __init__(self, path: pathlib.Path, original: nn.Module) -> None:
        self.path, self.test = path, torch.cat(latents(256, 12345))
        self.rows = json.loads(path.read_text())["rows"] if path.exists() else {}
        with torch.no_grad():
            self.wanted = original(self.test)

    def add(self, name: str, model: nn.Module, seconds: float, **more: object) -> None:
        with torch.no_grad():
            pictures = model(self.test)
        error = (pictures - self.wanted).double().square().mean()
        found = checkerboard(pictures)
        decibels = {
            form: {f"{f[0]:g},{f[1]:g}": round(found[form][f], 1) for f in FREQUENCIES}
            for form in ("global", "windowed")
        }
        psnr = round(float(10 * torch.log10(4 / error)), 2) if error > 0 else None
        self.rows[name] = {"psnr": psnr, **decibels, "cpu_seconds": round(seconds, 1), **more}
        print(name, json.dumps(self.rows[name]), flush=True)
        text = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": self.rows}
        self.path.write_text(json.dumps(text, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latents", type=int, nargs="*", default=[256, 1024, 4096])
    parser.add_argument("--free", action="store_true", help="the data-free fit too")
    parser.add_argument("--tolerance", type=float, nargs="*", default=[])
    parser.add_argument("--auto-latents", type=int, default=1024)
    parser.add_argument("--minutes", type=float, nargs="*", default=[], help="CPU minutes of distillation")
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--artifact-weight", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    original = generator()
    results = Results(arguments.results, original)
    results.add("original", original, 0.0)
    example = torch.zeros(1, 100, 1, 1)
    if arguments.free:
        start = time.process_time()
        model = pixelize.convert(original, "pixeldcl")
        results.add("data-free", model, time.process_time() - start)
    for tolerance in arguments.tolerance:
        start = time.process_time()
        data = latents(arguments.auto_latents, 0)
        model = pixelize.convert(original, "auto", data=data, tolerance=tolerance, example_inputs=example)
        told = report(model)
        sites = {
            s.name: [s.layer, s.error, s.multiply_adds_before, s.multiply_adds_after, s.note]
            for s in told.converted
        }
        results.add(
            f"auto, tolerance {tolerance:g}, {arguments.auto_latents} latents",
            model,
            time.process_time() - start,
            sites=sites,
            multiply_adds=[told.multiply_adds_before, told.multiply_adds_after],
        )
    model = None
    for count in arguments.latents:
        start = time.process_time()
        model = pixelize.convert(original, "pixeldcl", init="calibrate", data=latents(count, 0))
        errors = {s.name: s.error for s in report(model).converted}
        results.add(f"calibrated, {count} latents", model, time.process_time() - start, errors=errors)
    if arguments.minutes and model is not None:
        base = f"calibrated on {arguments.latents[-1]}, distilled"
        runs = distil(original, model, arguments.minutes, arguments.rate, arguments.artifact_weight)
        for limit, steps, average in runs:
            results.add(f"{base} for {limit:g} CPU minutes", average, 60 * limit, steps=steps)


if __name__ == "__main__":
    main()
