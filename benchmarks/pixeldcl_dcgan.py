"""The trained DCGAN of ``gan-face-generate`` (MIT) as PixelDCL: what calibration and label-free
distillation keep of its pictures.

    python benchmarks/pixeldcl_dcgan.py --free --latents 256 1024 4096 --minutes 1 5 15 --kept kept/
    python benchmarks/pixeldcl_dcgan.py --latents 1024 --joint-steps 1000 --batch 32 --rate 2.5e-5 \\
        --minutes 1 5 15 --threads 1 --kept kept/

Writes ``benchmarks/results/pixeldcl_dcgan.json`` after every row: PSNR to the original's pictures on 256
fresh latents (range 2, as tanh gives), the checkerboard at each frequency, and the CPU seconds that it
took. A row that is there already is not made again.

``--minutes`` are minutes on two cores, counted as CPU time: 5 are 600 CPU seconds, however many threads
share them and whatever else the machine does. With ``--device cuda`` (which distillation alone uses) they
are minutes of that device. With ``--kept FOLDER`` calibrated models and the state of a distillation are
kept there: a run that was stopped goes on where it was.

With ``--joint-steps`` the calibration trains each layer's kernels together for so many batches of latents
that are new in each pass, the last layer has 5x5 dependency kernels, and the distillation goes on in whitened
coordinates and takes the artifact out of the student's pictures instead of copying it. ``--alike`` is the
control arm of what calibration and optimizer know of the layers that follow (with a folder of its own for
``--kept``).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import pixelize
from pixelize.algebra.interpolation import ALLOWED_COST
from pixelize.calibration import sensitivity
from pixelize.calibration.fit_model import fit_model
from pixelize.calibration.layer_fit import fit_layer
from pixelize.calibration.whitened_adam import WhitenedAdam
from pixelize.conversion.report import report
from pixelize.files import write_text
from pixelize.layers.gate import gate_of
from pixelize.layers.pixel_dcl import iPixelDCL2d
from pixelize.measure.checkerboard import checkerboard
from pixelize.measure.decibels import psnr

RESULTS = pathlib.Path(__file__).parent / "results" / "pixeldcl_dcgan.json"
FALL = 400
"""Steps in whitened coordinates after which the rate has fallen to 0.7 of what it was; to a half after three
times as many."""
LAST = "main.12"
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


def artifact_power(pictures: Tensor) -> Tensor:
    """Power at the three artifact frequencies, in Hann windows of the whole picture and of 16 pixels."""
    total = pictures.new_zeros(())
    for size in (pictures.shape[-1], 16):
        window = torch.hann_window(size, device=pictures.device)
        window = torch.outer(window, window) / window.square().sum()
        patches = pictures.unfold(-2, size, size // 2).unfold(-2, size, size // 2)
        sign = (-1.0) ** torch.arange(size, device=pictures.device)
        for down, across in FREQUENCIES:
            wave = torch.outer(sign ** (2 * down), sign ** (2 * across)) * window
            total = total + (patches * wave).sum((-1, -2)).square().mean()
    return total


def power(pictures: Tensor) -> dict[str, float]:
    """Power at the artifact frequencies in a Hann window of the whole picture, in dB: unlike the measure of a
    checkerboard, not relative to the power near by.
    """
    window = torch.hann_window(pictures.shape[-1])
    window = torch.outer(window, window) / window.square().sum()
    sign = (-1.0) ** torch.arange(pictures.shape[-1])
    centred = pictures - pictures.mean((-1, -2), keepdim=True)
    found = {}
    for down, across in FREQUENCIES:
        wave = torch.outer(sign ** (2 * down), sign ** (2 * across)) * window
        total = (centred * wave).sum((-1, -2)).square().mean()
        found[f"{down:g},{across:g}"] = round(float(10 * torch.log10(total)), 1)
    return found


def rate_groups(model: nn.Module, rate: float) -> list[dict[str, Any]]:
    """Adam moves each weight by about its rate: ``rate`` times the tensor's own size (root mean square; 0.02
    for those that start at zero).

    With one rate for all, steps that a 3-channel layer needs destroy a kernel of 4,608 inputs.
    """
    groups = []
    for parameter in model.parameters():
        size = float(parameter.detach().square().mean().sqrt())
        groups.append({"params": [parameter], "lr": rate * (max(size, 0.005) if size > 0 else 0.02)})
    return groups


class Distillation:
    """Trains ``student`` on the teacher's pictures of fresh latents, without labels; keeps an average of it.

    ``anneal``: the student is an iPixelDCL, whose input gate falls from 1 to 0 over so many CPU seconds.
    With ``arguments.joint_steps`` in whitened coordinates, in steps that fall, and towards pictures without
    power at the artifact frequencies rather than with the teacher's.
    """

    def __init__(
        self, teacher: nn.Module, student: nn.Module, arguments: argparse.Namespace, anneal: float = 0.0
    ) -> None:
        self.device, self.batch, rate = arguments.device, arguments.batch, arguments.rate
        self.weight, self.anneal = arguments.artifact_weight, anneal
        self.teacher = copy.deepcopy(teacher).to(self.device)
        # batch norm keeps its statistics: the target is what evaluation computes
        self.student = student.eval().to(self.device)
        self.average = copy.deepcopy(student)
        self.whitened = arguments.joint_steps > 0
        if self.whitened:
            looked_at = [z.to(self.device) for z in latents(256, 5)]
            self.optimizer: torch.optim.Optimizer = WhitenedAdam(self.student, looked_at, rate)
        else:
            self.optimizer = torch.optim.Adam(rate_groups(student, rate), betas=(0.9, 0.99), fused=True)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.random = torch.Generator().manual_seed(99 + arguments.seed)
        self.seconds, self.steps = 0.0, 0

    def run(self, seconds: float, keep: pathlib.Path | None) -> None:
        """Trains until ``seconds`` (CPU time, or wall time on another device) are spent, those before a stop
        included.
        """
        last = self.seconds
        clock = time.process_time if self.device == "cpu" else time.perf_counter
        while self.seconds < seconds:
            start = clock()
            for _ in range(1 if self.device == "cpu" else 50):
                self._step()
            if self.device != "cpu":
                torch.accelerator.synchronize()
            self.seconds += clock() - start
            if keep is not None and self.seconds - last > 60:
                last = self.seconds
                self.save(keep)
        if keep is not None:
            self.save(keep)

    def _step(self) -> None:
        if self.anneal:
            gate = (1 + math.cos(math.pi * min(self.seconds / self.anneal, 1.0))) / 2
            for model in (self.student, self.average):
                pixelize.set_input_gate(model, gate)
        z = torch.randn(self.batch, 100, 1, 1, generator=self.random).to(self.device)
        with torch.no_grad():
            wanted = self.teacher(z)
        pictures = self.student(z)
        difference = pictures - wanted
        marked = pictures - pictures.mean((-1, -2), keepdim=True) if self.whitened else difference
        loss = difference.square().mean() + self.weight * artifact_power(marked)
        self.optimizer.zero_grad()
        loss.backward()
        share = min(1.0, (self.steps + 1) / 20)
        if self.whitened:
            share /= math.sqrt(1 + self.steps / FALL)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share
        self.optimizer.step()
        self.steps += 1
        keep = min(0.99, self.steps / (self.steps + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.student.parameters()), 1 - keep)

    def save(self, path: pathlib.Path) -> None:
        """Writes everything that going on needs."""
        state = {name: getattr(self, name).state_dict() for name in ("student", "average", "optimizer")}
        state |= {"random": self.random.get_state(), "seconds": self.seconds, "steps": self.steps}
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: pathlib.Path) -> None:
        """Goes on from a file of :meth:`save`."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        for name in ("student", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.random.set_state(state["random"].cpu())
        self.seconds, self.steps = state["seconds"], state["steps"]


class Results:
    """Rows written to a file as they come; a later run with other arguments adds to them."""

    def __init__(self, path: pathlib.Path, original: nn.Module) -> None:
        self.path, self.test = path, torch.cat(latents(256, 12345))
        self.rows = self._written()
        with torch.no_grad():
            self.wanted = original(self.test)

    def _written(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())["rows"] if self.path.exists() else {}

    def add(self, name: str, model: nn.Module, seconds: float, **more: object) -> None:
        with torch.no_grad():
            pictures = model(self.test)
        distance = psnr([self.wanted], [pictures], peak=2)
        found = checkerboard(pictures)
        decibels = {
            form: {f"{f[0]:g},{f[1]:g}": round(found[form][f], 1) for f in FREQUENCIES}
            for form in ("global", "windowed")
        }
        self.rows = self._written()  # another run may have added to it
        self.rows[name] = {
            "psnr": round(distance, 2) if math.isfinite(distance) else None,
            **decibels,
            "power": power(pictures),
            "cpu_seconds": round(seconds, 1),
            "threads": torch.get_num_threads(),
            **more,
        }
        print(name, json.dumps(self.rows[name]), flush=True)
        text = {"torch": torch.__version__, "rows": self.rows}
        write_text(self.path, json.dumps(text, indent=1) + "\n")


class NewLatents:
    """``count`` latents in each pass over them, every time others."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self.count, self.batch, self.passes = count, batch, 1000 * (1 + seed)

    def __iter__(self) -> Iterator[Tensor]:
        self.passes += 1
        return iter(latents(self.count, self.passes, self.batch))


def calibrated(
    original: nn.Module, count: int, kept: pathlib.Path | None, joint_steps: int = 0, seed: int = 0
) -> tuple[nn.Module, dict[str, Any]]:
    """The PixelDCL calibrated on ``count`` latents, and each layer's error and the seconds taken; kept, and
    read again.

    With ``joint_steps`` of joint training in each layer, it has a larger window in the last one.
    """
    name = f"jointly-{count}-{joint_steps}-{seed}" if joint_steps else f"calibrated-{count}"
    path = kept / f"{name}.pt" if kept else None
    start = time.process_time()
    model = pixelize.convert(original, "pixeldcl", exclude=LAST if joint_steps else ())
    if joint_steps:
        pixelize.convert(model, "pixeldcl", dependency_kernel_size=5, include=LAST, inplace=True)
    if path is not None and path.exists():
        state, told = torch.load(path, weights_only=True)
        model.load_state_dict(state)
        return model, told
    data = NewLatents(count, 32, seed) if joint_steps else latents(count, 0)
    errors = fit_model(model, data, joint_steps=joint_steps)
    told = {
        "seconds": time.process_time() - start,
        "errors": {name: round(error, 4) for name, error in errors.items()},
    }
    if path is not None:
        torch.save((model.state_dict(), told), path)
    return model, told


def row_name(arguments: argparse.Namespace, count: int) -> str:
    """Of the calibrated model's row, with which those of its distillation begin."""
    if not arguments.joint_steps:
        return f"calibrated, {count} latents"
    name = f"calibrated jointly, {count} latents, {arguments.joint_steps} steps"
    if arguments.alike:
        name += ", channels alike"
    return f"{name}, seed {arguments.seed}" if arguments.seed else name


def refit_last(original: nn.Module, model: nn.Module, allowed_cost: float) -> float:
    """Fits the last layer again, to the original's output on 512 latents; its error on those held back.

    Kernels that interpolate are taken where they cost at most ``allowed_cost`` times the error: 0 for never.
    """
    pairs = []
    for z in latents(512, 3):
        with torch.no_grad():
            pairs.append((model.main[:12](z), original.main[:13](z)))
    return fit_layer(model.main[12], lambda: pairs, allowed_cost=allowed_cost)


def compare_interpolation(
    results: Results, original: nn.Module, count: int, kept: pathlib.Path | None
) -> None:
    """The calibrated model's last layer fitted with interpolation at no price, at 5 %, and at any."""
    for most in (0.0, ALLOWED_COST, 100.0):
        model, _ = calibrated(original, count, kept)
        start = time.process_time()
        error = refit_last(original, model, most)
        name = f"calibrated, {count} latents, last layer again, interpolation up to {most:g} times the error"
        results.add(name, model, time.process_time() - start, error=round(error, 4))


def distil(results: Results, original: nn.Module, arguments: argparse.Namespace) -> None:
    """The rows of distillation: after each of ``--minutes``, from the calibrated PixelDCL or, with
    ``--anneal``, from the exact iPixelDCL, whose gate is closed when half of the last of them is over.
    """
    kept = arguments.kept
    if arguments.anneal:
        base = "iPixelDCL annealed"
        student = pixelize.convert(original, "ipixeldcl")
    else:
        count = arguments.latents[-1]
        base = f"{row_name(arguments, count)}, distilled"
        student, _ = calibrated(original, count, kept, arguments.joint_steps, arguments.seed)
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    cores = 2 if arguments.device == "cpu" else 1
    where = "2 cores"
    if arguments.device != "cpu":
        where = torch.cuda.get_device_name() if arguments.device == "cuda" else arguments.device
    half = 30 * cores * max(arguments.minutes)
    run = Distillation(original, student, arguments, half if arguments.anneal else 0.0)
    name = "annealed" if arguments.anneal else "jointly-distilled" if arguments.joint_steps else "distilled"
    keep = kept / f"{name}-{arguments.seed}.pt" if kept else None
    if keep is not None and keep.exists():
        run.load(keep)
    for minutes in sorted(arguments.minutes):
        name = f"{base}, {minutes:g} minutes on {where}"
        if name in results.rows or run.seconds > 60 * cores * minutes + 5:
            continue
        run.run(60 * cores * minutes, keep)
        told = {"steps": run.steps}
        if arguments.anneal:
            told["gate"] = round(
                gate_of(next(m for m in run.average.modules() if isinstance(m, iPixelDCL2d))), 4
            )
        results.add(name, copy.deepcopy(run.average).cpu(), run.seconds, **told)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latents", type=int, nargs="*", default=[256, 1024, 4096])
    parser.add_argument("--free", action="store_true", help="the data-free fit too")
    parser.add_argument("--tolerance", type=float, nargs="*", default=[])
    parser.add_argument("--interpolation", action="store_true", help="the last layer with it and without")
    parser.add_argument("--auto-latents", type=int, default=1024)
    parser.add_argument("--joint-steps", type=int, default=0, help="of each layer, after its least squares")
    parser.add_argument(
        "--alike",
        action="store_true",
        help="--joint-steps, but errors of all channels count alike: without what they cost in the pictures",
    )
    parser.add_argument("--seed", type=int, default=0, help="of --joint-steps and its distillation")
    parser.add_argument("--minutes", type=float, nargs="*", default=[], help="of distillation")
    parser.add_argument("--anneal", action="store_true", help="distil an iPixelDCL whose gate falls to 0")
    parser.add_argument("--kept", type=pathlib.Path, help="folder for what a stopped run goes on from")
    parser.add_argument("--device", default="cpu", help="of the distillation")
    parser.add_argument("--batch", type=int, default=16, help="of the distillation")
    parser.add_argument(
        "--rate",
        type=float,
        default=1e-3,
        help="relative to each weight, or, with --joint-steps, of WhitenedAdam",
    )
    parser.add_argument("--artifact-weight", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    if (arguments.seed or arguments.alike) and not arguments.joint_steps:
        parser.error("--seed and --alike are for --joint-steps: other rows' names do not tell them")
    torch.set_num_threads(arguments.threads)
    if arguments.alike:
        sensitivity.DAMPING = 1e30
    original = generator()
    results = Results(arguments.results, original)
    if "original" not in results.rows:
        results.add("original", original, 0.0)
    if arguments.kept:
        arguments.kept.mkdir(parents=True, exist_ok=True)
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
    for count in arguments.latents:
        name = row_name(arguments, count)
        if name not in results.rows:
            model, told = calibrated(original, count, arguments.kept, arguments.joint_steps, arguments.seed)
            results.add(name, model, told["seconds"], errors=told["errors"])
    if arguments.interpolation:
        compare_interpolation(results, original, arguments.latents[-1], arguments.kept)
    if arguments.minutes:
        distil(results, original, arguments)


if __name__ == "__main__":
    main()
