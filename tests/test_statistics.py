"""Intervals cover, tests keep their level, corrections and agreement are those of the libraries and of hand-made tables."""

from __future__ import annotations

from dataclasses import astuple
from itertools import product

import numpy as np
import pytest
from scipy.stats import permutation_test
from statsmodels.stats.multitest import multipletests

from esupport.evaluation.metrics.agreement import alpha, kappa
from esupport.evaluation.metrics.variety import distinct_of
from esupport.evaluation.statistics import Sums, compare, holm, interval, ratio


def mean_of(values):
    return Sums(np.stack([values, np.ones(len(values))], 1), ratio)


def clustered(rng, conversations):
    """Replies whose conversation matters as much as they do, in conversations of different length."""
    sizes = 1 + rng.poisson(5, conversations)
    clusters = np.repeat(np.arange(conversations), sizes)
    return rng.normal(size=conversations)[clusters] + rng.normal(size=len(clusters)), clusters.tolist()


def covered(make, truth, rounds):
    found = [make(np.random.default_rng(seed)) for seed in range(rounds)]
    return np.mean([one.low <= truth <= one.high for one in found])


def test_bootstrap_covers():
    def make(rng):
        values, clusters = clustered(rng, 30)
        return interval(mean_of(values), np.arange(len(values)), clusters, draws=400)

    assert 0.93 <= covered(make, 0.0, 500) <= 0.97


def test_turns_instead_of_conversations_would_not_cover():
    def make(rng):
        values, _ = clustered(rng, 30)
        return interval(mean_of(values), np.arange(len(values)), list(range(len(values))), draws=300)

    assert covered(make, 0.0, 200) < 0.85


def test_distinct_is_covered_by_the_jackknife_where_the_bootstrap_never_holds_it():
    weights = 1 / np.arange(1, 401)
    weights /= weights.sum()

    def sample(rng):
        words = [rng.choice(400, 40, p=rng.dirichlet(weights * 400)) for _ in range(20)]  # each person has a vocabulary
        return distinct_of([[str(word) for word in reply] for text in words for reply in np.split(text, 4)], 1)

    clusters = np.repeat(np.arange(20), 4).tolist()
    everything = np.arange(80)
    truth = np.mean([sample(np.random.default_rng(10_000 + seed)).value(everything) for seed in range(200)])
    assert 0.92 <= covered(lambda rng: interval(sample(rng), everything, clusters), truth, 150) <= 0.995

    measure = sample(np.random.default_rng(1))
    rng = np.random.default_rng(2)
    drawn = [np.concatenate([np.arange(4) + 4 * c for c in rng.integers(0, 20, 20)]) for _ in range(200)]
    assert max(map(measure.value, drawn)) < measure.value(everything)


def test_the_interval_of_a_share_ends_at_one():
    varied = distinct_of([[f"one {i}", f"two {max(i, 2)}"] for i in range(4)], 1)
    found = interval(varied, np.arange(4), list(range(4)))
    assert 0 < found.low < found.value == 0.75 < found.high == 1.0


def test_interval_is_that_of_the_mean_and_has_seeds():
    values, clusters = clustered(np.random.default_rng(5), 12)
    found = interval(mean_of(values), np.arange(len(values)), clusters, seed=1)
    assert found.value == pytest.approx(values.mean())
    assert found.n == 12
    assert found == interval(mean_of(values), np.arange(len(values)), clusters, seed=1)
    assert found != interval(mean_of(values), np.arange(len(values)), clusters, seed=2)


def test_what_cannot_be_told_is_nan():
    one = interval(mean_of(np.ones(3)), np.arange(3), ["a"] * 3)
    assert one.value == 1
    assert np.isnan([one.low, one.high]).all()
    none = interval(mean_of(np.zeros(0)), np.arange(0), [])
    assert np.isnan([none.value, none.low, none.high]).all()
    assert none.n == 0
    assert np.isnan(compare(mean_of(np.zeros(0)), np.arange(0), np.arange(0), []).p)
    with pytest.raises(ValueError, match="3 replies, but 2"):
        interval(mean_of(np.ones(3)), np.arange(3), ["a", "b"])


def test_conversations_without_a_value_are_no_observations():
    values, clusters = clustered(np.random.default_rng(6), 8)
    other = values + np.random.default_rng(7).normal(0.3, 1, len(values))
    gaps = np.zeros((5, 2))  # replies that have no rating, in conversations of their own and in one that has others
    padded = Sums(
        np.concatenate([mean_of(part).statistics if part is not None else gaps for part in (values, None, other, None)]), ratio
    )
    both = Sums(np.concatenate([mean_of(values).statistics, mean_of(other).statistics]), ratio)
    one, long = np.arange(len(values)), np.arange(len(values) + 5)
    named = [*clusters, "a", "a", "b", "c", clusters[0]]
    assert interval(padded, long, named) == interval(both, one, clusters)
    assert interval(padded, long, named).n == 8
    assert compare(padded, long, long + len(long), named) == compare(both, one, one + len(one), clusters)
    nothing = interval(padded, long[len(values) :], named[len(values) :])
    assert np.isnan(nothing.value)
    assert nothing.n == 0


def test_a_swap_that_leaves_a_system_without_a_value_is_as_extreme_as_any():
    given = [5, None, None, None, 1, 1]  # one system rated in the first of three conversations, the other in the rest
    rows = Sums(np.array([(0, 0) if x is None else (x, 1) for x in given], dtype=float), ratio)
    found = compare(rows, np.arange(3), np.arange(3) + 3, list("abc"))
    assert found.value == 4
    # by hand, of the 2^3 swaps: none and all give 4 and -4, two leave one system with nothing, four give 2 or -2
    assert found.p == pytest.approx(4 / 8)


def test_paired_test_keeps_its_level_and_finds_what_is_there():
    def p(seed, effect):
        rng = np.random.default_rng(seed)
        base, clusters = clustered(rng, 20)
        shift = rng.normal(size=20)[clusters]  # conversations suit one system or the other
        values = np.concatenate([base, base + effect + shift + rng.normal(size=len(base))])
        indices = np.arange(len(base))
        return compare(mean_of(values), indices, indices + len(base), clusters, draws=199).p

    assert 0.035 <= np.mean([p(seed, 0.0) <= 0.05 for seed in range(1000)]) <= 0.065
    assert np.mean([p(seed, 1.5) <= 0.05 for seed in range(50)]) > 0.9


def test_paired_test_is_scipys_where_every_reply_is_a_conversation():
    rng = np.random.default_rng(3)
    for size in (8, 40):  # all swaps, and random ones
        one, two = rng.normal(0.2, 1, size), rng.normal(0, 1, size)
        found = compare(mean_of(np.concatenate([one, two])), np.arange(size), np.arange(size) + size, list(range(size)))
        theirs = permutation_test(
            (one, two), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", vectorized=True, rng=1
        ).pvalue
        assert found.p == pytest.approx(theirs, abs=1e-9 if size == 8 else 0.02)
        assert found.value == pytest.approx(one.mean() - two.mean())
        assert found.low < found.value < found.high


def test_distinct_of_two_systems_is_compared_on_whole_conversations():
    same = [["a", "b"], ["c", "d"], ["e", "f"], ["g", "h"], ["i", "j"], ["k", "l"]]
    dull = [["a", "a"]] * 6
    found = compare(distinct_of(same + dull, 1), np.arange(6), np.arange(6) + 6, list("abcdef"))
    assert found.value == pytest.approx(1 - 1 / 12)
    # by hand: of the 2^6 swaps only none and all are as far apart
    assert found.p == pytest.approx(2 / 64)


def test_holm_is_that_of_statsmodels_and_leaves_nan_out():
    rng = np.random.default_rng(4)
    p = rng.uniform(size=20) ** 3
    assert holm(list(p)) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([0.01, float("nan"), 0.04, 0.03]) == pytest.approx([0.03, float("nan"), 0.06, 0.06], nan_ok=True)
    assert holm([]) == []


def test_kappa_of_a_table_by_hand():
    # 20 both yes, 5 and 10 apart, 15 both no: agreement 0.7, by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5
    table = {("yes", "yes"): 20, ("yes", "no"): 5, ("no", "yes"): 10, ("no", "no"): 15}
    pairs = [pair for pair, count in table.items() for _ in range(count)]
    one, two = zip(*pairs, strict=True)
    found = kappa(one, two, list(range(50)))
    assert found.value == pytest.approx(0.4)
    # the interval is near the large-sample one: standard error 0.127
    assert found.low == pytest.approx(0.4 - 1.96 * 0.127, abs=0.05)
    assert found.high == pytest.approx(0.4 + 1.96 * 0.127, abs=0.05)
    assert np.isnan(kappa(["yes"] * 4, ["yes"] * 4, list("abcd")).value)
    assert np.isnan(kappa([], [], []).value)


def test_alpha_of_a_table_by_hand():
    # Krippendorff 2011, example B: two raters, ten units of yes and no
    one = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    two = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert alpha([one, two], list(range(10)), "nominal").value == pytest.approx(0.095, abs=5e-4)
    # example with gaps: unit 3 has one rater alone and is left out; 1 - (n - 1) * disagreeing / expected pairs
    ratings = [[1, 2, None, 2], [1, 2, 3, 1]]
    values = [1, 1, 2, 2, 2, 1]
    expected = sum(x != y for x, y in product(values, values)) / (6 * 5)
    assert alpha(ratings, list(range(4)), "nominal").value == pytest.approx(1 - (2 / 6) / expected)
    assert alpha(ratings, list(range(4)), "interval").value == pytest.approx(1 - (2 / 6) / expected)  # steps of 1 alone
    lone = alpha([[*ratings[0], 5, None], [*ratings[1], None, 2]], list(range(6)), "nominal")
    both = alpha([[1, 2, 2], [1, 2, 1]], list(range(3)), "nominal")
    assert astuple(lone) == pytest.approx(astuple(both), nan_ok=True), "a unit that one alone rated is no observation"
    assert lone.n == 3
    wide = alpha([[1, 5, 3, 4] * 9, [1, 4, 3, 5] * 9], list(range(36)), "ordinal")
    assert -1 <= wide.low < wide.value < wide.high <= 1
    assert np.isnan(alpha([[1, 1], [1, 1]], ["a", "b"], "nominal").value)
    assert np.isnan(alpha([[None], [2]], ["a"], "ordinal").value)
