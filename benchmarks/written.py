"""What a recipe's run leaves in benchmarks/results: figures, settings without local paths, a table."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch


def write_run(out: Path, name: str, data: dict[str, Any], folder: Path) -> None:
    """Writes ``out/name.json`` and ``.md`` of what a recipe's ``run`` returned and left in ``folder``."""
    if not data:  # not the main process
        return
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
    told = f"{s['size']}x{s['size']}, {s['steps']} steps of {s['batch']}, {data['machine']}"
    (out / f"{name}.md").write_text(f"{data['title']}, {told}\n\n{(folder / 'table.md').read_text()}")
