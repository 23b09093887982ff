"""A x4 super-resolution network with 64-channel k4 s2 p1 layers, trained here for some minutes, as PixelDCL.

    python benchmarks/pixeldcl_superres.py --data camvid256.zip --minutes 4

``--data``: a zip of pictures (jpg or png); every fifth is held out. Writes
``benchmarks/results/pixeldcl_superres.json``: PSNR on held-out pictures of the network as it was trained, and
as PixelDCL by the data-free fit and by calibration on a few unlabelled small pictures.
"""

from __future__ import annotations

import argparse
import io
import json
import pathlib
import time
import zipfile
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pixelize
from pixelize.conversion.report import report
from pixelize.measure.checkerboard import checkerboard
from pixelize.measure.decibels import psnr

RESULTS = pathlib.Path(__file__).parent / "results" / "pixeldcl_superres.json"


class SuperResolution(nn.Module):
    """x4, grey: what bicubic interpolation leaves out. (N, 1, h, w) to (N, 1, 4h, 4w)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, width, 3, padding=1)
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.up1 = nn.ConvTranspose2d(width, width, 4, 2, 1)
        self.up2 = nn.ConvTranspose2d(width, width, 4, 2, 1)
        self.tail = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.body(torch.relu(self.head(x))))
        y = self.tail(torch.relu(self.up2(torch.relu(self.up1(y)))))
        return y + F.interpolate(x, scale_factor=4, mode="bicubic")


def pictures(path: pathlib.Path, most: int) -> Tensor:
    """Grey pictures, (n, 1, 256, 256) in [0, 1]."""
    from PIL import Image

    found = []
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith((".jpg", ".png")) and "mask" not in n)
        for name in names[:: max(1, len(names) // most)][:most]:
            image = Image.open(io.BytesIO(archive.read(name))).convert("L").resize((256, 256))
            found.append(torch.from_numpy(np.asarray(image).copy()).float() / 255)
    return torch.stack(found)[:, None]


def smaller(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=0.25, mode="bicubic", antialias=True)


def train(model: nn.Module, data: Tensor, minutes: float) -> int:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    random = torch.Generator().manual_seed(0)
    start, step = time.process_time(), 0
    while (passed := (time.process_time() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - passed) + 1e-5
        which = torch.randint(len(data), (8,), generator=random)
        y, x = torch.randint(0, 256 - 64, (2,), generator=random).tolist()
        crop = data[which, :, y : y + 64, x : x + 64]
        loss = (model(smaller(crop)) - crop).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=4.0, help="CPU minutes of training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    data = pictures(arguments.data, 200)
    held, seen = data[::5], data[torch.arange(len(data)) % 5 != 0]
    model = SuperResolution()
    steps = train(model, seen, arguments.minutes)
    model.eval().requires_grad_(False)
    rows: dict[str, object] = {}

    def add(name: str, candidate: nn.Module, start: float, sites: object = None) -> None:
        with torch.no_grad():
            made = torch.cat([candidate(smaller(part)) for part in held.split(4)])
        each = [
            psnr([truth], [picture], peak=1) for truth, picture in zip(held, made.clamp(0, 1), strict=True)
        ]
        found = checkerboard(made, 2)["windowed"]
        decibels = {f"{f[0]:g},{f[1]:g}": round(v, 2) for f, v in found.items()}
        seconds = round(time.process_time() - start, 1)
        rows[name] = {
            "psnr": round(fmean(each), 3),
            "windowed": decibels,
            "cpu_seconds": seconds,
            "sites": sites,
        }
        print(name, json.dumps(rows[name]), flush=True)
        told = {
            "steps": steps,
            "cpu_minutes_of_training": arguments.minutes,
            "held_out": len(held),
            "rows": rows,
        }
        arguments.results.write_text(json.dumps(told, indent=1) + "\n")

    class Bicubic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(x, scale_factor=4, mode="bicubic")

    add("bicubic", Bicubic(), time.process_time())
    add("as trained", model, time.process_time())
    few = [smaller(part) for part in seen[:24].split(4)]
    start = time.process_time()
    add("PixelDCL, data-free", pixelize.convert(model, "pixeldcl"), start)
    start = time.process_time()
    converted = pixelize.convert(model, "pixeldcl", init="calibrate", data=few)
    sites = {s.name: s.error for s in report(converted).converted}
    add("PixelDCL, calibrated on 24 pictures", converted, start, sites)


if __name__ == "__main__":
    main()
