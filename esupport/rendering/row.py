r"""The tree row: a conversation's trunk and, hanging off it, the branches that differ from it.

    trunk    system | seeker | supporter | seeker | supporter | seeker ...
                             \                    \
    branches                  draft, refined       draft, refined

A response whose context and completion the trunk contains is scored on the trunk. Any other becomes a branch at the
longest common prefix of trunk and context; the rest of its context goes into the branch, unscored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from esupport.rendering.template import Response

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """Trunk and branches of one conversation as parallel arrays.

    Attributes:
        name: the conversation's id, for messages.
        ids: (length,) token ids, trunk first, then branch after branch.
        positions: (length,) position of each token in its own response; restarts at a branch point.
        branch: (length,) 0 on the trunk, k on the k-th branch.
        sees: (length,) how many trunk tokens a branch token may see; 0 on the trunk, where order decides.
        targets: (n,) index of each target token.
        parents: (n,) index of the token whose hidden state predicts that target.
        response: (n,) which response, in the order given, the target belongs to.
        responses: how many there are.
        reference: (responses,) log-probability of each under the reference; nan where it was not measured.
        branches: responses that became branches.
    """

    name: str
    ids: Ints
    positions: Ints
    branch: Ints
    sees: Ints
    targets: Ints
    parents: Ints
    response: Ints
    responses: int
    reference: Floats
    branches: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def naive_tokens(self) -> int:
        """Tokens of one row per response: what the tree row saves against."""
        last = np.flatnonzero(np.diff(self.response, append=-1) != 0)  # of each response's targets, which stand together
        return int((self.positions[self.targets[last]] + 1).sum())

    @property
    def trunk(self) -> int:
        """How many tokens stand on the trunk."""
        return int((self.branch == 0).sum())

    def beginning(self, tokens: int) -> Row:
        """The first ``tokens`` of the trunk, with nothing to score."""
        first = {name: getattr(self, name)[:tokens] for name in ("ids", "positions", "branch", "sees")}
        empty = {name: getattr(self, name)[:0] for name in ("targets", "parents", "response", "reference")}
        return replace(self, responses=0, branches=0, **first, **empty)


def grow(name: str, trunk: Sequence[int], responses: Sequence[Response]) -> Row:
    """Hang ``responses`` on ``trunk``. Each must share at least one token with it (see :func:`tree`).

    Raises:
        ValueError: a response shares nothing with the trunk, or there is nothing to score.
    """
    trunk_ids = tuple(trunk)
    ids, positions = [list(trunk_ids)], [list(range(len(trunk_ids)))]
    branch, sees = [[0] * len(trunk_ids)], [[0] * len(trunk_ids)]
    targets: list[int] = []
    parents: list[int] = []
    scored: list[int] = []
    length, branches = len(trunk_ids), 0
    for index, response in enumerate(responses):
        context, count = len(response.context), len(response.completion)
        if trunk_ids[: context + count] == response.ids:
            first, before = context, context - 1
        else:
            point = common_prefix(trunk_ids, response.context)
            if point == 0:
                raise ValueError(f"{name}: response {index} shares no token with the trunk")
            grown = response.ids[point:]
            branches += 1
            ids.append(list(grown))
            positions.append(list(range(point, point + len(grown))))
            branch.append([branches] * len(grown))
            sees.append([point] * len(grown))
            first = length + context - point
            before = first - 1 if context > point else point - 1
            length += len(grown)
        targets.extend(range(first, first + count))
        parents.extend([before, *range(first, first + count - 1)])
        scored.extend([index] * count)
    if not targets:
        raise ValueError(f"{name}: nothing to score")
    return Row(
        name=name,
        ids=_ints(chain.from_iterable(ids)),
        positions=_ints(chain.from_iterable(positions)),
        branch=_ints(chain.from_iterable(branch)),
        sees=_ints(chain.from_iterable(sees)),
        targets=_ints(targets),
        parents=_ints(parents),
        response=_ints(scored),
        responses=len(responses),
        reference=np.full(len(responses), np.nan, dtype=np.float32),
        branches=branches,
    )


def tree(name: str, responses: Sequence[Response]) -> list[Row]:
    """Rows for the responses of one conversation: one, unless some contexts begin otherwise than the last one.

    The last response (context and completion) is the trunk. What shares less than half its context with it (the instruction
    alone, where the context is cut elsewhere) has a tree of its own: on branches both of a pair would read the rest anew.
    """
    rows: list[Row] = []
    left = list(responses)
    while left:
        trunk = left[-1].ids
        shared = [2 * common_prefix(trunk, r.context) >= len(r.context) for r in left]
        rows.append(grow(name, trunk, [r for r, here in zip(left, shared, strict=True) if here]))
        left = [r for r, here in zip(left, shared, strict=True) if not here]
    return rows


def split(row: Row, capacity: int) -> list[Row]:
    """The row where it has at most ``capacity`` tokens; else its trunk with some of the branches, with some others, and so on.

    A part has ``capacity`` tokens at most, or a trunk and a quarter of that: a trunk is never cut, and beside a long one many
    small passes would save little. Responses to one context stay together, so theirs may be more.
    """
    parts: list[list[int]] = [[]]
    room, used = max(capacity - row.trunk, capacity // 4), 0
    for group in _of_one_context(row) if len(row) > capacity else ():
        own = int(_branches_of(row, group).sum())
        if own and used and used + own > room:  # what lies on the trunk goes along with some branch
            parts.append([])
            used = 0
        parts[-1] += group
        used += own
    return [row] if len(parts) == 1 else [_part(row, part) for part in parts]


def _of_one_context(row: Row) -> list[list[int]]:
    """Adjacent responses whose completions begin at one position: those to one context, as a chosen and its rejected."""
    starts = row.positions[row.targets[np.flatnonzero(np.diff(row.response, prepend=-1) != 0)]]
    bounds = [0, *(np.flatnonzero(np.diff(starts) != 0) + 1), row.responses]
    return [list(range(first, end)) for first, end in pairwise(map(int, bounds))]


def _branches_of(row: Row, responses: Sequence[int]) -> NDArray[np.bool_]:
    """(length,) whether a token stands on a branch of these responses."""
    targets = row.targets[np.isin(row.response, responses)]
    return np.isin(row.branch, row.branch[targets]) & (row.branch > 0)


def _part(row: Row, responses: Sequence[int]) -> Row:
    kept, scored = np.flatnonzero(_branches_of(row, responses) | (row.branch == 0)), np.isin(row.response, responses)
    moved = np.full(len(row), -1, dtype=np.int32)
    moved[kept] = np.arange(len(kept))
    return replace(
        row,
        ids=row.ids[kept],
        positions=row.positions[kept],
        branch=row.branch[kept],
        sees=row.sees[kept],
        targets=moved[row.targets[scored]],
        parents=moved[row.parents[scored]],
        response=row.response[scored] - responses[0],
        responses=len(responses),
        reference=row.reference[list(responses)],
        branches=len(np.unique(row.branch[kept])) - 1,
    )


def common_prefix(one: Sequence[int], two: Sequence[int]) -> int:
    """How many leading ids two sequences share."""
    count = 0
    for a, b in zip(one, two, strict=False):
        if a != b:
            break
        count += 1
    return count


def _ints(values: Iterable[int]) -> Ints:
    return np.fromiter(values, dtype=np.int32)
