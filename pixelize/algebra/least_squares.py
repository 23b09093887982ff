"""Streamed normal equations: least squares whose memory does not depend on how many rows it sees, the ridge
chosen on held-back rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pixelize.rewrites.state.precision import float64, zeros64

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""The ridges tried, each times the mean of the Gram matrix's diagonal."""
DEFAULT_RIDGE = 1e-3
FAVOUR = 100.0
"""How heavy rows are that a solution should satisfy."""


class NormalEquations:
    """Sums of ``X'X``, ``X'Y`` and ``|Y|^2`` over rows, for several independent problems (groups) at once.

    Every call of :meth:`add` goes either to the sums that are solved or to those held back, on which the
    ridge is chosen. What is kept is 2 groups (n^2 + n m) numbers in float64 for n features and m targets.
    """

    def __init__(self, groups: int, features: int, targets: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return zeros64(shape, device)

        self.gram, self.held_gram = (zeros(groups, features, features) for _ in range(2))
        self.cross, self.held_cross = (zeros(groups, features, targets) for _ in range(2))
        self.held_power = zeros(groups)
        self.rows = self.held_rows = 0

    def add(self, features: Tensor, targets: Tensor, *, held: bool) -> None:
        """Takes in rows: features (groups, rows, n), targets (groups, rows, m)."""
        gram, cross = (self.held_gram, self.held_cross) if held else (self.gram, self.cross)
        if features.dtype.itemsize < 4:  # half precision would lose the sums
            features, targets = features.float(), targets.float()
        transposed = features.transpose(-1, -2)
        gram += (transposed @ features).to(gram.device)
        cross += (transposed @ targets).to(cross.device)
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
        weight = FAVOUR * mean_power(self.gram)[:, None, None]
        held = self._solve(self.gram + weight * (rows.T @ rows), self.cross + weight * (rows.T @ targets))
        cheap = self.held_rows and self.held_error(held) <= allowed_cost**2 * self.held_error(free)
        return held if cheap else free

    def _solve(self, gram: Tensor, cross: Tensor) -> Tensor:
        power = mean_power(self.gram)
        if self.held_rows == 0:
            solution = solve_ridge(gram, cross, DEFAULT_RIDGE * power)
            return torch.zeros_like(cross) if solution is None else solution
        best, least = torch.zeros_like(cross), float("inf")
        # errors fall, then rise with the ridge: walk from the middle, in the direction in which they fall
        start = RIDGES.index(DEFAULT_RIDGE)
        for direction in (RIDGES[start:], RIDGES[start - 1 :: -1]):
            for ridge in direction:
                solution = solve_ridge(gram, cross, ridge * power)
                error = float("inf") if solution is None else self.held_error(solution)
                if solution is None or not error < least:
                    break
                best, least = solution, error
        return best

    def held_error(self, solution: Tensor) -> float:
        """The squared error of a solution, summed over the held-back rows."""
        fitted = (solution * (self.held_gram @ solution)).sum()
        return float(self.held_power.sum() - 2 * (solution * self.held_cross).sum() + fitted)


def solve_ridge(gram: Tensor, right: Tensor, ridge: Tensor, *, overwrite: bool = False) -> Tensor | None:
    """Solves ``(gram + ridge * I) x = right`` for each group: gram (..., n, n), right (..., n, m), ridge
    (...).

    None where that matrix is not positive definite in this precision: the ridge is too small for it.
    ``overwrite``: gram is factored where it lies, and is of no use afterwards; contiguous, so that no second
    matrix of its size is needed.
    """
    whole = gram if overwrite else gram.clone(memory_format=torch.contiguous_format)
    factor = whole.mT  # symmetric, so that this is its copy, in the order in which it can be factored
    factor.diagonal(0, -2, -1).add_(ridge[..., None] + torch.finfo(gram.dtype).tiny)
    info = torch.empty(gram.shape[:-2], dtype=torch.int32, device=gram.device)
    torch.linalg.cholesky_ex(factor, out=(factor, info))
    if int(info.max()) != 0:
        return None
    # torch.cholesky_solve would copy the factor
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def inverse_root(moments: Tensor, ridge: float, floor: float) -> Tensor:
    """L^-T of ``moments = L L^T`` (..., n, n), with ``ridge`` times the mean diagonal and ``floor`` added to
    their diagonal first. D = L^-T U changes what features of these second moments make by |U|^2 in the mean
    square.
    """
    loaded = moments.clone()
    loaded.diagonal(0, -2, -1).add_(ridge * mean_power(moments)[..., None] + floor)
    eye = torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device)
    root = torch.linalg.cholesky(loaded)
    return torch.linalg.solve_triangular(root.mT, eye.expand_as(root), upper=True)


def mean_power(gram: Tensor) -> Tensor:
    """The mean of each group's diagonal, the unit of a ridge: (...)."""
    return gram.diagonal(0, -2, -1).mean(-1)
