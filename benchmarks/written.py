"""What a recipe's run leaves in benchmarks/results: figures, settings without local paths, the command, and
the recipe's tables.
"""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pixelize.recipes.training.settings import Settings


def run_and_write(run: Callable[[Any], dict[str, Any]], settings: Settings, out: Path, name: str) -> None:
    """Runs a recipe with one seed more at a time, and writes ``out/name.json`` and ``.md`` after each."""
    seeds = settings.seeds.split(",")
    for n in range(1, len(seeds) + 1):
        data = run(replace(settings, seeds=",".join(seeds[:n])))
        if data:  # the main process
            write_run(out, name, data, Path(settings.out))


def write_run(out: Path, name: str, data: dict[str, Any], folder: Path) -> None:
    """Writes ``out/name.json`` and ``.md`` of what a recipe's ``run`` returned and left in ``folder``."""
    data["settings"]["out"] = ""
    data["settings"]["data"] = Path(data["settings"]["data"]).name
    data["title"] = f"{name}: {data['settings']['data']}"
    data["machine"] = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    )
    data["torch"] = torch.__version__
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(data) + "\n")
    s = data["settings"]
    after = f" after {s['base_steps']} of the base" if s.get("base_steps") else ""
    model = s.get("model", "dcgan")
    told = f"{model}, {s['size']}x{s['size']}, {s['steps']} steps of {s['batch']}{after}, {data['machine']}"
    table = (folder / "table.md").read_text()
    (out / f"{name}.md").write_text(f"{data['title']}, {told}\n\n    {command()}\n\n{table}")


def command() -> str:
    """The command line of this process, with the files it names by their names alone."""
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
