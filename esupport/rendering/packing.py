"""Tree rows packed into batches, and the plan of an epoch: which conversations make which optimizer step.

An optimizer step is a set of conversations. How they are packed, how many batches that takes (accumulation) and how
many ranks share them changes memory and time, never the loss: each batch knows the targets of the whole step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from esupport.rendering.row import Ints, Row


@dataclass  # not frozen: Lightning's precision plugins refuse frozen dataclasses
class Batch:
    """Packed rows as tensors.

    Attributes:
        ids, positions, tree, branch, sees: (rows, length) int64; ``tree`` is -1 on padding.
        targets: (n,) token ids to predict.
        parents: (n,) index into the flattened (rows * length) hidden states that predict them.
        response: (n,) which response of the batch each target belongs to.
        reference: (responses,) float32 log-probability of each response under the reference; nan where not measured.
        names: (responses) conversation of each response.
        step_targets: targets in the whole optimizer step, over batches and ranks: what a loss over tokens is divided by.
        step_responses: responses in it: what a loss over responses, or pairs of them, is divided by.
    """

    ids: Tensor
    positions: Tensor
    tree: Tensor
    branch: Tensor
    sees: Tensor
    targets: Tensor
    parents: Tensor
    response: Tensor
    reference: Tensor
    names: tuple[str, ...]
    step_targets: int
    step_responses: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on ``device``."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=non_blocking)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)


def pack(rows: Sequence[Row], tokens_per_batch: int, step: Sequence[Row] | None = None, pad_to: int = 8) -> list[Batch]:
    """Pack rows into batches of at most ``tokens_per_batch`` tokens, padding counted; one longer row goes alone.

    ``step`` are the rows of the whole optimizer step where ``rows`` are only a rank's share of them.

    Rows share a bin while it does not grow beyond the longest row (best fit), so packing trades no attention cost
    for padding. ``pad_to`` rounds bin lengths up.
    """
    bins = _best_fit(rows)
    whole = rows if step is None else step
    sizes = sum(len(row.targets) for row in whole), sum(row.responses for row in whole)
    batches, waiting = [], list(bins)
    while waiting:
        length = -(-sum(len(row) for row in waiting[0]) // pad_to) * pad_to
        count = max(1, tokens_per_batch // length)
        batches.append(_collate(waiting[:count], length, *sizes))
        waiting = waiting[count:]
    return batches


def _best_fit(rows: Sequence[Row]) -> list[list[Row]]:
    """Bins of rows, longest bin first, none longer than the longest row."""
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
    capacity = len(rows[order[0]]) if order else 0
    bins: list[tuple[int, list[Row]]] = []
    for index in order:
        row = rows[index]
        fitting = [i for i, (used, _) in enumerate(bins) if used + len(row) <= capacity]
        if fitting:
            best = max(fitting, key=lambda i: bins[i][0])
            bins[best] = (bins[best][0] + len(row), [*bins[best][1], row])
        else:
            bins.append((len(row), [row]))
    return [rows_ for _, rows_ in sorted(bins, key=lambda b: -b[0])]


def _collate(bins: Sequence[Sequence[Row]], length: int, step_targets: int, step_responses: int) -> Batch:
    shape = (len(bins), length)
    grids = {name: np.zeros(shape, dtype=np.int64) for name in ("ids", "positions", "branch", "sees")}
    trees = np.full(shape, -1, dtype=np.int64)
    targets, parents, responses, references = [], [], [], []
    names: list[str] = []
    placed = 0
    for number, members in enumerate(bins):
        start = 0
        for row in members:
            end = start + len(row)
            for name, grid in grids.items():
                grid[number, start:end] = getattr(row, name)
            trees[number, start:end] = placed
            targets.append(row.ids[row.targets])
            parents.append(row.parents + (number * length + start))
            responses.append(row.response + len(names))
            references.append(row.reference)
            names.extend([row.name] * row.responses)
            placed += 1
            start = end

    def flat(parts: list[Ints]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    return Batch(
        tree=torch.from_numpy(trees),
        targets=flat(targets),
        parents=flat(parents),
        response=flat(responses),
        reference=torch.from_numpy(np.concatenate(references)),
        names=tuple(names),
        step_targets=step_targets,
        step_responses=step_responses,
        **{name: torch.from_numpy(grid) for name, grid in grids.items()},
    )
