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
from typing import Any

import torch

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
    found["settings"] = {
        "model": args.model,
        "real pictures": Path(args.data).name,
        "batch": args.batch,
        "lr": args.lr,
        "fidelity": args.fidelity,
        "threads": args.threads,
        "torch": torch.__version__,
        "machine": f"CPU ({platform.machine()})",
    }
    for arm in args.arms.split(","):
        if "result" in found["arms"].get(arm, {}):
            continue
        if (
            arm not in found["arms"]
        ):  # noted before training, so that a killed run goes on with the same steps
            per_step = seconds_per_step(settings, arm)
            steps = max(10, round(args.minutes * 60 / per_step))
            found["arms"][arm] = {"CPU minutes": args.minutes, "seconds per step": per_step, "steps": steps}
            write(args.out, found)
        steps = found["arms"][arm]["steps"]
        run = replace(
            settings,
            out=f"{args.work}/{arm}",
            arms=arm,
            steps=steps,
            eval_every=max(1, steps // 8),
            samples=512,
        )
        data = repair.run(run)
        done = data["arms"][arm]
        found["as it came"] = {k: v for k, v in data["settings"].items() if k.startswith("as it came")}
        found["arms"][arm] |= {
            "parameters": done["facts"]["parameters"],
            "result": done["results"][0],
            "history": done["histories"][0],
        }
        write(args.out, found)


def write(out: Path, found: dict[str, Any]) -> None:
    """Writes all that is known so far as JSON, and the finished arms as a table."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "gan_repair.json").write_text(json.dumps(found, indent=1) + "\n")
    arms = {name: arm for name, arm in found["arms"].items() if "result" in arm}
    if not arms:
        return
    before = {k.removeprefix("as it came: "): v for k, v in found["as it came"].items()}
    rows = [["", "as it came", *arms, "aim"], ["---"] * (len(arms) + 3)]
    for key in ("CPU minutes", "steps", "seconds per step", "parameters"):
        rows.append(
            [
                key,
                "",
                *(f"{arm[key]:,.4g}" if key != "parameters" else f"{arm[key]:,}" for arm in arms.values()),
                "",
            ]
        )
    for name in next(iter(arms.values()))["result"]:
        if name != "train minutes":
            came = f"{before[name]:.1f}" if name in before else ""
            rows.append(
                [name, came, *(f"{arm['result'][name]:.1f}" for arm in arms.values()), AIMS.get(name, "")]
            )
    (out / "gan_repair.md").write_text("\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n")


if __name__ == "__main__":
    main()
