"""Who sees whom in packed tree rows: whole, as a matrix, and in pieces that leave out what no token may see.

A token sees its own branch up to itself and, of its own tree's trunk, what stands before its branch point. Sliding
layers see of that only what is less than a window away, counted in positions, not in row indices.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esupport.rendering.row import Row


class Piece(NamedTuple):
    """Adjacent tokens that see the same beginning of one trunk: a trunk itself, or branches from one point of it.

    Attributes:
        trunk: where the tree's trunk begins in the batch.
        point: how many of its tokens these see; 0 for a trunk.
        first, end: the tokens, from ``first`` to before ``end``; they see of each other what their branch allows.
    """

    trunk: int
    point: int
    first: int
    end: int

    def keys(self, values: Tensor) -> Tensor:
        """What stands at the tokens that may be seen: (..., point + end - first, d) of (..., length, d)."""
        own = values[..., self.first : self.end, :]
        if not self.point:
            return own
        return torch.cat([values[..., self.trunk : self.trunk + self.point, :], own], dim=-2)

    def mask(self, branch: Tensor, positions: Tensor, window: int | None) -> Tensor | None:
        """(own, point + own) booleans of (length,) branches and positions; None where order alone decides."""
        own = slice(self.first, self.end)
        length = self.end - self.first
        if not self.point and (window is None or length <= window):
            return None
        order = torch.arange(length, device=branch.device)
        seen = (branch[own, None] == branch[None, own]) & (order[:, None] >= order[None, :])
        seen = torch.cat([seen.new_ones(length, self.point), seen], dim=1)
        if window is not None:
            at = self.keys(positions[:, None])[:, 0]
            seen &= positions[own, None] - at[None, :] < window
        return seen


def pieces(row: Row, start: int) -> Iterator[Piece]:
    """The pieces of a row that begins at ``start`` of a batch: its trunk, then its branches, by their points.

    Branches of one point share a piece, so that the trunk's keys are gathered once for them, as long as they are shorter
    together than the trunk before them: each is computed against all of the piece.
    """
    bounds = [0, *(np.flatnonzero(np.diff(row.branch) != 0) + 1), len(row)]
    first, end = 0, int(bounds[1])
    for _, later in itertools.pairwise(map(int, bounds[1:])):
        point = int(row.sees[first])
        if not point or row.sees[end] != point or later - first > point:
            yield Piece(start, point, start + first, start + end)
            first = end
        end = later
    yield Piece(start, int(row.sees[first]), start + first, start + end)


def visible(tree: Tensor, branch: Tensor, sees: Tensor, positions: Tensor, window: int | None) -> Tensor:
    """Which key each query sees: (length, length) booleans, query by key, of (length,) integers.

    ``tree`` tells the packed trees apart.
    """
    order = torch.arange(len(tree), device=tree.device)
    reach = torch.tensor(len(tree) if window is None else window, device=tree.device)
    return may_see(tree, branch, sees, positions, reach, order[:, None], order[None, :])


def may_see(tree: Tensor, branch: Tensor, sees: Tensor, positions: Tensor, reach: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Whether tokens ``query`` see tokens ``key``, numbers that broadcast: the rule that all else here and FlexAttention obey.

    ``reach`` is a window in positions, or more than any position where there is none.
    """
    trunk_before_branch_point = (branch[key] == 0) & (positions[key] < sees[query])
    seen = torch.where(branch[query] == branch[key], query >= key, trunk_before_branch_point)
    return (tree[query] == tree[key]) & seen & (positions[query] - positions[key] < reach)
