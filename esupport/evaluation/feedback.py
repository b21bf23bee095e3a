"""Do likelihoods rank replies as the seekers did? Replies rated high against replies rated low, where the data has ratings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from esupport.data.conversation import Conversation
from esupport.evaluation.statistics import Floats, Indices

HIGH, LOW = 4, 2  # ratings from and up to which a reply counts; 3 says nothing


@dataclass(frozen=True)
class Rated:
    """A supporter turn, and whether the seeker's next rating was high."""

    conversation: Conversation
    turn: int
    high: bool


def rated_turns(conversations: Iterable[Conversation]) -> list[Rated]:
    """The supporter turns whose support was rated high or low.

    ESConv's seekers rated the support so far after every two of the supporter's utterances: a rating counts for the
    supporter turn before it.
    """
    found = []
    for conversation in conversations:
        turns = conversation.supporter_turns()
        for turn in turns:
            given = [t.feedback for t in conversation.turns[turn : turn + 2] if t.feedback is not None]
            if given and (given[-1] >= HIGH or given[-1] <= LOW):
                found.append(Rated(conversation, turn, given[-1] >= HIGH))
    return found


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve: how often a score ranks a high one above a low one, ties half (Mann & Whitney 1947).

    Attributes:
        scores: (replies,).
        high: (replies,) of the same.
    """

    scores: Floats
    high: Indices
    repeats: bool = True

    def value(self, indices: Indices) -> float:
        """See ``statistics.Measure``: nan where one of the two kinds is missing."""
        high = self.high[indices].astype(bool)
        ones, zeros = int(high.sum()), int((~high).sum())
        if not ones or not zeros:
            return np.nan
        ranks = rankdata(self.scores[indices])
        return float((ranks[high].sum() - ones * (ones + 1) / 2) / (ones * zeros))
