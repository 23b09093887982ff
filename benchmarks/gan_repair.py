"""Repair the trained DCGAN of `gan-face-generate`, every arm for the same CPU time, with several seeds.

    python benchmarks/gan_repair.py --data faces64.zip --minutes 2 --arms control,ipixeldcl,ipixeldcl-dw

Each arm's step is timed first (CPU time, the arms taking turns; one that starts from a repair counts as the
same one without); its number of steps is then the time divided by that. The loss, the data, the rate's
course and all else are the same. Writes benchmarks/results/<name>.json and .md after every run; the same
command goes on after an interruption, and one with more seeds or arms adds to what is there.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pixelize.recipes import repair
from pixelize.recipes.artifact_loss import natural_level
from pixelize.recipes.models.arms import convert_arm
from pixelize.recipes.recipe_settings import RepairSettings
from pixelize.recipes.training.processes import start

AT_MOST = {"global (0,1/2)": 1.5, "global (1/2,0)": 1.5, "global (1/2,1/2)": 1.0}
AT_LEAST = {"low-passed PSNR": 35.0}
NEAR_REAL = {f"windowed {f}": 1.0 for f in ("(0,1/2)", "(1/2,0)", "(1/2,1/2)")}
"""The aims, in dB; the last ones are distances from the real pictures' figures."""

FROZEN = {
    "gan-face-generate": "main.0.*,main.1.*,main.3.*,main.4.*,main.6.*,main.7.*",
    "demo": "project.*,norm0.*,up1.*,norm1.*,up2.*,norm2.*",
}
CONVERTED = {"gan-face-generate": "main.[91]*", "demo": "up[34]"}
"""All but the last two up-samplers (and the norm between them) stay as they are, in every arm."""

BETTER = "off natural dB"
"""What tells the better arm: the figure that is farthest from the real pictures', the less the better."""


def seconds_per_step(settings: RepairSettings, arms: list[str], rounds: int = 8) -> dict[str, float]:
    """CPU seconds of one training step of each arm: the least of some rounds, in which the arms take turns,
    so that what else the machine does slows all of them or none.
    """
    accelerator = start(settings)
    teacher, data, _ = repair.load_teacher(settings)
    teacher = teacher.eval().requires_grad_(False)
    batch = torch.stack([data[i] for i in range(settings.batch)])
    steps = {}
    for arm in arms:
        base = copy.deepcopy(teacher).requires_grad_(True)
        model = convert_arm(arm, base, include=settings.include)
        steps[arm] = repair.make_trial(
            model, settings, teacher, data, natural_level(None), (batch, batch), (batch, batch), accelerator
        ).update
    taken: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm, step in steps.items():
            began = time.process_time()
            step(batch, 0)
            taken[arm].append(time.process_time() - began)
    return {arm: min(seconds) for arm, seconds in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Repair a trained DCGAN, every arm for the same time.")
    parser.add_argument("--model", default="gan-face-generate")
    parser.add_argument("--data", required=True, help="real faces, a folder or zip")
    parser.add_argument("--minutes", type=float, default=2, help="of CPU time for each run")
    parser.add_argument("--arms", default="control,ipixeldcl,control-repaired,ipixeldcl-repaired")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--fidelity", type=float, default=300)
    parser.add_argument("--freeze", help="patterns of parameters that no arm trains; FROZEN by default")
    parser.add_argument("--include", help="pattern of the up-samplers that are converted; as in CONVERTED")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", default="", help="folder of the runs; runs/<name> if not given")
    parser.add_argument("--name", default="gan_repair", help="of the results")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    args.freeze = FROZEN.get(args.model, "") if args.freeze is None else args.freeze
    args.include = CONVERTED.get(args.model, "*") if args.include is None else args.include

    settings = RepairSettings(
        model=args.model,
        data=args.data,
        batch=args.batch,
        lr=args.lr,
        fidelity=args.fidelity,
        freeze=args.freeze,
        include=args.include,
        threads=args.threads,
        cpu=True,
        save_every=10,
    )
    noted = {
        "model": args.model,
        "real pictures": Path(args.data).name,
        "batch": args.batch,
        "lr": args.lr,
        "fidelity": args.fidelity,
        "frozen": args.freeze,
        "converted": args.include,
        "CPU minutes": args.minutes,
        "threads": args.threads,
        "torch": torch.__version__,
        "machine": f"CPU ({platform.machine()})",
    }
    path = args.out / f"{args.name}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("settings") != noted:
        found = {"settings": noted, "arms": {}}
    new = {arm: arm.removesuffix(repair.REPAIRED) for arm in args.arms.split(",") if arm not in found["arms"]}
    if new:  # noted before training, so that a killed run goes on with the same steps
        timed = {arm: found["arms"][arm]["seconds per step"] for arm in found["arms"]}
        timed |= seconds_per_step(settings, [arm for arm in dict.fromkeys(new.values()) if arm not in timed])
        for arm, plain in new.items():
            steps = max(10, round(args.minutes * 60 / timed[plain]))
            found["arms"][arm] = {"seconds per step": timed[plain], "steps": steps, "results": {}}
        write(args.out, args.name, found)
    for seed in args.seeds.split(","):
        for arm in args.arms.split(","):
            here = found["arms"][arm]
            if seed in here["results"]:
                continue
            run = replace(
                settings,
                out=args.work or f"runs/{args.name}",
                arms=arm,
                seeds=seed,
                steps=here["steps"],
                warmup=here["steps"] // 7,
                eval_every=-(-here["steps"] // 4),
                samples=512,
            )
            data = repair.run(run)
            done = data["arms"][arm]
            for kind in ("as it came", "natural", "repaired"):
                noted_so = {k: v for k, v in data["settings"].items() if k.startswith(kind + ": ")}
                if noted_so:
                    found[kind] = {k.removeprefix(kind + ": "): v for k, v in noted_so.items()}
            here |= done["facts"]
            here["results"][seed] = done["results"][0]
            write(args.out, args.name, found)


def met(name: str, value: float, natural: dict[str, float]) -> bool | None:
    """Whether a figure meets its aim; None where it has none."""
    if name in AT_MOST:
        return value <= AT_MOST[name]
    if name in AT_LEAST:
        return value >= AT_LEAST[name]
    if name in NEAR_REAL:
        return abs(value - natural[name]) <= NEAR_REAL[name]
    return None


def mean_and_spread(values: list[float]) -> str:
    """``mean ± sample standard deviation``, or the one value."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def write(out: Path, name: str, found: dict[str, Any]) -> None:
    """Writes all that is known so far as JSON, and the finished arms as a table with a verdict."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    arms = {name: arm for name, arm in found["arms"].items() if arm["results"]}
    if not arms:
        return
    s, natural = found["settings"], found["natural"]
    untrained = {"real": natural, "as it came": found["as it came"]}
    if "repaired" in found:
        untrained["repaired alone"] = found["repaired"]
    aims = {n: f"at most {v}" for n, v in AT_MOST.items()} | {
        n: f"at least {v:.0f}" for n, v in AT_LEAST.items()
    }
    aims |= {n: f"within {v:.0f} of real" for n, v in NEAR_REAL.items()}
    header = ["dB", *untrained, *arms, "aim"]
    none = [""] * len(untrained)
    rows = [["seeds", *none, *(str(len(a["results"])) for a in arms.values()), ""]]
    rows.append(["steps", *none, *(str(a["steps"]) for a in arms.values()), ""])
    rows.append(["CPU s per step", *none, *(f"{a['seconds per step']:.2f}" for a in arms.values()), ""])
    minutes = (f"{a['seconds per step'] * a['steps'] / 60:.1f}" for a in arms.values())
    rows.append(["CPU minutes", *none, *minutes, ""])
    rows.append(["parameters", *none, *(f"{a['parameters']:,}" for a in arms.values()), ""])
    means: dict[str, dict[str, float]] = {arm: {} for arm in arms}
    missed: dict[str, list[str]] = {arm: [] for arm in arms}
    if "repaired" in found:
        levels = found["repaired"].items()
        missed["repaired alone"] = [key for key, level in levels if met(key, level, natural) is False]
    for key in next(iter(next(iter(arms.values()))["results"].values())):
        if key == "train minutes":
            continue
        cells = []
        for arm, a in arms.items():
            values = [r[key] for r in a["results"].values()]
            means[arm][key] = statistics.fmean(values)
            verdict = met(key, means[arm][key], natural)
            cells.append(mean_and_spread(values) + {True: " ✓", False: " ✗", None: ""}[verdict])
            if verdict is False:
                missed[arm].append(key)
        given = [f"{known[key]:.1f}" if key in known else "" for known in untrained.values()]
        rows.append([key, *given, *cells, aims.get(key, "")])
    told = (
        f"{s['model']}, CPU minutes of training alone (`pixelize.repair`, from whose result "
        "`-repaired` starts and which `repaired alone` is, apart), "
        f"one thread, batch {s['batch']}, "
        f"frozen: {s['frozen'] or 'nothing'}, 512 fresh latents, {s['machine']}. Mean ± "
        "standard deviation over seeds; ✓ and ✗: whether the mean meets the aim."
    )
    table = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    lines = [told, "", *table, ""]
    for arm, keys in missed.items():
        lines.append(f"- `{arm}`: " + (f"misses {', '.join(keys)}." if keys else "meets every aim."))
    lines += ["", *(verdict_of(a, b, means, arms) for a, b in pairs(list(arms)))]
    (out / f"{name}.md").write_text("\n".join(lines) + "\n")


def pairs(arms: list[str]) -> list[tuple[str, str]]:
    """Each control with the converted arms that started as it did."""
    return [
        (c, a)
        for c in arms
        if c.startswith("control")
        for a in arms
        if a != c and a.endswith(repair.REPAIRED) == c.endswith(repair.REPAIRED)
    ]


def verdict_of(
    control: str, arm: str, means: dict[str, dict[str, float]], arms: dict[str, dict[str, Any]]
) -> str:
    """One sentence: which of the two is nearer to real pictures at equal time, and by how much."""
    gain = means[control][BETTER] - means[arm][BETTER]
    kept = means[arm]["low-passed PSNR"] - means[control]["low-passed PSNR"]
    runs = [[r[BETTER] for r in arms[name]["results"].values()] for name in (control, arm)]
    spread = max((statistics.stdev(values) for values in runs if len(values) > 1), default=float("nan"))
    known = "unknown (one seed)" if math.isnan(spread) else f"{spread:.1f}"
    if not abs(gain) > spread:  # also where the spread of one seed is not known
        told = f"neither `{control}` nor `{arm}` is nearer to real pictures beyond the spread"
    else:
        near, far = (arm, control) if gain > 0 else (control, arm)
        told = f"`{near}` is nearer to real pictures than `{far}`"
    return (
        f"- At equal time {told}: their farthest figures are {means[arm][BETTER]:.1f} dB (`{arm}`) and "
        f"{means[control][BETTER]:.1f} dB (`{control}`) off, spread {known}. `{arm}` keeps the "
        f"low-passed pictures {abs(kept):.1f} dB {'better' if kept > 0 else 'worse'}."
    )


if __name__ == "__main__":
    main()
