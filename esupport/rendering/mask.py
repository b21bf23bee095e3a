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

    def mask(self, who: Who, window: int | None) -> Tensor | None:
        """(own, point + own) booleans; None where order alone decides."""
        if not self.point and (window is None or self.end - self.first <= window):
            return None
        own = torch.arange(self.first, self.end)
        keys = torch.cat([torch.arange(self.trunk, self.trunk + self.point), own])
        return may_see(*who, reach(who, window), own[:, None], keys)


class Who(NamedTuple):
    """Of each token, (length,): its row's number, branch, how much of the trunk it sees, and its position."""

    tree: Tensor
    branch: Tensor
    sees: Tensor
    positions: Tensor


def may_see(tree: Tensor, branch: Tensor, sees: Tensor, positions: Tensor, reach: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Whether tokens ``query`` see tokens ``key``, numbers that broadcast: what all else here and FlexAttention obey."""
    trunk_before_branch_point = (branch[key] == 0) & (positions[key] < sees[query])
    seen = torch.where(branch[query] == branch[key], query >= key, trunk_before_branch_point)
    return (tree[query] == tree[key]) & seen & (positions[query] - positions[key] < reach)


def reach(who: Who, window: int | None) -> Tensor:
    """A window in positions, or more than any where there is none; as a tensor, since a number would be compiled in."""
    return torch.tensor(len(who.tree) if window is None else window, device=who.tree.device)


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
