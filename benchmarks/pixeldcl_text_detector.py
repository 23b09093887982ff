"""The text detector of ``rapidocr-onnxruntime`` (PP-OCRv4) as PixelDCL, calibrated on rendered pages.

    python benchmarks/pixeldcl_text_detector.py --pages 16 --held 12

The ONNX file becomes a torch model through onnx2torch; its two transposed convolutions (24 to 24 and 24 to 1
channels, k2 s2) become PixelDCL. Writes ``benchmarks/results/pixeldcl_text_detector.json``: the mean absolute
difference of the probability map on pages that were not used to fit, and how many pixels change sides at the
detector's threshold of 0.3.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import pathlib
import random
import time

import numpy as np
import torch
from torch import Tensor, nn

import pixelize
from pixelize.conversion.report import report

RESULTS = pathlib.Path(__file__).parent / "results" / "pixeldcl_text_detector.json"
WORDS = "".join(chr(c) for c in range(ord("a"), ord("z") + 1)) * 3 + "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;"
THRESHOLD = 0.3


def detector() -> nn.Module:
    """The ONNX model as a torch model; its weights, stored as constants, become initializers first."""
    import onnx
    import onnx2torch

    package = importlib.metadata.distribution("rapidocr-onnxruntime").locate_file("rapidocr_onnxruntime")
    model = onnx.load(pathlib.Path(str(package)) / "models" / "ch_PP-OCRv4_det_infer.onnx")
    kept = []
    for node in model.graph.node:
        if node.op_type == "Constant":
            node.attribute[0].t.name = node.output[0]
            model.graph.initializer.append(node.attribute[0].t)
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return onnx2torch.convert(model).eval().requires_grad_(False)


def page(seed: int, size: tuple[int, int] = (480, 480)) -> Tensor:
    """A page as the detector takes it, (1, 3, H, W): random words in random fonts, sizes and inks."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    draw_from = random.Random(seed)
    folder = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = sorted(
        p for p in folder.glob("*.ttf") if p.name.startswith(("DejaVuSans", "DejaVuSerif", "STIXGeneral"))
    )
    paper = [draw_from.randint(180, 255) for _ in range(3)]
    ink = [draw_from.randint(0, 110) for _ in range(3)]
    if draw_from.random() < 0.25:
        paper, ink = ink, paper
    image = Image.new("RGB", (size[1], size[0]), tuple(paper))
    draw = ImageDraw.Draw(image)
    y = draw_from.randint(5, 40)
    while y < size[0] - 20:
        height = draw_from.randint(12, 44)
        font = ImageFont.truetype(str(draw_from.choice(fonts)), height)
        lengths = [draw_from.randint(2, 9) for _ in range(draw_from.randint(1, 6))]
        text = " ".join("".join(draw_from.choice(WORDS) for _ in range(n)) for n in lengths)
        draw.text((draw_from.randint(0, size[1] // 3), y), text, fill=tuple(ink), font=font)
        y += int(height * draw_from.uniform(1.2, 2.2))
    pixels = torch.from_numpy(np.asarray(image).copy()).float().permute(2, 0, 1)[None] / 255
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed)) * 0.01
    return (pixels + noise - 0.5) / 0.5


def compare(wanted: list[Tensor], model: nn.Module, pages: list[Tensor]) -> dict[str, float]:
    with torch.no_grad():
        maps = [model(p) for p in pages]
    differences = [float((a - b).abs().mean()) for a, b in zip(maps, wanted, strict=True)]
    changed = [
        float(((a > THRESHOLD) != (b > THRESHOLD)).float().mean()) for a, b in zip(maps, wanted, strict=True)
    ]
    return {
        "mean_absolute_difference": float(np.mean(differences)),
        "worst_page": max(differences),
        "pixels_that_change_sides": float(np.mean(changed)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=int, default=16)
    parser.add_argument("--held", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = detector()
    fit = [page(i) for i in range(arguments.pages)]
    held = [page(10_000 + i) for i in range(arguments.held)]
    with torch.no_grad():
        wanted = [model(p) for p in held]
    text = float(np.mean([float((w > THRESHOLD).float().mean()) for w in wanted]))
    rows: dict[str, object] = {}

    def add(name: str, converted: nn.Module, start: float) -> None:
        sites = {s.name: [s.layer, s.error] for s in report(converted).converted}
        rows[name] = {
            **compare(wanted, converted, held),
            "cpu_seconds": time.process_time() - start,
            "sites": sites,
        }
        print(name, json.dumps(rows[name]), flush=True)
        told = {"pages": arguments.pages, "held_pages": arguments.held, "text_share": text, "rows": rows}
        arguments.results.write_text(json.dumps(told, indent=1) + "\n")

    start = time.process_time()
    add("data-free", pixelize.convert(model, "pixeldcl", example_inputs=fit[0]), start)
    start = time.process_time()
    converted = pixelize.convert(model, "pixeldcl", init="calibrate", data=fit, example_inputs=fit[0])
    add("calibrated", converted, start)


if __name__ == "__main__":
    main()
