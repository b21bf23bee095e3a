"""Tree rows packed into batches: one flat row of tokens each, without padding.

An optimizer step is a set of conversations. How they are packed, how many batches that takes (accumulation) and how
many ranks share them changes memory and time, never the loss: each batch knows the targets of the whole step. A
conversation that is longer than a batch is one in parts, which share its trunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from esupport.rendering.mask import Piece, Who, pieces
from esupport.rendering.row import Row, split


@dataclass  # not frozen: Lightning's precision plugins refuse frozen dataclasses
class Batch:
    """Rows behind each other, as tensors.

    Attributes:
        ids, positions, tree, branch, sees: (length,) int64; ``tree`` is the number of the token's row.
        pieces: who sees whom, for attention that leaves out the rest.
        targets: (n,) token ids to predict.
        parents: (n,) index of the token whose hidden state predicts each.
        response: (n,) which response of the batch each target belongs to.
        reference: (responses,) float32 log-probability of each response under the reference; nan where not measured.
        names: (responses) conversation of each response.
        step_targets: targets in the whole optimizer step, over batches and ranks: what a loss over tokens is divided by.
        step_responses: responses in it: what a loss over responses, or pairs of them, is divided by.
        parts: where the batch is one row that is too long: its trunk without targets, then that trunk with some of the
            branches and targets, with the next ones, and so on. Empty where all is read in one piece.
    """

    ids: Tensor
    positions: Tensor
    tree: Tensor
    branch: Tensor
    sees: Tensor
    pieces: tuple[Piece, ...]
    targets: Tensor
    parents: Tensor
    response: Tensor
    reference: Tensor
    names: tuple[str, ...]
    step_targets: int
    step_responses: int
    parts: tuple[Batch, ...] = ()

    @property
    def who(self) -> Who:
        """What decides who sees whom."""
        return Who(self.tree, self.branch, self.sees, self.positions)

    def trunks_first(self) -> Batch:
        """The same tokens, those of all trunks before those of all branches."""
        order = (self.branch > 0).int().argsort(stable=True)
        place = order.argsort()
        tokens = {name: getattr(self, name)[order] for name in ("ids", "positions", "tree", "branch", "sees")}
        at = place.tolist()
        moved = tuple(Piece(at[p.trunk], p.point, at[p.first], at[p.end - 1] + 1) for p in self.pieces)
        return replace(self, pieces=moved, parents=place[self.parents], **tokens)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on ``device``."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=non_blocking)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **moved, parts=tuple(part.to(device, non_blocking) for part in self.parts))


def pack(rows: Sequence[Row], tokens_per_batch: int, step: tuple[int, int] | None = None) -> list[Batch]:
    """Pack rows into batches of at most ``tokens_per_batch`` tokens (best fit).

    A longer row is a batch in parts, with trunk and branches of as many tokens; a trunk that is longer stays whole.
    ``step`` are targets and responses of the whole optimizer step where ``rows`` are only a share of it: see :func:`sizes`.
    """
    whole = sizes(rows) if step is None else step
    return [_batch(members, tokens_per_batch, whole) for members in _best_fit(rows, tokens_per_batch)]


def sizes(rows: Sequence[Row]) -> tuple[int, int]:
    """Targets and responses of all rows."""
    return sum(len(row.targets) for row in rows), sum(row.responses for row in rows)


def _batch(rows: Sequence[Row], tokens_per_batch: int, step: tuple[int, int]) -> Batch:
    whole, parts = collate(rows, *step), split(rows[0], tokens_per_batch)  # a row that is longer stands alone
    if len(parts) == 1:
        return whole
    return replace(whole, parts=tuple(collate([part], *step) for part in (rows[0].beginning(rows[0].trunk), *parts)))


def _best_fit(rows: Sequence[Row], capacity: int) -> list[list[Row]]:
    """Bins of rows, the fullest first."""
    bins: list[tuple[int, list[Row]]] = []
    for row in sorted(rows, key=len, reverse=True):
        fitting = [i for i, (used, _) in enumerate(bins) if used + len(row) <= capacity]
        if fitting:
            best = max(fitting, key=lambda i: bins[i][0])
            bins[best] = (bins[best][0] + len(row), [*bins[best][1], row])
        else:
            bins.append((len(row), [row]))
    return [members for _, members in sorted(bins, key=lambda b: -b[0])]


def collate(rows: Sequence[Row], step_targets: int, step_responses: int) -> Batch:
    """One batch of ``rows``."""
    starts = np.cumsum([0, *map(len, rows)])[:-1].tolist()
    firsts = np.cumsum([0, *(row.responses for row in rows)])[:-1].tolist()

    def flat(parts: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    return Batch(
        ids=flat([row.ids for row in rows]),
        positions=flat([row.positions for row in rows]),
        tree=flat([np.full(len(row), number) for number, row in enumerate(rows)]),
        branch=flat([row.branch for row in rows]),
        sees=flat([row.sees for row in rows]),
        pieces=tuple(piece for row, start in zip(rows, starts, strict=True) for piece in pieces(row, start)),
        targets=flat([row.ids[row.targets] for row in rows]),
        parents=flat([row.parents + start for row, start in zip(rows, starts, strict=True)]),
        response=flat([row.response + first for row, first in zip(rows, firsts, strict=True)]),
        reference=torch.from_numpy(np.concatenate([row.reference for row in rows])),
        names=tuple(name for row in rows for name in [row.name] * row.responses),
        step_targets=step_targets,
        step_responses=step_responses,
    )
