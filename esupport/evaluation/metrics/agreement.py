"""Agreement of raters: judges with each other, or with people."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import krippendorff
import numpy as np
from statsmodels.stats.inter_rater import cohens_kappa

from esupport.evaluation.statistics import Estimate, Floats, Indices, Sums, interval

Level = Literal["nominal", "ordinal", "interval"]


def kappa(one: Sequence[Hashable], two: Sequence[Hashable], clusters: Sequence[Hashable]) -> Estimate:
    """Cohen's kappa (1960, eq. 1) of two raters' labels of the same units, bootstrapped over ``clusters``, (units,) each."""
    size = len(labels := {label: i for i, label in enumerate(dict.fromkeys([*one, *two]))})
    tables = np.zeros((len(one), size * size))
    for unit, (first, second) in enumerate(zip(one, two, strict=True)):
        tables[unit, labels[first] * size + labels[second]] = 1

    def of_table(cells: Floats) -> float:
        table = cells.reshape(size, size)
        chance = table.sum(0) @ table.sum(1)
        if chance in (0, table.sum() ** 2):  # no unit, or one label alone: agreement by chance cannot be told from any other
            return np.nan
        return float(cohens_kappa(table, return_results=False))

    return interval(Sums(tables, lambda sums: np.array([of_table(row) for row in sums])), np.arange(len(one)), clusters)


@dataclass(frozen=True)
class _Alpha:
    counts: Indices
    domain: Floats
    level: Level
    repeats: bool = True

    def value(self, indices: Indices) -> float:
        counts = self.counts[indices]
        if len(counts) == 0 or (counts.sum(0) > 0).sum() < 2:
            return np.nan
        return float(krippendorff.alpha(value_counts=counts, value_domain=self.domain, level_of_measurement=self.level))


def alpha(ratings: Sequence[Sequence[float | None]], clusters: Sequence[Hashable], level: Level) -> Estimate:
    """Krippendorff's alpha of any number of raters (Krippendorff 2011), bootstrapped over ``clusters`` (Zapf et al. 2016).

    Args:
        ratings: of each rater, (raters, units); None where a rater gave none.
        clusters: the conversation of each unit, (units,). One whose units had a single rater each is not counted.
        level: of measurement: nominal labels, ordered ratings, or ratings with equal steps.
    """
    given = np.array([[np.nan if x is None else x for x in row] for row in ratings], dtype=float).reshape(-1, len(clusters))
    domain = np.unique(given[~np.isnan(given)])
    counts = (given[:, :, None] == domain).sum(0)
    paired = np.flatnonzero(counts.sum(1) > 1)  # a unit that one rater alone rated says nothing of agreement
    return interval(_Alpha(counts, domain, level), paired, [clusters[i] for i in paired.tolist()])
