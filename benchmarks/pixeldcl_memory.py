"""Peak memory of calibrating one layer of 512 channels with 3x3 dependency kernels.

    python benchmarks/pixeldcl_memory.py

Its last stage solves for 1,024 targets from 9,216 features. Writes
``benchmarks/results/pixeldcl_memory.json``: the
process's peak resident memory before and after (GiB, Linux), and the CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pixelize.calibration.layer_fit import fit_layer
from pixelize.inheritance.inherit import Design, inherit

RESULTS = pathlib.Path(__file__).parent / "results" / "pixeldcl_memory.json"


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    original = nn.ConvTranspose2d(arguments.channels, arguments.channels, 4, 2, 1).requires_grad_(False)
    layer, _, _ = inherit(original, "pixeldcl", Design(), "zero")

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        random = torch.Generator().manual_seed(1)
        for _ in range(arguments.batches):
            x = torch.randn(16, arguments.channels, 12, 12, generator=random).relu()
            yield x, original(x)

    before, start = peak(), time.process_time()
    error = fit_layer(layer, pairs)
    told = {
        "channels": arguments.channels,
        "rows": arguments.batches * 16 * 144,
        "relative_error": error,
        "peak_gib_before": round(before, 2),
        "peak_gib": round(peak(), 2),
        "cpu_seconds": round(time.process_time() - start, 1),
    }
    print(json.dumps(told))
    arguments.results.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
