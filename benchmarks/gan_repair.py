"""Repair the trained DCGAN of `gan-face-generate`, every arm for the same CPU time.

    python benchmarks/gan_repair.py --data faces64.zip --minutes 4 --arms control,ipixeldcl,ipixeldcl-dw

Each arm's step is timed first (CPU time of this process, so that other processes do not matter much); its
number of steps is then the time divided by that. The loss, the data, the rate's course and all else are the
same. Writes benchmarks/results/gan_repair.json and .md.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import pixelize
from pixelize.recipes import repair
from pixelize.recipes.recipe_settings import RepairSettings

AIMS = {
    "global (1/2,1/2)": "at most 1",
    "global (0,1/2)": "at most 1.5",
    "global (1/2,0)": "at most 1.5",
    "low-passed PSNR": "at least 35",
}


def seconds_per_step(settings: RepairSettings, arm: str, steps: int = 6) -> float:
    """CPU seconds of one training step of an arm: the difference of two short runs, without what comes before
    and after.
    """
    taken = []
    for n in (2, 2 + steps):
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            repair.run(replace(settings, out=folder, arms=arm, steps=n, eval_every=n, samples=32, data=""))
            taken.append(time.process_time() - began)
    return (taken[1] - taken[0]) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description="Repair a trained DCGAN, every arm for the same time.")
    parser.add_argument("--model", default="gan-face-generate")
    parser.add_argument("--data", default="", help="real faces, a folder or zip")
    parser.add_argument("--minutes", type=float, default=4, help="of CPU time for each arm")
    parser.add_argument("--arms", default="control,ipixeldcl,ipixeldcl-dw")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--fidelity", type=float, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", default="runs/gan_repair")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()

    settings = RepairSettings(
        model=args.model,
        data=args.data,
        batch=args.batch,
        lr=args.lr,
        fidelity=args.fidelity,
        threads=args.threads,
        cpu=True,
        save_every=10,
    )
    path = args.out / "gan_repair.json"
    found = json.loads(path.read_text()) if path.exists() else {"arms": {}}
    for arm in args.arms.split(","):
        per_step = seconds_per_step(settings, arm)
        steps = max(10, round(args.minutes * 60 / per_step))
        run = replace(
            settings,
            out=f"{args.work}/{arm}",
            arms=arm,
            steps=steps,
            eval_every=max(1, steps // 8),
            samples=512,
        )
        data = repair.run(run)["arms"][arm]
        found["arms"][arm] = {
            "steps": steps,
            "seconds per step": per_step,
            "parameters": data["facts"]["parameters"],
            "result": data["results"][0],
            "history": data["histories"][0],
        }
    found |= {
        "model": args.model,
        "real pictures": Path(args.data).name,
        "CPU minutes for each arm": args.minutes,
        "batch": args.batch,
        "lr": args.lr,
        "fidelity": args.fidelity,
        "threads": args.threads,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "pixelize": pixelize.__version__,
        "finished": time.strftime("%Y-%m-%d"),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    names = [n for n in next(iter(found["arms"].values()))["result"] if n != "train minutes"]
    lines = ["| | " + " | ".join(found["arms"]) + " | aim |", "|---|" + "---|" * (len(found["arms"]) + 1)]
    for key in ("steps", "seconds per step", "parameters"):
        lines.append(
            f"| {key} | "
            + " | ".join(
                f"{a[key]:,.4g}" if key == "seconds per step" else f"{a[key]:,}"
                for a in found["arms"].values()
            )
            + " | |"
        )
    for name in names:
        lines.append(
            f"| {name} | "
            + " | ".join(f"{a['result'][name]:.1f}" for a in found["arms"].values())
            + f" | {AIMS.get(name, '')} |"
        )
    (args.out / "gan_repair.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
