"""Seconds that ``pixelize repair`` takes from a file on disk: until it says what it sees, and altogether.

    python benchmarks/file_repair.py                       # writes results/file_repair.json and .md
    python benchmarks/file_repair.py --only demo
    python benchmarks/file_repair.py --file model.pth --data photos/ --arch networks.py:Generator

Each command is a process of its own, its output a pipe. The first useful output is the line that says what
the file holds. The pictures are scikit-image's; the text detector is the one in rapidocr-onnxruntime. After
``--file`` come the options of ``pixelize repair`` itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pixelize.benchmarking.machine import describe_machine
from pixelize.checkpoints.checkpoint import same_bits
from pixelize.checkpoints.formats import read_checkpoint

RESULTS = Path(__file__).parent / "results"
SCRIPT = "from pixelize.command_line import main; main()"


def photographs() -> list[str]:
    """scikit-image's pictures, as options."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    return [
        word for path in sorted([*folder.glob("*.png"), *folder.glob("*.jpg")]) for word in ("-d", str(path))
    ]


def text_detector() -> str:
    """The detection graph of rapidocr-onnxruntime, which is not imported (it needs OpenCV)."""
    found = find_spec("rapidocr_onnxruntime")
    if found is None or found.origin is None:
        sys.exit("rapidocr-onnxruntime is not installed")
    return str(next(Path(found.origin).parent.glob("models/*det*.onnx")))


def cases() -> dict[str, list[str]]:
    """Arguments of ``pixelize repair`` by name."""
    return {
        "demo": ["demo", "--count", "64"],
        "text detector": [
            text_detector(), *photographs(), "--scale", "imagenet", "--crop", "96", "--count", "48",
        ],
    }  # fmt: skip


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
    parser.add_argument("--only", nargs="+", choices=("demo", "text detector"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--file", nargs=argparse.REMAINDER, help="a file, and options of pixelize repair")
    options = parser.parse_args()
    if options.file:
        chosen = {Path(options.file[0]).name: options.file}
    else:
        chosen = {name: arguments for name, arguments in cases().items() if name in (options.only or cases())}
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
        verdict = next((li for li in row["output"] if li.startswith(("Repaired", "Nothing", "Could"))), "")
        lines.append(
            f"| {name} | {row['first_output_seconds']:.1f} | {row['seconds']:.0f} | {row['exit_code']} | "
            f"{row['load']:.0f} | {verdict} |"
        )
    path.with_suffix(".md").write_text(f"# {__doc__.splitlines()[0]}\n\n" + "\n".join(lines) + "\n")  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
