"""Seconds that ``pixelize repair`` takes from a file on disk: until it says what it sees, and altogether.

    python benchmarks/file_repair.py                       # the demo; writes results/file_repair.json and .md
    python benchmarks/file_repair.py --file model.pth --data photos/ --arch networks.py:Generator

Each command is a process of its own, its output a pipe. The first useful output is the line that says what
the file holds. After ``--file`` come a file and the options of ``pixelize repair`` itself. The text detector
among the results is one of PaddleOCR as an ONNX graph, fitted on crops of six photographs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pixelize.benchmarking.machine import describe_machine
from pixelize.checkpoints.checkpoint import same_bits
from pixelize.checkpoints.formats import read_checkpoint

RESULTS = Path(__file__).parent / "results"
SCRIPT = "from pixelize.command_line import main; main()"


DEMO = ["demo", "--count", "64"]


def measure(arguments: list[str]) -> dict[str, Any]:
    """One command's times, verdict and levels, and how many of the file's tensors differ."""
    suffix = Path(arguments[0]).suffix or ".safetensors"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, f"out{suffix}")
        whole = ["repair", *arguments, "--out", str(out), "--no-page"]
        environment = {**os.environ, "PYTHONPATH": str(RESULTS.parent.parent)}
        started = time.perf_counter()
        told = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *whole], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert told.stdout is not None
        first = told.stdout.readline()
        seen = time.perf_counter() - started
        rest = told.stdout.read()
        code = told.wait()
        seconds = time.perf_counter() - started
        differ = None
        if code == 0 and Path(arguments[0]).is_file():
            before, after = read_checkpoint(arguments[0]).tensors, read_checkpoint(out).tensors
            differ = [name for name in before if not same_bits(before[name], after[name])]
    return {
        "arguments": [Path(a).name if "/" in a else a for a in arguments],
        "first_output_seconds": seen,
        "seconds": seconds,
        "exit_code": code,
        "first_output": first.strip().rpartition("/")[2],
        "output": [line for line in rest.splitlines() if folder not in line],
        "tensors_that_differ": differ,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--file", nargs=argparse.REMAINDER, help="a file, and options of pixelize repair")
    options = parser.parse_args()
    chosen = {Path(options.file[0]).name: options.file} if options.file else {"demo": DEMO}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "file_repair.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else {}
    for name, arguments in chosen.items():
        known[name] = {**measure(arguments), "load": os.getloadavg()[0]}
        print(name, json.dumps(known[name], indent=1))
    machine = describe_machine("cpu", int(os.environ.get("OMP_NUM_THREADS", "1")))
    path.write_text(json.dumps({"machine": machine, "rows": known}, indent=1) + "\n")
    lines = ["| file | first output, s | whole command, s | exit code | machine's load | verdict |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for name, row in known.items():
        told = "\n".join(row["output"]).replace("\n    ", " ").splitlines()
        verdict = next((li for li in told if li.startswith(("Repaired", "Nothing", "Could"))), "")
        lines.append(
            f"| {name} | {row['first_output_seconds']:.1f} | {row['seconds']:.0f} | {row['exit_code']} | "
            f"{row['load']:.0f} | {verdict} |"
        )
    path.with_suffix(".md").write_text(f"# {__doc__.splitlines()[0]}\n\n" + "\n".join(lines) + "\n")  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
