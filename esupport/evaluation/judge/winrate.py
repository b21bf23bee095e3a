"""Win rates over comparisons, raw and length-controlled; functions of arrays, so that a bootstrap can resample them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from esupport.evaluation.judge.records import Comparison

Floats = NDArray[np.float64]
# of the length's coefficient, squared and halved, against the summed log-likelihood: a standard deviation of 10
_PENALTY = 0.01


def measured(comparisons: Sequence[Comparison]) -> tuple[list[str], Floats, Floats]:
    """Conversation, score of ``a`` and characters by which ``a`` is longer, (n,) each: of the comparisons that have a score."""
    usable = [(one.conversation, one.score, one.longer) for one in comparisons if one.score is not None]
    scores, longer = ([float(one[at]) for one in usable] for at in (1, 2))
    return [name for name, _, _ in usable], np.array(scores), np.array(longer)


def length_controlled(scores: Floats, longer: Floats) -> float:
    """The win rate that ``a`` would have, were its replies as long as those of ``b``.

    A logistic regression of the scores on tanh(longer / its standard deviation), as in AlpacaEval 2.0 (Dubois et al.
    2024, Length-Controlled AlpacaEval, arXiv 2404.04475), read off where the difference is 0. What differs: each pair of
    systems has a fit of its own, without a term for the difficulty of an instruction; scores are means of two orders, so
    that the fit is a fractional one (Papke & Wooldridge 1996); only the length's coefficient is penalised, and weakly. So the
    rate of ``b`` is one minus this one.

    Args:
        scores: of ``a``, (n,), 0 to 1.
        longer: by how much its replies are longer, (n,), in any unit.

    Returns:
        The rate; nan where there are no scores, or where all replies are longer by the same, which tells nothing.
    """
    if len(scores) == 0 or (np.ptp(longer) == 0 and longer[0] != 0):
        return float("nan")
    if np.ptp(scores) == 0 or np.ptp(longer) == 0:  # nothing to explain, and no finite fit for all or nothing
        return float(scores.mean())
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    seen = np.column_stack([np.ones_like(longer), np.tanh(longer / longer.std())])
    fit = GLM(scores, seen, family=Binomial()).fit_regularized(alpha=np.array([0.0, _PENALTY / len(scores)]), L1_wt=0)
    return float(1 / (1 + np.exp(-fit.params[0])))
