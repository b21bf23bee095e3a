"""What a judge's answers come to: comparisons and ratings, one JSON object a line on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from esupport.data.conversation import Record

Unusable = Literal["refused", "unparsable"]
Outcome = Literal["win", "loss", "tie", "inconsistent"] | Unusable
Status = Literal["rated"] | Unusable
UNUSABLE: tuple[Unusable, ...] = ("refused", "unparsable")
OUTCOMES: tuple[Outcome, ...] = ("win", "loss", "tie", "inconsistent", *UNUSABLE)
STATUSES: tuple[Status, ...] = ("rated", *UNUSABLE)


class Comparison(Record):
    """``a`` beside ``b``, shown in both orders.

    Attributes:
        a, b: systems; in the swap test the conversation of the person replied to, and of the other.
        conversation, turn: of the reply. In the swap test, both belong to one ``group`` of the data.
        verdicts: with ``a`` shown first and shown second: ``a``, ``b``, ``tie``, ``refused`` or ``unparsable``.
        reasons: the judge's, likewise; empty where it gave none.
        outcome: ``win``, ``loss`` or ``tie`` where both orders say so, ``inconsistent`` where they differ.
        score: of ``a``, mean of both orders (1, a tie 0.5, 0); None where an order has no verdict.
        longer: characters by which ``a``'s reply is longer; 0 in the swap test.
    """

    a: str
    b: str
    conversation: str
    turn: int
    verdicts: tuple[str, str] = Field(strict=False)
    reasons: tuple[str, str] = Field(strict=False)
    outcome: Outcome
    score: float | None
    longer: int


class Rating(Record):
    """A reply on the rubric.

    Attributes:
        system, conversation, turn: whose reply, and to what.
        status: ``refused`` or ``unparsable`` where anything that was asked is missing.
        scores: 1 to 5, by axis; those that were given.
        error: what is wrong with an unhelpful reply; None for a helpful one, or where the judge named none.
        reason: the judge's; empty where it gave none.
    """

    system: str
    conversation: str
    turn: int
    status: Status
    scores: dict[str, int]
    error: str | None
    reason: str


def counts(comparisons: Sequence[Comparison]) -> dict[str, int]:
    """Comparisons by outcome; all outcomes are there."""
    found = Counter(one.outcome for one in comparisons)
    return {outcome: found[outcome] for outcome in OUTCOMES}


def statuses(ratings: Sequence[Rating]) -> dict[str, int]:
    """Ratings by status; all statuses are there."""
    found = Counter(one.status for one in ratings)
    return {status: found[status] for status in STATUSES}
