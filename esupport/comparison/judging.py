"""A judge's part: what it costs, what it says of the replies, and the figures that follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from rich.console import Console

from esupport.comparison.dialogue import Dialogue, rate_dialogues, with_ratings
from esupport.comparison.figures import Figure, shares
from esupport.data.conversation import Conversation
from esupport.errors import UserError
from esupport.evaluation.answered import Answered
from esupport.evaluation.judge.asking import Asker, Item
from esupport.evaluation.judge.method import Judge
from esupport.evaluation.judge.records import Comparison, Rating, counts, statuses
from esupport.evaluation.judge.verdicts import compare, grade, rate, swap
from esupport.store import Store

Answers = Mapping[str, Sequence[Answered]]
_COSTS = ("requests", "kept", "prompt_tokens", "new_tokens")


@dataclass
class Judged:
    """What a judge gave.

    Attributes:
        pairs: comparisons of each two systems that replied to the same contexts.
        swaps: of each system, the swap test.
        ratings: of each system, in the order of its replies.
        grades: of each system, likewise, the axis ``g_score`` alone; empty where it was not asked for.
        dialogues: of each system, the ratings of its dialogues.
        cost: of all that was asked, the rating of dialogues among it (:func:`judge_dialogues`).
    """

    pairs: dict[tuple[str, str], list[Comparison]] = field(default_factory=dict)
    swaps: dict[str, list[Comparison]] = field(default_factory=dict)
    ratings: dict[str, list[Rating]] = field(default_factory=dict)
    grades: dict[str, list[Rating]] = field(default_factory=dict)
    dialogues: dict[str, list[Rating]] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """The judge's part of ``metrics.json``: the cost, and by system the swap test's outcomes and the ratings' statuses."""
        return {
            **self.cost,
            "swap": {name: counts(found) for name, found in self.swaps.items() if found},
            "ratings": {name: statuses(found) for name, found in self.ratings.items()},
            "g_scores": {name: statuses(found) for name, found in self.grades.items() if found},
            "dialogues": {name: statuses(found) for name, found in self.dialogues.items()},
        }

    def records(self) -> list[dict[str, Any]]:
        """The lines of ``judged.jsonl``."""
        parts: list[tuple[dict[str, str], Sequence[Comparison | Rating]]] = [
            *(({"what": "pairwise"}, found) for found in self.pairs.values()),
            *(({"what": "swap", "system": name}, found) for name, found in self.swaps.items()),
            *(({"what": "rating"}, found) for found in self.ratings.values()),
            *(({"what": "g_score"}, found) for found in self.grades.values()),
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
    grades = {name: grade(judge, replies) for name, replies in answered.items()}
    groups: list[list[Item[Any]]] = [part for group in (pairs, swaps, ratings, grades) for part in group.values()]
    cost = _show_cost(asker, groups, console)
    if cost["prompt_tokens"] > most_tokens:
        raise UserError(
            f"judge_limit: the judge would read {_about(cost)} tokens, more than {most_tokens:,}; take fewer contexts or "
            f"systems, or judge_limit={cost['prompt_tokens']}"
        )
    # each on its own: with another system later, only what is about it is asked
    settled = iter([asker.settle(part) for part in groups])
    return Judged(
        pairs={(two, one): next(settled) for one, two in pairs},
        swaps={name: next(settled) for name in swaps},
        ratings={name: next(settled) for name in ratings},
        grades={name: next(settled) for name in grades},
        cost={"name": judge.speaker.name, **cost},
    )


def judge_dialogues(
    judge: Judge,
    store: Store,
    judged: Judged,
    dialogues: Mapping[str, Sequence[Dialogue]],
    people: Mapping[str, Conversation],
    most_tokens: int,
    console: Console,
) -> tuple[list[Dialogue], str | None]:
    """The dialogues of all systems, with their ratings; or without, and why: the limit, which what was spent counts against.

    That is no error: the replies are paid for, and their figures must not be lost.

    Args:
        judged: what the same judge said of the replies; the dialogues' cost is added to its own.
        judge, store, dialogues, people, most_tokens, console: as of :func:`judge_all`.

    Raises:
        UserError: the judge cannot be reached.
    """
    asker = Asker(judge, store, console)
    groups = {name: rate_dialogues(judge, part, people) for name, part in dialogues.items()}
    flat = [one for part in dialogues.values() for one in part]
    cost = _show_cost(asker, [*groups.values()], console)
    total = {name: judged.cost[name] + cost[name] for name in _COSTS}
    total["estimated"] = judged.cost["estimated"] or cost["estimated"]
    if total["prompt_tokens"] > most_tokens:
        return flat, (
            f"with the dialogues the judge would read {_about(total)} tokens, more than {most_tokens:,}; "
            f"judge_limit={total['prompt_tokens']} rates them, and asks nothing again about the replies"
        )
    judged.cost |= total
    judged.dialogues = {name: asker.settle(part) for name, part in groups.items()}
    return with_ratings(flat, [rating for found in judged.dialogues.values() for rating in found]), None


def _show_cost(asker: Asker, groups: Sequence[Sequence[Item[Any]]], console: Console) -> dict[str, Any]:
    """What it would cost, told before anything is sent."""
    if asker.judge.speaker.independent:  # what is asked in two groups is asked once
        groups = [[item for part in groups for item in part]]
    costs = [asker.cost(part) for part in groups]
    total: dict[str, Any] = {name: sum(getattr(cost, name) for cost in costs) for name in _COSTS}
    total["estimated"] = any(cost.estimated for cost in costs)
    console.print(
        f"Judge: {total['requests']:,} requests, {_about(total)} prompt tokens, at most {total['new_tokens']:,} new; "
        f"{total['kept']:,} requests are answered already. Retries come on top.",
        markup=False,
        highlight=False,
    )
    return total


def _about(cost: Mapping[str, Any]) -> str:
    return f"{'about ' if cost['estimated'] else ''}{cost['prompt_tokens']:,}"


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
    low = {
        name: [one.scores["helpfulness"] <= judge.unhelpful if "helpfulness" in one.scores else None for one in found]
        for name, found in judged.ratings.items()
    }
    if "helpfulness" in judge.asked_axes:
        text = f"Share of unhelpful replies: the judge rates their helpfulness {judge.unhelpful} or less."
        figures.append(Figure.of("judge_unhelpful", text, shares(low), clusters))
    refused = {name: [float(one.status != "rated") for one in found] for name, found in judged.ratings.items()}
    text = "Share of replies whose rating the judge refused or left incomplete."
    figures.append(replace(Figure.of("judge_refused", text, shares(refused), clusters), restates=True))
    if any(judged.swaps.values()):
        clusters = {name: [one.conversation for one in found] for name, found in judged.swaps.items()}
        scores = {name: [one.score for one in found] for name, found in judged.swaps.items()}
        text = (
            "Swap test: mean over replies, beside each other person in the same situation and in both orders, of 1 where the "
            "judge, shown profiles alone, finds the reply to fit its own person better, 0 where the other, one half for a tie; "
            "orders that contradict each other come to one half. Chance is 0.5."
        )
        figures.append(Figure.of("judge_swap", text, shares(scores), clusters))
    return figures


def dialogue_figures(dialogues: Sequence[Dialogue], judge: Judge) -> list[Figure]:
    """Mean ratings of whole dialogues by axis."""
    systems = {one.system: [other for other in dialogues if other.system == one.system] for one in dialogues}
    clusters = {name: [one.card for one in part] for name, part in systems.items()}
    figures = []
    for axis, question in judge.asked_axes.items():
        marks = {n: [one.rating.scores.get(axis) if one.rating else None for one in part] for n, part in systems.items()}
        text = f"Mean rating of whole dialogues with the simulated seeker by the judge, 1 to 5. {question}"
        figures.append(Figure.of(f"dialogue_{axis}", text, shares(marks), clusters))
    return figures


def errors(judged: Judged) -> dict[str, dict[str, int]]:
    """What is wrong with each system's unhelpful replies, and how often among those that are rated (:meth:`Judged.told`)."""
    rated = {name: [one for one in found if one.status == "rated"] for name, found in judged.ratings.items()}
    return {name: dict(Counter(one.error for one in found if one.error)) for name, found in rated.items()}
