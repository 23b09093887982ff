"""The tables and the figure of docs/evidence.md, from the raw rows in benchmarks/results.

    python benchmarks/evidence.py

Each table stands in the page between `<!-- NAME -->` and `<!-- end -->`; only what is between is replaced.
Intervals are Student's, 95 %, of differences paired by seed.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pixelize.pages.figures import save_png
from pixelize.recipes.training.results import ArmResult, difference, markdown

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "evidence.md"
CURVES = ROOT / "docs" / "evidence.png"
SCRATCH = "camvid_scratch_medium"

PAPER = {"ipixeldcl": 0.448817 - 0.415178, "pixeldcl": 0.455972 - 0.415178}
"""Mean IoU gained over the deconvolution of the paper's table 1 (PASCAL 2012, U-Net)."""


def arms_of(name: str) -> dict[str, ArmResult]:
    """The arms of one recipe's results."""
    found = json.loads((RESULTS / f"{name}.json").read_text())["arms"]
    return {arm: ArmResult(arm, **rows) for arm, rows in found.items()}


def recipe_table(name: str, metrics: list[str]) -> str:
    """Each arm's means over seeds, and the first metric's difference from the first arm."""
    arms = arms_of(name)
    first = next(iter(arms.values()))
    header = ["arm", "seeds", "parameters", *metrics, f"{metrics[0]} minus `{first.arm}`, same seeds"]
    rows = [header]
    for arm in arms.values():
        cells = [f"{statistics.fmean(arm.by_seed(m).values()):.4g}" for m in metrics]
        gain = difference(arm.by_seed(metrics[0]), first.by_seed(metrics[0]))
        parameters = f"{arm.facts['parameters']:,.0f}"
        rows.append(
            [f"`{arm.arm}`", str(len(arm.seeds)), parameters, *cells, "" if arm is first else str(gain)]
        )
    return markdown(rows)


def power_table(name: str = SCRATCH, metric: str = "mIoU", control: str = "dcl-k3") -> str:
    """For each arm: the spread of the control and of the paired differences over seeds, and the seeds it
    takes for a third of the paper's margin, and for all of it, to be two standard errors.
    """
    arms = arms_of(name)
    base = arms[control].by_seed(metric)
    spread = f"{statistics.stdev(base.values()):.3f}"
    rows = [["arm", "pairs", "SD of the control", "SD of the differences", "paper's margin",
             "seeds for a third of it", "seeds for all of it"]]  # fmt: skip
    for arm, margin in PAPER.items():
        values = arms[arm].by_seed(metric)
        gains = [values[seed] - base[seed] for seed in values if seed in base]
        sd = statistics.stdev(gains)
        third, whole = (str(seeds_to_see(sd, effect)) for effect in (margin / 3, margin))
        rows.append([f"`{arm}`", str(len(gains)), spread, f"{sd:.3f}", f"{margin:.3f}", third, whole])
    return markdown(rows)


def seeds_to_see(deviation: float, effect: float) -> int:
    """The fewest pairs (2 at the least) whose mean has a standard error of half the ``effect`` or less.

    >>> seeds_to_see(0.012, 0.012), seeds_to_see(0.012, 0.036)
    (4, 2)
    """
    return max(2, math.ceil((2 * deviation / effect) ** 2))


def repair_table(names: list[str]) -> str:
    """Arms of benchmarks/gan_repair.py: how far the farthest figure is from real pictures', and what of the
    pictures is kept.
    """
    header = ["arm", "seeds", "steps", "rate", "trained numbers", "farthest figure, dB off natural"]
    rows = [[*header, "low-passed PSNR, dB", "run"]]
    for name in names:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        data = json.loads(path.read_text())
        for arm, found in data["arms"].items():
            results = found["results"].values()
            if not results:
                continue
            cells = [_mean(r[key] for r in results) for key in ("off natural dB", "low-passed PSNR")]
            trained = found.get("trained", found["parameters"])
            rate = f"{data['settings']['lr']:g}"
            rows.append(
                [f"`{arm}`", str(len(results)), str(found["steps"]), rate, f"{trained:,}", *cells, name]
            )
    return markdown(rows)


def designs_table(name: str = "models_designs_cpu") -> str:
    """What each dependency design costs, over the model as it was: time in prediction and training
    (quartiles), and parameters.
    """
    rows = [["model", "design", "prediction", "training", "parameters"]]
    for entry in json.loads((RESULTS / f"{name}.json").read_text())["models"]:
        first = entry["prediction"][0]
        for one, other in zip(entry["prediction"][1:], entry["training"][1:], strict=True):
            times = [
                f"{r['ratio']:.2f} ({r['ratio_low']:.2f} to {r['ratio_high']:.2f})" for r in (one, other)
            ]
            size = one["parameters"] / first["parameters"]
            rows.append([entry["model"], one["contender"], *times, f"{size:.3f}"])
    return markdown(rows)


def palette_table(name: str = "new_palette") -> str:
    """Arms of benchmarks/new_palette.py: what a trained model is worth on new colours, before and after."""
    data = json.loads((RESULTS / f"{name}.json").read_text())
    metrics = ("mIoU", "boundary IoU", "accuracy")
    rows = [["arm", "seeds", "trained numbers", *metrics]]
    rows.append(["as it came", "", "0", *(f"{data['as it came'][m]:.3f}" for m in metrics)])
    for arm, found in data.items():
        if arm not in ("settings", "as it came"):
            means = (statistics.fmean(r[m] for r in found["results"]) for m in metrics)
            trained = f"{found['facts']['trained']:,}"
            rows.append([f"`{arm}`", str(len(found["seeds"])), trained, *(f"{x:.3f}" for x in means)])
    return markdown(rows)


def _mean(values: Any) -> str:
    values = list(values)
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def draw_curves(name: str = SCRATCH, metric: str = "val mIoU") -> None:
    """Validation curves over steps: a thin line for each seed, a thick one for the mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    arms = arms_of(name)
    first = next(iter(arms.values()))
    base = dict(zip(first.seeds, first.histories, strict=True))
    for i, arm in enumerate(arms.values()):
        colour = f"C{i}"
        for history in arm.histories:
            left.plot([r["step"] for r in history], [r[metric] for r in history], colour, lw=0.5, alpha=0.5)
        means = [
            (rows[0]["step"], statistics.fmean(r[metric] for r in rows))
            for rows in zip(*arm.histories, strict=True)
        ]
        left.plot(*zip(*means, strict=True), colour, lw=2, label=f"{arm.arm} ({len(arm.seeds)})")
        if arm is first:
            continue
        own = dict(zip(arm.seeds, arm.histories, strict=True))
        steps = [row["step"] for row in arm.histories[0]]
        gains = [
            difference(*({seed: h[i][metric] for seed, h in runs.items()} for runs in (own, base)))
            for i in range(len(steps))
        ]
        right.plot(steps, [g.mean for g in gains], colour, lw=2)
        right.fill_between(
            steps,
            [g.mean - g.half for g in gains],
            [g.mean + g.half for g in gains],
            color=colour,
            alpha=0.12,
        )
    for margin in PAPER.values():
        right.axhline(margin, color="k", lw=0.8, ls=":")
    right.text(steps[-1], max(PAPER.values()), "the paper's margins", fontsize=8, va="bottom", ha="right")
    right.axhline(0, color="k", lw=0.8)
    left.set(xlabel="step", ylabel=metric, title="seeds, and their mean")
    right.set(xlabel="step", ylim=(-0.1, 0.1), title=f"minus {first.arm} (95 % interval)")
    left.legend(fontsize=8)
    save_png(figure, CURVES)


TABLES: dict[str, Callable[[], str]] = {
    "segmentation": lambda: recipe_table(
        SCRATCH, ["mIoU", "boundary IoU", "accuracy", "logits (1/2,1/2) dB"]
    ),
    "power": power_table,
    "linknet": lambda: recipe_table("camvid_smp_linknet_small", ["mIoU", "accuracy"]),
    "unet": lambda: recipe_table("camvid_smp_unet_small", ["mIoU", "accuracy"]),
    "vae": lambda: recipe_table("vae_faces_small", ["PSNR", "SSIM", "samples (1/2,1/2) dB"]),
    "palette": palette_table,
    "designs": designs_table,
    "repair": lambda: repair_table(["gan_repair", "gan_repair_short", "gan_repair_adapter"]),
}


def main() -> None:
    page = PAGE.read_text()
    for name, table in TABLES.items():
        between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not between.search(page):
            raise SystemExit(f"{PAGE}: no place for the table {name!r}")
        found = table()  # neither this nor the page has a backslash
        page = between.sub(rf"\1\n{found}\n\2", page)
    PAGE.write_text(page)
    draw_curves()


if __name__ == "__main__":
    main()
