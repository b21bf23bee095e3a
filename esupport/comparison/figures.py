"""Figures of systems: each with its interval over conversations, and how far it is from the baseline's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from esupport.data.conversation import Conversation
from esupport.evaluation.answered import Answered
from esupport.evaluation.metrics import Metrics
from esupport.evaluation.statistics import Indices, Measure, Sums, compare, holm, interval, proportion, ratio

PUBLISHED = ("esconv_", "pesc_")  # figures under another definition
ALPHA = 0.05  # of the corrected p-value below which a difference is called significant


@dataclass(frozen=True)
class Figure:
    """One figure of some systems.

    Attributes:
        name, definition: of it.
        measure: prepared on the units of all systems: replies, conversations, messages.
        units: of each system, indices into the measure.
        clusters: of each system, the conversation of each unit.
        met: of each system, what each unit is, where the figure is a share of few independent ones.
        restates: whether it says again what another figure says, and is not tested again.
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
        published = metric.name.startswith(PUBLISHED)
        found.append(Figure(metric.name, metric.definition, metric.measure, units, of, restates=published))
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
    test more makes the correction stricter.
    """
    found = []
    for figure in (one for one in figures if not one.restates):
        for name in figure.units:
            paired = baseline in figure.units and figure.clusters[name] == figure.clusters[baseline]
            if name != baseline and paired:
                both = figure.units[name], figure.units[baseline]
                one = compare(figure.measure, *both, figure.clusters[name], seed)
                found.append({"figure": figure.name, "one": name, "two": baseline, **asdict(one)})
    for one_, p in zip(found, holm([one["p"] for one in found]), strict=True):
        one_["p_corrected"] = p
    return [plain(one) for one in found]


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


def _told(person: Conversation) -> dict[str, str]:
    stated = {"problem": person.problem, "emotion": person.emotion}
    known = {**stated, **{f"profile.{key}": value for key, value in person.profile.items()}}
    return {name: text for name, text in known.items() if text}


def shares(marks: Mapping[str, Sequence[float | None]]) -> Sums:
    """The mean of what is given a unit, the systems' one after the other; None is not counted."""
    flat = [mark for of in marks.values() for mark in of]
    table = [(0.0, 0.0) if mark is None else (float(mark), 1.0) for mark in flat]
    return Sums(np.array(table, dtype=float).reshape(-1, 2), ratio)


def plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with None for what is not a number, as JSON wants it."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
