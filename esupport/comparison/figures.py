"""Figures of systems: each with its interval over conversations, and how far it is from the baseline's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from esupport.data.conversation import Conversation
from esupport.evaluation.answered import Answered
from esupport.evaluation.metrics.base import Metrics, spoken_ratio
from esupport.evaluation.metrics.variety import count_mean
from esupport.evaluation.statistics import Indices, Measure, Sums, compare, holm, interval, proportion, ratio

PUBLISHED = ("esconv_", "pesc_")  # figures under another definition
ALPHA = 0.05  # of the corrected p-value below which a difference is called significant
DRAWS = 9999  # swaps of a paired test; where there are no more, it tries them all
# figures that are a mean of what each unit was given: its number in the second column, 0 for a unit that was given none
_MEANS = (ratio, spoken_ratio)


@dataclass(frozen=True)
class Figure:
    """One figure of some systems.

    Attributes:
        name, definition: of it.
        measure: prepared on the units of all systems: replies, conversations, messages.
        units: of each system, indices into the measure.
        clusters: of each system, the conversation of each unit.
        met: of each system, what each unit is, where the figure is a share of few independent ones.
        restates: whether it says again what another figure says, or says more of the judge than of the replies, and is not
            tested.
    """

    name: str
    definition: str
    measure: Measure
    units: Mapping[str, Indices]
    clusters: Mapping[str, Sequence[str]]
    met: Mapping[str, Sequence[bool]] = field(default_factory=dict)
    restates: bool = False

    @classmethod
    def of(cls, name: str, definition: str, measure: Measure, clusters: Mapping[str, Sequence[str]]) -> Figure:
        """A figure of units that stand one system after the other, in the order of ``clusters``."""
        ends = np.cumsum([0, *(len(of) for of in clusters.values())])
        units = {name: np.arange(ends[i], ends[i + 1]) for i, name in enumerate(clusters)}
        return cls(name, definition, measure, units, clusters)


def of_replies(answered: Mapping[str, Sequence[Answered]], metrics: Metrics, human: Iterable[str]) -> list[Figure]:
    """Automatic metrics, prepared on the replies of all systems; the systems in ``human`` have only those of replies alone."""
    clusters = {name: [one.context.conversation for one in replies] for name, replies in answered.items()}
    left_out = set(human)
    found = []
    for metric in metrics.found:
        whole = Figure.of(metric.name, metric.definition, metric.measure, clusters)
        kept = [name for name in clusters if metric.of_replies or name not in left_out]
        units = {name: whole.units[name] for name in kept}
        of = {name: clusters[name] for name in kept}
        restates = metric.name.startswith(PUBLISHED) or metric.name == "tokens"  # words tell the length of all systems' replies
        found.append(Figure(metric.name, metric.definition, metric.measure, units, of, restates=restates))
    return found


def estimates(figures: Sequence[Figure], systems: Sequence[str], seed: int) -> dict[str, dict[str, Any]]:
    """The figures of each system, by system and name: ``value``, ``low``, ``high`` and ``n``, None for nan."""
    found: dict[str, dict[str, Any]] = {name: {} for name in systems}
    for figure in figures:
        for name, units in figure.units.items():
            if figure.met:
                estimate = proportion(figure.met[name])
            else:
                estimate = interval(figure.measure, units, figure.clusters[name], seed)
            found[name][figure.name] = plain(asdict(estimate))
    return found


def differences(figures: Sequence[Figure], baseline: str, seed: int) -> list[dict[str, Any]]:
    """How far each system is above ``baseline``, with the paired test, corrected over all of the list (Holm 1979).

    What cannot be paired, as replies in different conversations, is not compared, nor is what restates another figure: each
    test more makes the correction stricter. Of a mean, units count that both systems have a mark for: else a judge that
    rates only the easy replies of one would make it look better.
    """
    found = []
    for figure in (one for one in figures if not one.restates):
        for name in figure.units:
            paired = baseline in figure.units and figure.clusters[name] == figure.clusters[baseline]
            if name != baseline and paired:
                both = figure.units[name], figure.units[baseline]
                kept = _marked(figure.measure, both[0]) & _marked(figure.measure, both[1])
                clusters = [cluster for cluster, has in zip(figure.clusters[name], kept, strict=True) if has]
                one = compare(figure.measure, both[0][kept], both[1][kept], clusters, seed, DRAWS)
                found.append({"figure": figure.name, "one": name, "two": baseline, **asdict(one)})
    for one_, p in zip(found, holm([one["p"] for one in found]), strict=True):
        one_["p_corrected"] = p
    return [plain(one) for one in found]


def too_few(conversations: Sequence[int]) -> int:
    """The largest of these numbers of conversations on which no difference can be significant; 0 if there is none.

    Swapping all conversations, or none, gives the seen difference itself: the smallest p on n of them is 2/2^n. Holm's method
    multiplies the smallest p of any part of the tests at least by the size of that part.

    Args:
        conversations: of each test.
    """
    smallest = {n: 2.0 ** (1 - n) if 2**n <= DRAWS else 1 / (DRAWS + 1) for n in conversations}
    return max((n for n, p in smallest.items() if p * sum(other <= n for other in conversations) >= ALPHA), default=0)


def breakdown(
    figures: Sequence[Figure], people: Mapping[str, Conversation], by_at_least: int, seed: int
) -> list[dict[str, Any]]:
    """Figures for each value of problem, emotion and profile that at least ``by_at_least`` conversations have."""
    found = []
    for figure in figures:
        for system, units in figure.units.items():
            clusters = figure.clusters[system]
            told = [_told(people[name]) if name in people else {} for name in clusters]
            for by in dict.fromkeys(key for one in told for key in one):
                for value in dict.fromkeys(one[by] for one in told if by in one):
                    chosen = [i for i, one in enumerate(told) if one.get(by) == value]
                    if len({clusters[i] for i in chosen}) >= by_at_least:
                        part = interval(figure.measure, units[chosen], [clusters[i] for i in chosen], seed)
                        place = {"by": by, "is": value, "system": system, "figure": figure.name}
                        found.append({**place, **plain(asdict(part))})
    return found


def _marked(measure: Measure, units: Indices) -> npt.NDArray[np.bool_]:
    """Whether each unit was given anything to take the mean of; where the figure is no mean, all count."""
    if isinstance(measure, Sums) and measure.of_sums in _MEANS:
        return np.asarray(measure.statistics[units, 1] > 0)
    return np.ones(len(units), dtype=bool)


def _told(person: Conversation) -> dict[str, str]:
    stated = {"problem": person.problem, "emotion": person.emotion}
    known = {**stated, **{f"profile.{key}": value for key, value in person.profile.items()}}
    return {name: text for name, text in known.items() if text}


def shares(marks: Mapping[str, Sequence[float | None]]) -> Sums:
    """The mean of what is given a unit, the systems' one after the other; None is not counted."""
    return count_mean([mark for of in marks.values() for mark in of])


def plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with None for what is not a number, as JSON wants it."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
