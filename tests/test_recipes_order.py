"""Data order and noise are functions of (seed, step), however many processes share the work."""

from __future__ import annotations

import pytest

pytest.importorskip("accelerate")

import torch

from pixelize.recipes.training.order import StepBatches, noise, samples


def test_every_sample_comes_once_in_every_epoch() -> None:
    drawn = samples(3, 0, 21, 7)
    for epoch in range(3):
        assert sorted(i for e, i in drawn if e == epoch) == list(range(7))
    assert [i for e, i in drawn if e == 0] != [i for e, i in drawn if e == 1]


def test_processes_share_what_one_process_would_take() -> None:
    alone = list(StepBatches(10, 6, 0, 5, seed=1))
    parts = [list(StepBatches(10, 6, 0, 5, seed=1, rank=r, processes=3)) for r in range(3)]
    assert alone == [a + b + c for a, b, c in zip(*parts, strict=True)]


def test_a_later_start_takes_up_where_the_order_was_left() -> None:
    assert list(StepBatches(10, 4, 3, 9, seed=2)) == list(StepBatches(10, 4, 0, 9, seed=2))[3:]


def test_noise_belongs_to_the_step_and_is_cut_by_process() -> None:
    whole = noise((6, 3), seed=5, step=2)
    parts = [noise((2, 3), seed=5, step=2, rank=r, processes=3) for r in range(3)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, noise((6, 3), seed=5, step=3))
    assert not torch.equal(whole, noise((6, 3), seed=6, step=2))
