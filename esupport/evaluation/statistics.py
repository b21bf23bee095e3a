"""Intervals and paired tests with conversations as the independent units: replies of one conversation are alike.

The bootstrap and the test are our own: scipy's draw single observations, have no interval where one draw has no value, and sum
anew for each draw what one matrix product sums for all. Ours weigh conversations, so that any measure serves.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, t
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
_Weighed = Callable[[npt.NDArray[np.intp]], Floats]
_BATCH = 500  # draws that are held in memory at a time


class Measure(Protocol):
    """A figure of any set of replies."""

    @property
    def repeats(self) -> bool:
        """Whether a reply that is there twice may count twice.

        It may not where the figure looks for repetition, as Distinct-n does: a bootstrap draw holds 63 % of the conversations,
        some often, and has less variety than any sample. Such figures are shares, and their intervals end at 0 and 1.
        """

    def value(self, indices: Indices) -> float:
        """The figure of the replies at ``indices``, (any number,), with repeats; nan where there is nothing to measure."""


@dataclass(frozen=True)
class Sums:
    """A figure that follows from sums over replies: means, ratios, corpus BLEU, tables of counts.

    Attributes:
        statistics: of each reply, (replies, k).
        of_sums: (draws, k) to (draws,); nan where there is nothing to measure.
    """

    statistics: Floats
    of_sums: Callable[[Floats], Floats]
    repeats: bool = True

    def value(self, indices: Indices) -> float:
        """See :class:`Measure`."""
        return float(self.of_sums(self.statistics[indices].sum(0, keepdims=True))[0])


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, and the number of conversations that have a value; nan where there is none."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Comparison(Estimate):
    """How much the first of two systems is above the second; ``p`` of the paired test, not corrected (see :func:`holm`)."""

    p: float


def ratio(sums: Floats) -> Floats:
    """First over second column of (draws, 2) sums; nan where the second is 0."""
    whole = np.where(sums[:, 1] == 0, np.nan, sums[:, 1])
    return np.asarray(sums[:, 0] / whole)


def interval(measure: Measure, indices: Indices, clusters: Sequence[Hashable], seed: int = 0, draws: int = 2000) -> Estimate:
    """A system's figure.

    Args:
        measure: prepared on the replies of all systems.
        indices: of the system's replies, (replies,).
        clusters: the conversation of each, (replies,).
        seed, draws: of the bootstrap.
    """
    codes, (units,) = _valued(measure, clusters, indices)
    weighed, n = _weighed(measure, units, codes)
    found = _estimate(weighed, n, measure.repeats, seed, draws)
    if measure.repeats:
        return found
    return replace(found, low=float(np.clip(found.low, 0, 1)), high=float(np.clip(found.high, 0, 1)))


def proportion(met: Sequence[bool]) -> Estimate:
    """A share of few independent units, with Wilson's interval (1927): of all or none a bootstrap sees no spread."""
    if not met:
        return Estimate(np.nan, np.nan, np.nan, 0)
    low, high = proportion_confint(sum(met), len(met), method="wilson")
    return Estimate(sum(met) / len(met), float(low), float(high), len(met))


def compare(
    measure: Measure, one: Indices, two: Indices, clusters: Sequence[Hashable], seed: int = 0, draws: int = 9999
) -> Comparison:
    """Two systems that replied to the same contexts; see :func:`interval` for the arguments.

    The test is paired approximate randomisation (Noreen 1989; Riezler & Maxwell 2005): under the null hypothesis it does not
    matter which system replied in a conversation, so swapping all its replies gives an equally likely data set. It assumes no
    distribution, serves corpus figures that are no mean of conversations, and its level is exact; a bootstrap's is only so
    for many conversations. All swaps are tried where they are no more than ``draws``.
    """
    codes, units = _valued(measure, clusters, one, two)
    n = int(codes.max(initial=-1)) + 1
    both, _ = _weighed(measure, np.concatenate(units), np.concatenate([codes, codes + n]))

    def difference(first: npt.NDArray[np.intp], second: npt.NDArray[np.intp]) -> Floats:
        return both(np.hstack([first, second])) - both(np.hstack([second, first]))

    found = _estimate(lambda weights: difference(weights, np.zeros_like(weights)), n, measure.repeats, seed, min(draws, 2000))
    return Comparison(found.value, found.low, found.high, n, _swapped(difference, found.value, n, seed, draws))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979), in order; nan stays nan and is not counted."""
    found = np.asarray(p_values, dtype=float)
    counted = ~np.isnan(found)
    if counted.any():
        found[counted] = multipletests(found[counted], method="holm")[1]
    return [float(p) for p in found]


def _codes(clusters: Sequence[Hashable]) -> Indices:
    """Each cluster as a number, in the order of appearance."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(cluster, len(seen)) for cluster in clusters], dtype=np.intp)


def _valued(measure: Measure, clusters: Sequence[Hashable], *systems: Indices) -> tuple[Indices, list[Indices]]:
    """Clusters, coded, and units of each system, without the units that have a value in no system.

    What adds nothing to the sums is no observation, and must not make ``n`` larger. Measures that are no sums keep all.
    """
    for units in systems:
        if len(units) != len(clusters):
            raise ValueError(f"{len(units)} replies, but {len(clusters)} have a conversation")
    kept = np.ones(len(clusters), dtype=bool)
    if isinstance(measure, Sums):
        kept = np.logical_or.reduce([measure.statistics[units].any(1) for units in systems])
    return _codes([cluster for cluster, has in zip(clusters, kept, strict=True) if has]), [units[kept] for units in systems]


def _weighed(measure: Measure, indices: Indices, codes: Indices) -> tuple[_Weighed, int]:
    """The figure as a function of how often each cluster is there, (draws, clusters) to (draws,), and their number."""
    n = int(codes.max(initial=-1)) + 1
    if isinstance(measure, Sums):
        table = np.zeros((n, measure.statistics.shape[1]))
        np.add.at(table, codes, measure.statistics[indices])
        return lambda weights: measure.of_sums(weights @ table), n
    members = [indices[codes == code] for code in range(n)]

    def of_weights(weights: npt.NDArray[np.intp]) -> Floats:
        drawn = [[members[i] for i in np.repeat(np.arange(n), row)] for row in weights]
        return np.array([measure.value(np.concatenate([np.zeros(0, np.intp), *parts])) for parts in drawn])

    return of_weights, n


def _estimate(weighed: _Weighed, n: int, repeats: bool, seed: int, draws: int) -> Estimate:
    value = float(weighed(np.ones((1, n), dtype=np.intp))[0])
    if n < 2 or np.isnan(value):
        return Estimate(value, np.nan, np.nan, n)
    low, high = _bootstrap(weighed, n, seed, draws) if repeats else _jackknife(weighed, n, value)
    return Estimate(value, low, high, n)


def _bootstrap(weighed: _Weighed, n: int, seed: int, draws: int) -> tuple[float, float]:
    """Expanded percentile interval (Hesterberg 2015, §4.4): plain percentiles are too narrow for few clusters (90 % for 15)."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([weighed(rng.multinomial(n, np.full(n, 1 / n), size)) for size in _sizes(draws)])
    if np.isnan(values).all():
        return np.nan, np.nan
    tail = norm.cdf(np.sqrt(n / (n - 1)) * t.ppf(0.025, n - 1))
    low, high = np.nanquantile(values, (tail, 1 - tail))
    return float(low), float(high)


def _jackknife(weighed: _Weighed, n: int, value: float) -> tuple[float, float]:
    """Student interval with the jackknife's standard error, which is never too small in the mean (Efron & Stein 1981)."""
    values = np.concatenate([weighed(1 - row) for row in np.array_split(np.eye(n, dtype=np.intp), -(-n // _BATCH))])
    half = t.ppf(0.975, n - 1) * np.sqrt((n - 1) * values.var())
    return float(value - half), float(value + half)


def _swapped(
    difference: Callable[[npt.NDArray[np.intp], npt.NDArray[np.intp]], Floats], value: float, n: int, seed: int, draws: int
) -> float:
    """Two-sided p-value over random swaps, the one that was seen counted (Phipson & Smyth 2010), or over all of them.

    A swap that leaves a system without any value has no difference: it counts as extreme, so that p is not too small.
    """
    if np.isnan(value):
        return np.nan
    if n < 63 and 2**n <= draws:
        swaps, seen = iter([np.array(list(product((0, 1), repeat=n)), dtype=np.intp).reshape(2**n, n)]), 0
    else:
        rng = np.random.default_rng(seed)
        swaps, seen = (rng.integers(0, 2, (size, n)) for size in _sizes(draws)), 1
    values = np.concatenate([difference(1 - swap, swap) for swap in swaps])
    # what equals the seen difference but for rounding counts as equal
    extreme = np.isnan(values) | (np.abs(values) >= abs(value) * (1 - 1e-9) - 1e-12)
    return float((extreme.sum() + seen) / (len(values) + seen))


def _sizes(draws: int) -> list[int]:
    return [min(_BATCH, draws - done) for done in range(0, draws, _BATCH)]
