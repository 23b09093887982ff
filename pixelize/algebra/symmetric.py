"""Symmetric matrices of which half is kept: the normal equations of thousands of features are the largest
thing that a fit holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

PANEL = 512
"""How many columns are kept, and factored, at once; about as many where blocks are to stay whole."""


class Symmetric:
    """Symmetric matrices A, one for each group, of n rows each; zero at first.

    Kept are panels of columns, each from its diagonal downwards. What lies above the diagonal within a panel
    is of no meaning. :meth:`factor` and :meth:`solve` work where the numbers lie, so that a system takes the
    memory of half a matrix and of its right-hand sides.
    """

    def __init__(
        self, groups: int, size: int, dtype: torch.dtype, device: torch.device, block: int = 1
    ) -> None:
        self.size, self._block = size, block
        step = block * max(1, PANEL // block)  # a block lies in one panel
        self.starts = list(range(0, size, step))
        shapes = [(groups, size - start, min(step, size - start)) for start in self.starts]
        self._numbers = torch.zeros(sum(map(prod, shapes)), dtype=dtype, device=device)
        parts = self._numbers.split([prod(shape) for shape in shapes])
        self.panels = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def clone(self) -> Symmetric:
        """The same matrices in memory of their own."""
        new = Symmetric(
            len(self.panels[0]), self.size, self._numbers.dtype, self._numbers.device, self._block
        )
        new._numbers.copy_(self._numbers)
        return new

    def add_block(self, row: int, column: int, values: Tensor) -> None:
        """Adds ``values`` (groups, r, c) at rows from ``row`` and columns from ``column``, which is not to
        the right of it; what they say right of the diagonal counts for nothing. The columns lie in one panel.
        """
        step = self.panels[0].shape[-1]
        start, panel = self.starts[column // step], self.panels[column // step]
        here = panel[:, row - start :, column - start :]
        here[:, : values.shape[-2], : values.shape[-1]] += values

    def add_products(self, rows: Tensor, weight: Tensor | float = 1.0) -> None:
        """Adds ``weight * rows^T rows``: rows (..., r, n), the same for all groups or each group's own;
        weight a number or (groups, 1, 1). Products are made in the type of the rows.
        """
        for start, panel in self._parts():
            product = rows[..., start:].mT @ rows[..., start : start + panel.shape[-1]]
            panel += weight * product.to(panel.device)

    def mean_power(self) -> Tensor:
        """The mean of each group's diagonal, the unit of a ridge: (groups,)."""
        return torch.cat([panel.diagonal(0, -2, -1) for panel in self.panels], -1).mean(-1)

    def times(self, right: Tensor) -> Tensor:
        """A @ right: (groups, n, m)."""
        result = torch.zeros_like(right)
        for start, panel in self._parts():
            end = start + panel.shape[-1]
            square, below = panel[:, : end - start], panel[:, end - start :]
            result[:, start:end] += (square.tril() + square.tril(-1).mT) @ right[:, start:end]
            result[:, start:end] += below.mT @ right[:, end:]
            result[:, end:] += below @ right[:, start:end]
        return result

    def factor(self, ridge: Tensor) -> bool:
        """Overwrites A by the lower L of ``A + ridge * I = L L^T``, ridge (groups,).

        False where that is not positive definite in this precision, the ridge being too small for it: what is
        left is then of no use.
        """
        for number, (start, panel) in enumerate(self._parts()):
            width = panel.shape[-1]
            square, below = panel[:, :width], panel[:, width:]
            square.diagonal(0, -2, -1).add_(ridge[:, None] + torch.finfo(panel.dtype).tiny)
            factor, info = torch.linalg.cholesky_ex(square)
            if int(info.max()) != 0:
                return False
            square.copy_(factor)
            below.copy_(torch.linalg.solve_triangular(factor.mT, below, upper=True, left=False))
            for later, other in zip(self.starts[number + 1 :], self.panels[number + 1 :], strict=True):
                rows = below[:, later - start - width :]
                other.baddbmm_(rows, rows[:, : other.shape[-1]].mT, alpha=-1)
        return True

    def solve(self, right: Tensor) -> Tensor:
        """Overwrites ``right`` (groups, n, m) by ``A^-1 right``, :meth:`factor` having been called; returns
        ``tr(right^T A^-1 right)`` of each group.
        """
        for start, panel in self._parts():
            end = start + panel.shape[-1]
            here = right[:, start:end]
            here.copy_(torch.linalg.solve_triangular(panel[:, : end - start], here, upper=False))
            right[:, end:].baddbmm_(panel[:, end - start :], here, alpha=-1)
        explained = squares(right)
        for start, panel in reversed(list(self._parts())):
            end = start + panel.shape[-1]
            here = right[:, start:end]
            here.baddbmm_(panel[:, end - start :].mT, right[:, end:], alpha=-1)
            here.copy_(torch.linalg.solve_triangular(panel[:, : end - start].mT, here, upper=True))
        return explained

    def _parts(self) -> Iterator[tuple[int, Tensor]]:
        return zip(self.starts, self.panels, strict=True)


def squares(matrices: Tensor) -> Tensor:
    """The sum of squares of each matrix (groups, n, m): (groups,). Makes no copy."""
    return torch.linalg.vector_norm(matrices, dim=(-2, -1)) ** 2
