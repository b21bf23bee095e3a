"""Variety and length of replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from esupport.evaluation.metrics.base import Metric
from esupport.evaluation.replies import words
from esupport.evaluation.statistics import Indices, Sums, ratio
from esupport.reflection.wording import ngrams


@dataclass(frozen=True)
class Distinct:
    """Different n-grams over all n-grams of the replies together (Li et al. 2016).

    Attributes:
        reply, gram: each n-gram of each reply once, as numbers, (pairs,) each.
        total: n-grams of each reply, (replies,).
    """

    reply: Indices
    gram: Indices
    total: Indices
    repeats: bool = False

    def value(self, indices: Indices) -> float:
        """See ``statistics.Measure``."""
        total = int(self.total[indices].sum())
        if total == 0:
            return np.nan
        chosen = np.zeros(len(self.total), dtype=bool)
        chosen[indices] = True
        seen = np.zeros(int(self.gram.max()) + 1, dtype=bool)
        seen[self.gram[chosen[self.reply]]] = True
        return float(seen.sum() / total)


def distinct_of(replies: Sequence[Sequence[str]], n: int) -> Distinct:
    """Distinct-n of replies given as tokens."""
    numbers: dict[tuple[str, ...], int] = {}
    pairs, total = [], []
    for i, tokens in enumerate(replies):
        found = ngrams(tokens, n)
        total.append(len(found))
        pairs += [(i, numbers.setdefault(gram, len(numbers))) for gram in set(found)]
    table = np.array(pairs, dtype=np.intp).reshape(-1, 2)
    return Distinct(table[:, 0], table[:, 1], np.array(total, dtype=np.intp))


def distinct_n(replies: Sequence[str], n: int) -> float | None:
    """Distinct-n of all replies together, lower-cased words and marks; None where there are no n-grams.

    It falls as more replies are counted: compare only sets of as many replies.
    """
    value = distinct_of([words(text) for text in replies], n).value(np.arange(len(replies)))
    return None if np.isnan(value) else value


def distinct(replies: Sequence[str]) -> list[Metric]:
    """Distinct-1 to Distinct-3."""
    tokens = [words(text) for text in replies]
    text = "Different {n}-grams over all {n}-grams of all replies, lower-cased words and marks; compare sets of one size only."
    return [Metric(f"distinct_{n}", text.format(n=n), distinct_of(tokens, n), True) for n in (1, 2, 3)]


def length(replies: Sequence[str], tokens: Sequence[int | None] | None) -> list[Metric]:
    """Mean length in words, and in the model's tokens where they are known."""
    counts = [len(words(text)) for text in replies]
    found = [Metric("words", "Mean number of words and punctuation marks, empty replies counted.", count_mean(counts), True)]
    if tokens is not None:
        text = "Mean number of the model's own tokens, over the replies where it is known."
        found.append(Metric("tokens", text, count_mean(tokens), True))
    return found


def count_mean(counts: Sequence[float | None]) -> Sums:
    """The mean of the counts that are known; unlike other means, it is there where every reply is empty."""
    table = [(0.0, 0.0) if count is None else (float(count), 1.0) for count in counts]
    return Sums(np.array(table).reshape(-1, 2), ratio)
