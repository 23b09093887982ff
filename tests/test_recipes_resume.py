"""kill -9 at any moment, the same command again: the same final weights. Two processes: the result of one."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import socket
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("torchmetrics")
pytest.importorskip("torchvision")

import torch

from pixelize.errors import ArgumentError
from pixelize.recipes.recipe_settings import GanSettings, SegmentationSettings, VaeSettings
from pixelize.recipes.training.checkpoint import load_checkpoint

SMALL: dict[str, Any] = {"width": 4, "batch": 4, "cpu": True}
GENERATED: dict[str, Any] = {**SMALL, "size": 16, "limit": 40, "samples": 8}
SEGMENTATION = SegmentationSettings(
    **SMALL, size=32, limit=16, steps=40, eval_every=10, save_every=3, warmup=4, arms="annealed", ema=0.9
)
GAN = GanSettings(**GENERATED, steps=40, eval_every=20, save_every=2, arms="pixeldcl")
VAE = VaeSettings(**GENERATED, steps=12, eval_every=6, accumulate=2, arms="dcl-k4", lr=1e-3)


def _run(
    settings: Any, out: str, rank: int = 0, processes: int = 1, port: int = 0, double: bool = False
) -> None:
    """One process of a run; a process of its own, since accelerate's state is a process's."""
    if processes > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
        }
    import importlib
    from dataclasses import replace

    torch.set_num_threads(1)
    if double:  # all of it in float64, where rounding cannot pass for a difference, nor hide one
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    name = type(settings).__name__.removesuffix("Settings").lower()
    importlib.import_module(f"pixelize.recipes.{name}").run(replace(settings, out=out))


@pytest.fixture(scope="module")
def processes() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pixelize.recipes.segmentation", "pixelize.recipes.gan", "pixelize.recipes.vae"]
    )
    return context


def final(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the plain data of a finished run, without the time it took."""
    tensors, state = load_checkpoint(folder / "checkpoint.safetensors")
    state.pop("seconds")
    for row in state["history"]:
        row.pop("seconds")
    return tensors, state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "run"),
    [(SEGMENTATION, "annealed-seed0"), (GAN, "pixeldcl-seed0")],
    ids=["segmentation", "gan"],
)
def test_killed_runs_end_as_undisturbed_ones(tmp_path: Path, processes: Any, settings: Any, run: str) -> None:
    undisturbed = processes.Process(target=_run, args=(settings, str(tmp_path / "undisturbed")))
    undisturbed.start()
    undisturbed.join(300)
    assert undisturbed.exitcode == 0
    wanted, state = final(tmp_path / "undisturbed" / run)

    draw = random.Random(0)
    steps = []
    for _ in range(3):
        killed = processes.Process(target=_run, args=(settings, str(tmp_path / "killed")))
        killed.start()
        checkpoint = tmp_path / "killed" / run / "checkpoint.safetensors"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        deadline = time.monotonic() + 120
        while killed.is_alive() and time.monotonic() < deadline:  # until it has come further than it had
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns > before:
                break
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.3))
        killed.kill()
        killed.join()
        steps.append(load_checkpoint(checkpoint)[1]["step"])
    assert steps[0] < settings.steps, "the first kill came after the end; the test shows nothing"
    last = processes.Process(target=_run, args=(settings, str(tmp_path / "killed")))
    last.start()
    last.join(300)
    assert last.exitcode == 0
    tensors, after = final(tmp_path / "killed" / run)
    assert after == state
    assert tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(tensors[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "run"),
    [(SEGMENTATION, "annealed-seed0"), (VAE, "dcl-k4-seed0"), (GAN, "pixeldcl-seed0")],
    ids=["segmentation", "vae", "gan"],
)
def test_two_processes_compute_what_one_does(tmp_path: Path, processes: Any, settings: Any, run: str) -> None:
    from dataclasses import replace

    settings = replace(settings, steps=12, eval_every=6, accumulate=1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = processes.Process(target=_run, args=(settings, str(tmp_path / "one"), 0, 1, 0, True))
    both = [
        processes.Process(target=_run, args=(settings, str(tmp_path / "two"), r, 2, port, True))
        for r in (0, 1)
    ]
    for process in (alone, *both):
        process.start()
    for process in (alone, *both):
        process.join(300)
        assert process.exitcode == 0
    (one, state), (two, shared) = final(tmp_path / "one" / run), final(tmp_path / "two" / run)
    for name, tensor in one.items():
        if name.startswith("network/"):
            difference = (two[name] - tensor).abs().max()  # sums in another order
            assert difference < 1e-7, f"{name}: {difference}"
    for row, other in zip(state["history"], shared["history"], strict=True):
        assert other == pytest.approx(row, rel=1e-3, abs=1e-3)
    assert json.loads((tmp_path / "two" / "results.json").read_text())["arms"]


def test_a_checkpoint_goes_on_only_under_its_own_settings(tmp_path: Path) -> None:
    from dataclasses import replace

    from pixelize.recipes.segmentation import run

    tiny = replace(SEGMENTATION, out=str(tmp_path), arms="dcl-k2", steps=2, eval_every=2, limit=4)
    first = run(tiny)
    assert run(tiny)["arms"] == first["arms"]  # finished: nothing is trained again
    with pytest.raises(ArgumentError, match=r"made with other settings \(lr was 0.001 and is 0.1\)"):
        run(replace(tiny, lr=0.1))
    assert (
        run(replace(tiny, lr=0.1, fresh=True))["arms"]["dcl-k2"]["histories"]
        != first["arms"]["dcl-k2"]["histories"]
    )
