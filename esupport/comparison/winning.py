"""Win rates of each two systems, raw and at equal lengths, with intervals and a paired test."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from esupport.comparison.figures import DRAWS, plain
from esupport.comparison.judging import Judged
from esupport.evaluation.judge.records import counts
from esupport.evaluation.judge.winrate import length_controlled, measured
from esupport.evaluation.statistics import Floats, Indices, Sums, compare, holm, interval, ratio

_DRAWS = 500  # of a length-controlled rate's bootstrap, each of which is a fit


def win_rates(judged: Judged, seed: int) -> list[dict[str, Any]]:
    """Counts, raw and length-controlled rate of the first of each two systems, and the paired test against one half.

    Under the null hypothesis each verdict could as well be the other system's: scores of a conversation are turned round
    together (``statistics.compare``). Corrected over all pairs of systems (Holm 1979).
    """
    found, tested = list[dict[str, Any]](), list[float]()
    for (one, two), comparisons in judged.pairs.items():
        clusters, scores, longer = measured(comparisons)
        units = np.arange(len(scores))
        both = np.concatenate([scores, 1 - scores])
        raw = Sums(np.stack([both, np.ones_like(both)], 1), ratio)
        controlled = _LengthControlled(scores, longer)
        found.append(
            {
                "one": one,
                "two": two,
                "counts": counts(comparisons),
                "raw": plain(asdict(interval(raw, units, clusters, seed))),
                "length_controlled": plain(asdict(interval(controlled, units, clusters, seed, _DRAWS))),
            }
        )
        tested.append(compare(raw, units, units + len(scores), clusters, seed, DRAWS).p if clusters else np.nan)
    p_values = zip(found, tested, holm(tested), strict=True)
    return [plain({**told, "p": p, "p_corrected": corrected}) for told, p, corrected in p_values]


@dataclass(frozen=True)
class _LengthControlled:
    scores: Floats
    longer: Floats
    repeats: bool = True

    def value(self, indices: Indices) -> float:
        return length_controlled(self.scores[indices], self.longer[indices])
