"""The harness: what it counts and compares must be right; the times themselves are the machine's."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from pixelize import PixelDCL2d
from pixelize.benchmarking import layers, timing


def test_calls_take_turns_and_each_is_timed_as_often():
    ran = []
    calls = {name: lambda name=name: ran.append(name) for name in "abc"}
    times = timing.interleaved(calls, 0.01, torch.device("cpu"))
    rounds = len(times["a"])
    assert rounds >= 5 and {len(t) for t in times.values()} == {rounds}
    assert all(t >= 0 for each in times.values() for t in each)
    timed = ran[-3 * rounds :]
    assert all(set(timed[i : i + 3]) == set("abc") for i in range(0, len(timed), 3))


def test_peak_memory_counts_what_is_held_at_a_time():
    megabyte = 2**18  # float32 values

    def one_after_another():
        for _ in range(3):
            torch.empty(megabyte)

    def all_at_once():
        return [torch.empty(megabyte) for _ in range(3)]

    cpu = torch.device("cpu")
    assert timing.peak_memory(one_after_another, cpu) == pytest.approx(2**20, rel=0.01)
    assert timing.peak_memory(all_at_once, cpu) == pytest.approx(3 * 2**20, rel=0.01)


def test_multiply_adds_and_bytes_of_a_known_layer():
    torch.set_num_threads(1)
    modules = {"plain": nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False), "pixel": PixelDCL2d(8, 4, 4, 2, 1)}
    x = torch.randn(1, 8, 5, 5)
    plain, pixel = timing.compare_modules(modules, x, train=False, seconds=0.01)
    c2, pixels = 16, 25
    assert (
        plain.multiply_adds == 32 * c2 * pixels
    )  # DESIGN: k4 s2 with C_in = 2C does 32 C^2 per low-resolution pixel
    assert pixel.multiply_adds == (8 + 9 + 36) * c2 * pixels
    weights = 8 * 4 * 16
    assert plain.bytes_moved == 4 * (8 * 25 + 4 * 100 + weights)
    trained = timing.compare_modules(modules, x, train=True, seconds=0.01)[0]
    assert trained.multiply_adds == 3 * plain.multiply_adds
    assert trained.bytes_moved == 4 * (3 * 8 * 25 + 2 * 4 * 100 + 3 * weights)
    assert plain.ratio == plain.ratio_low == plain.ratio_high == 1.0


def test_whole_models_with_inputs_by_name_are_compared():
    class Net(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.up, self.head = nn.ConvTranspose2d(3, width, 2, 2), nn.Linear(width, 2)

        def forward(self, x, index):
            y = self.up(x) + index
            return {"out": self.head(y.movedim(1, -1)), "size": index}

    torch.set_num_threads(1)
    inputs = {"x": torch.randn(1, 3, 4, 4), "index": torch.tensor(1)}
    for train in (False, True):
        first, second = timing.compare_modules({"a": Net(4), "b": Net(8)}, inputs, train=train, seconds=0.01)
        macs = 16 * 3 * 4 * 4 + 64 * 4 * 2
        assert (
            first.multiply_adds == (3 if train else 1) * macs
            and second.multiply_adds == 2 * first.multiply_adds
        )
        assert first.parameters == 3 * 16 + 4 + 4 * 2 + 2


def test_contenders_agree_on_shapes():
    for kernel_size in (2, 4):
        modules = layers.layer_contenders(4, kernel_size)
        assert next(iter(modules)) == layers.REFERENCE
        for name, module in modules.items():
            assert module(torch.randn(1, 8, 3, 3)).shape == (1, 4, 6, 6), name


def test_a_whole_run_is_plain_data():
    cases = [
        layers.Case(4, 4),
        layers.Case(4, 6, kernel_size=2, train=True, channels_last=True, dtype="bfloat16"),
    ]
    lines = []
    result = layers.run_bench(cases, seconds=0.01, contenders=["PixelDCL"], progress=lines.append)
    again = json.loads(json.dumps(result))
    assert again == result and len(lines) == 2
    assert [row["contender"] for row in again["cases"][1]["rows"]] == ["ConvTranspose2d", "PixelDCL"]
    for entry in again["cases"]:
        for row in entry["rows"]:
            assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"] and row["rounds"] >= 5
            assert row["roofline"] > 0 and row["peak_memory"] > 0
    assert again["machine"]["clock"] == "CPU time of the thread"
