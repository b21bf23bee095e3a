"""Likelihood of replies per token, with an interval over conversations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from esupport.evaluation.statistics import Floats, Sums, interval, ratio
from esupport.rendering.row import Floats as FloatsOfRow
from esupport.rendering.row import Row


def per_conversation(units: Sequence[Sequence[Row]], scores: Sequence[FloatsOfRow]) -> tuple[Floats, Floats]:
    """Summed log-probability and number of target tokens of each conversation, (conversations,) each.

    Args:
        units: the rows of each conversation.
        scores: of each row, one a response.
    """
    left = iter(scores)
    sums, counts = [], []
    for unit in units:
        sums.append(sum(float(next(left).sum()) for _ in unit))
        counts.append(sum(len(row.targets) for row in unit))
    return np.array(sums), np.array(counts, dtype=float)


def nll_of(sums: Floats, counts: Floats) -> Sums:
    """Negative log-likelihood per token, over all tokens together."""
    return Sums(np.stack([-sums, counts], 1), ratio)


def perplexity_of(sums: Floats, counts: Floats) -> Sums:
    """Its exponential."""
    return Sums(np.stack([-sums, counts], 1), lambda drawn: np.exp(ratio(drawn)))


def nll(sums: Floats, counts: Floats) -> tuple[float, tuple[float, float]]:
    """Negative log-likelihood per token, and its 95 % interval over conversations (``statistics.interval``)."""
    found = interval(nll_of(sums, counts), np.arange(len(sums)), range(len(sums)))
    return found.value, (found.low, found.high)
