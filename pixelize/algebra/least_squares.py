"""Streamed normal equations: least squares whose memory does not depend on how many rows it sees, the ridge
chosen on held-back rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pixelize.algebra.symmetric import Symmetric
from pixelize.rewrites.state.precision import float64, zeros64

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""The ridges tried, each times the mean of the Gram matrix's diagonal."""
DEFAULT_RIDGE = 1e-3
FAVOUR = 100.0
"""How heavy rows are that a solution should satisfy."""


class NormalEquations:
    """Sums of ``X'X``, ``X'Y`` and ``|Y|^2`` over rows, for several independent problems (groups) at once.

    Every call of :meth:`add` goes either to the sums that are solved or to those held back, on which the
    ridge is chosen. What is kept is about groups (n^2 + 2 n m) numbers in float64 for n features and m
    targets, and half as much again while they are solved.
    """

    def __init__(self, groups: int, features: int, targets: int, device: torch.device) -> None:
        cross = zeros64((groups, features, targets), device)
        self.cross, self.held_cross = cross, torch.zeros_like(cross)
        self.gram, self.held_gram = (Symmetric(groups, features, cross.dtype, cross.device) for _ in range(2))
        self.held_power = cross.new_zeros(groups)
        self.rows = self.held_rows = 0

    def add(self, features: Tensor, targets: Tensor, *, held: bool) -> None:
        """Takes in rows: features (groups, rows, n), targets (groups, rows, m)."""
        gram, cross = (self.held_gram, self.held_cross) if held else (self.gram, self.cross)
        if features.dtype.itemsize < 4:  # half precision would lose the sums
            features, targets = features.float(), targets.float()
        gram.add_products(features)
        cross += (features.mT @ targets).to(cross.device)
        if held:
            self.held_power += float64(targets).square().sum((-1, -2))
            self.held_rows += features.shape[-2]
        else:
            self.rows += features.shape[-2]

    def solve(self) -> Tensor:
        """The solution (groups, n, m) with the ridge that is best on the held-back rows; ``DEFAULT_RIDGE``
        where none were held back.
        """
        return self._solve(self.gram, self.cross)

    def solve_favouring(self, rows: Tensor, targets: Tensor, *, allowed_cost: float) -> Tensor:
        """As :meth:`solve`, but satisfying rows (r, n) with targets (r, m) too, where that costs at most
        ``allowed_cost`` times the error.

        The rows are as heavy as ``FAVOUR`` times the mean feature's whole sum, and the same in every group.
        """
        free = self.solve()
        weight = FAVOUR * self.gram.mean_power()[:, None, None]
        heavier = self.gram.clone()
        heavier.add_products(rows, weight)
        held = self._solve(heavier, self.cross + weight * (rows.T @ targets))
        cheap = self.held_rows and self.held_error(held) <= allowed_cost**2 * self.held_error(free)
        return held if cheap else free

    def _solve(self, gram: Symmetric, cross: Tensor) -> Tensor:
        power = self.gram.mean_power()

        def solved(ridge: float) -> Tensor | None:
            factored, solution = gram.clone(), cross.clone()
            if not factored.factor(ridge * power):
                return None
            factored.solve(solution)
            return solution

        if self.held_rows == 0:
            solution = solved(DEFAULT_RIDGE)
            return torch.zeros_like(cross) if solution is None else solution
        best, least = torch.zeros_like(cross), float("inf")
        # errors fall, then rise with the ridge: walk from the middle, in the direction in which they fall
        start = RIDGES.index(DEFAULT_RIDGE)
        for direction in (RIDGES[start:], RIDGES[start - 1 :: -1]):
            for ridge in direction:
                solution = solved(ridge)
                error = float("inf") if solution is None else self.held_error(solution)
                if solution is None or not error < least:
                    break
                best, least = solution, error
        return best

    def held_error(self, solution: Tensor) -> float:
        """The squared error of a solution, summed over the held-back rows."""
        fitted = (solution * (self.held_gram.times(solution) - 2 * self.held_cross)).sum()
        return float(self.held_power.sum() + fitted)


def inverse_root(moments: Tensor, ridge: float, floor: float) -> Tensor:
    """L^-T of ``moments = L L^T`` (..., n, n), with ``ridge`` times the mean diagonal and ``floor`` added to
    their diagonal first. D = L^-T U changes what features of these second moments make by |U|^2 in the mean
    square.
    """
    loaded = moments.clone()
    loaded.diagonal(0, -2, -1).add_(ridge * moments.diagonal(0, -2, -1).mean(-1)[..., None] + floor)
    eye = torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device)
    root = torch.linalg.cholesky(loaded)
    return torch.linalg.solve_triangular(root.mT, eye.expand_as(root), upper=True)
