"""The demo, shortened: it measures what it claims, and leaves a model and a picture behind."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console

import pixelize
from pixelize.demo.generator import FaceGenerator
from pixelize.demo.run import run_demo
from pixelize.measure.notch import clean_target, notch


@pytest.mark.slow
def test_demo_takes_the_checkerboard_down_and_writes_what_it_says(tmp_path):
    text = io.StringIO()
    outcomes = run_demo(tmp_path / "out", steps=30, pool=160, console=Console(file=text, width=80))
    before, converted, control, repaired = outcomes
    peak = "(1/2,1/2)"
    assert before.checkerboard[peak] > 15
    for row in (converted, control, repaired):
        assert row.checkerboard[peak] < before.checkerboard[peak] - 8 and row.psnr_to_original > 28
    assert json.loads((tmp_path / "out" / "results.json").read_text())[1]["name"] == "iPixelDCL"
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 10_000
    loaded = pixelize.load(tmp_path / "out" / "model", into=FaceGenerator()).eval()
    assert len(pixelize.report(loaded).converted) == 4
    assert all(len(line) <= 80 for line in text.getvalue().splitlines())
    assert "stride 1 does not up-sample" in text.getvalue()


def test_notch_removes_the_pattern_and_nothing_else():
    rows, columns = torch.arange(48.0)[:, None], torch.arange(32.0)
    smooth = torch.sin(rows / 7) + torch.cos(columns / 5)
    pattern = (-1) ** (rows + columns)
    picture = (smooth + 0.3 * pattern)[None, None]
    clean = notch(picture, depth={(0.5, 0.5): 1.0})
    assert (clean - smooth).abs().max() < 0.03 and (clean - smooth)[..., 4:-4, 4:-4].abs().max() < 0.002
    half = notch(picture, depth={(0.5, 0.5): 0.5})
    assert (half - smooth - 0.15 * pattern).abs().max() < 0.03
    assert torch.equal(notch(picture, depth={}), picture)
    with pytest.raises(pixelize.ArgumentError, match="between 0 and 1"):
        notch(picture, depth={(0.5, 0.5): 2.0})
    with pytest.raises(pixelize.ArgumentError, match="needs"):
        notch(picture[0], depth={(0.5, 0.5): 0.5})


def test_notch_of_a_period_with_complex_frequencies():
    rows, columns = torch.arange(45.0)[:, None], torch.arange(42.0)
    pattern = torch.cos(2 * torch.pi * (rows / 3 + 2 * columns / 3) + 0.4)
    picture = (pattern + 0.2)[None, None]
    depth = dict.fromkeys(pixelize.checkerboard(picture, 3)["global"], 1.0)
    left = (notch(picture, 3, depth=depth) - 0.2).abs()
    assert left[..., 4:-4, 4:-4].max() < 0.01 and left.max() < 0.4  # the edge is harder: bands overlap there


def test_clean_targets_are_natural_by_both_measures():
    torch.manual_seed(0)
    noise = torch.nn.functional.avg_pool2d(torch.randn(64, 1, 67, 67), 4, 1) * 4
    pattern = 0.5 * (-1) ** (torch.arange(64.0)[:, None] + torch.arange(64.0))
    found = pixelize.checkerboard(clean_target(noise + pattern))
    assert abs(found["global"][0.5, 0.5]) < 4 and found["worst"] < 4
