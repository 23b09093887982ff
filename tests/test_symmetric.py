"""Symmetric matrices kept by half, against the whole ones."""

import pytest
import torch

from pixelize.algebra import symmetric
from pixelize.algebra.symmetric import Symmetric


@pytest.mark.parametrize("groups, size, block", [(1, 1, 1), (3, 7, 1), (2, 23, 1), (1, 30, 3), (2, 24, 24)])
def test_half_of_a_matrix_does_what_the_whole_does(groups, size, block, monkeypatch):
    monkeypatch.setattr(symmetric, "PANEL", 7)  # so that small matrices have several panels
    rows = torch.randn(groups, size + 5, size, dtype=torch.float64)
    right = torch.randn(groups, size, 4, dtype=torch.float64)
    whole = rows.mT @ rows
    half = Symmetric(groups, size, torch.float64, torch.device("cpu"), block)
    half.add_products(rows)
    assert torch.allclose(half.mean_power(), whole.diagonal(0, -2, -1).mean(-1))
    assert torch.allclose(half.times(right), whole @ right)
    for i in range(0, size, block):  # twice as much, block by block
        for j in range(0, i + 1, block):
            half.add_block(i, j, whole[:, i : i + block, j : j + block])
    assert torch.allclose(half.times(right), 2 * whole @ right)
    kept, ridge = half.clone(), torch.linspace(0.1, 1.0, groups, dtype=torch.float64)
    loaded = 2 * whole + ridge[:, None, None] * torch.eye(size, dtype=torch.float64)
    found = right.clone()
    assert half.factor(ridge)
    assert torch.allclose(half.solve(found), (right * torch.linalg.solve(loaded, right)).sum((-1, -2)))
    assert torch.allclose(loaded @ found, right)
    assert torch.allclose(kept.times(right), 2 * whole @ right)  # a clone is one's own
    assert not kept.factor(-2.5 * kept.mean_power())  # a trace below zero


def test_half_of_a_matrix_takes_half_of_the_memory():
    half = Symmetric(1, 4096, torch.float32, torch.device("cpu"))
    assert sum(panel.nbytes for panel in half.panels) < 0.6 * 4096 * 4096 * 4
