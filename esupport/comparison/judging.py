"""A judge's part: what it costs, what it says of the replies, and the figures that follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from rich.console import Console

from esupport.comparison.figures import Figure, plain, shares
from esupport.data.conversation import Conversation
from esupport.errors import UserError
from esupport.evaluation.answered import Answered
from esupport.evaluation.judge.asking import Asker, Item
from esupport.evaluation.judge.method import Judge
from esupport.evaluation.judge.records import Comparison, Rating, counts
from esupport.evaluation.judge.verdicts import compare, rate, swap
from esupport.evaluation.judge.winrate import length_controlled, measured
from esupport.evaluation.statistics import Floats, Indices, Sums, interval, ratio
from esupport.store import Store

Answers = Mapping[str, Sequence[Answered]]
_DRAWS = 500  # of a length-controlled rate's bootstrap, each of which is a fit


@dataclass
class Judged:
    """What a judge gave.

    Attributes:
        pairs: comparisons of each two systems that replied to the same contexts.
        swaps: of each system, the swap test.
        ratings: of each system, in the order of its replies.
        cost: for ``metrics.json``.
    """

    pairs: dict[tuple[str, str], list[Comparison]] = field(default_factory=dict)
    swaps: dict[str, list[Comparison]] = field(default_factory=dict)
    ratings: dict[str, list[Rating]] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)

    def records(self) -> list[dict[str, Any]]:
        """The lines of ``judged.jsonl``."""
        parts: list[tuple[dict[str, str], Sequence[Comparison | Rating]]] = [
            *(({"what": "pairwise"}, found) for found in self.pairs.values()),
            *(({"what": "swap", "system": name}, found) for name, found in self.swaps.items()),
            *(({"what": "rating"}, found) for found in self.ratings.values()),
        ]
        return [{**said, **one.model_dump()} for said, found in parts for one in found]


def judge_all(
    judge: Judge, store: Store, answered: Answers, people: Mapping[str, Conversation], most_tokens: int, console: Console
) -> Judged:
    """Ask for everything, the cost shown first.

    Args:
        judge: with a complete generator.
        store: where its answers are kept.
        answered: replies by system.
        people: conversations by id, also those that are only the other person of a swap test.
        most_tokens: prompt tokens beyond which nothing is sent.
        console: for the cost and the progress.

    Raises:
        UserError: it would cost more than ``most_tokens``, or the judge cannot be reached.
    """
    asker = Asker(judge, store, console)
    both = [pair for pair in combinations(answered, 2) if _same_contexts(answered, *pair)]
    pairs = {(one, two): compare(judge, list(zip(answered[two], answered[one], strict=True)), people) for one, two in both}
    swaps = {name: swap(judge, replies, people) for name, replies in answered.items()}
    ratings = {name: rate(judge, replies, people) for name, replies in answered.items()}
    items: list[Item[Any]] = [item for group in (pairs, swaps, ratings) for part in group.values() for item in part]
    cost = asker.cost(items)
    about = "about " if cost.estimated else ""
    console.print(
        f"Judge: {cost.requests:,} requests, {about}{cost.prompt_tokens:,} prompt tokens, at most {cost.new_tokens:,} new; "
        f"{cost.kept:,} requests are answered already. Retries come on top.",
        markup=False,
        highlight=False,
    )
    if cost.prompt_tokens > most_tokens:
        raise UserError(
            f"judge_limit: the judge would read {about}{cost.prompt_tokens:,} tokens, more than {most_tokens:,}; take fewer "
            f"contexts or systems, or judge_limit={cost.prompt_tokens}"
        )
    settled = iter(asker.settle(items))  # all at once: one stage
    return Judged(
        pairs={(two, one): [next(settled) for _ in found] for (one, two), found in pairs.items()},
        swaps={name: [next(settled) for _ in found] for name, found in swaps.items()},
        ratings={name: [next(settled) for _ in found] for name, found in ratings.items()},
        cost={"name": judge.speaker.name, **asdict(cost)},
    )


def _same_contexts(answered: Answers, one: str, two: str) -> bool:
    return [a.context for a in answered[one]] == [a.context for a in answered[two]]


def judged_figures(judged: Judged, judge: Judge) -> list[Figure]:
    """Mean ratings by axis, the share without one, and the swap test."""
    clusters = {name: [one.conversation for one in found] for name, found in judged.ratings.items()}
    figures = []
    for axis, question in judge.asked_axes.items():
        marks = {name: [one.scores.get(axis) for one in found] for name, found in judged.ratings.items()}
        text = f"Mean rating by the judge, 1 to 5. {question}"
        figures.append(Figure.of(f"judge_{axis}", text, shares(marks), clusters))
    refused = {name: [float(one.status != "rated") for one in found] for name, found in judged.ratings.items()}
    text = "Share of replies whose rating the judge refused or left incomplete."
    figures.append(Figure.of("judge_refused", text, shares(refused), clusters))
    if any(judged.swaps.values()):
        clusters = {name: [one.conversation for one in found] for name, found in judged.swaps.items()}
        scores = {name: [one.score for one in found] for name, found in judged.swaps.items()}
        text = (
            "Swap test: share of replies that the judge finds to fit their own person better than another one in the same "
            "situation, both orders; chance is 0.5."
        )
        figures.append(Figure.of("judge_swap", text, shares(scores), clusters))
    return figures


def win_rates(judged: Judged, seed: int) -> list[dict[str, Any]]:
    """Counts, raw and length-controlled rate of the first of each two systems."""
    found = []
    for (one, two), comparisons in judged.pairs.items():
        clusters, scores, longer = measured(comparisons)
        units = np.arange(len(scores))
        raw = Sums(np.stack([scores, np.ones_like(scores)], 1), ratio)
        rates = {
            "raw": interval(raw, units, clusters, seed),
            "length_controlled": interval(_LengthControlled(scores, longer), units, clusters, seed, _DRAWS),
        }
        told = {name: plain(asdict(estimate)) for name, estimate in rates.items()}
        found.append({"one": one, "two": two, "counts": counts(comparisons), **told})
    return found


@dataclass(frozen=True)
class _LengthControlled:
    scores: Floats
    longer: Floats
    repeats: bool = True

    def value(self, indices: Indices) -> float:
        return length_controlled(self.scores[indices], self.longer[indices])


def errors(judged: Judged) -> dict[str, dict[str, int]]:
    """What is wrong with each system's unhelpful replies, and how often."""
    return {name: dict(Counter(one.error for one in found if one.error)) for name, found in judged.ratings.items()}
