"""Likelihood of replies per token, with an interval over conversations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from esupport.rendering.row import Floats, Row

_DRAWS = 2000


def per_conversation(units: Sequence[Sequence[Row]], scores: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Summed log-probability and number of target tokens of each conversation, (conversations,) each."""
    left = iter(scores)
    sums, counts = [], []
    for unit in units:
        sums.append(sum(float(next(left).sum()) for _ in unit))
        counts.append(sum(len(row.targets) for row in unit))
    return np.array(sums), np.array(counts, dtype=float)


def nll(sums: Floats, counts: Floats, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """Negative log-likelihood per token, and its 95 % bootstrap interval over conversations (percentile, 2,000 draws)."""
    draws = np.random.default_rng(seed).integers(0, len(sums), (_DRAWS, len(sums)))
    values = -sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.quantile(values, (0.025, 0.975))
    return float(-sums.sum() / counts.sum()), (float(low), float(high))
