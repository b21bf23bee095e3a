"""Definitions behind published figures, where they differ from the common ones, as the public scripts have them.

ESConv: ``codes_zcj`` of thu-coai/Emotional-Support-Conversation. PESC: ``eval.py`` and the README of the
repository of NLPCC 2025 shared task 8, as of 13 April 2025 (before, it scored the seeker's turns and weighted otherwise).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nltk
import numpy as np
from nltk.translate.bleu_score import SmoothingFunction, modified_precision, sentence_bleu

from esupport.evaluation.metrics import overlap, variety, vectors
from esupport.evaluation.metrics.base import Metric, Metrics, has_data, mean
from esupport.evaluation.statistics import Floats, Indices, Measure, Sums

# README of the shared task; its leaderboard follows from these weights
_WEIGHTS = {"meteor": 0.2, "bleu_4": 0.2, "rouge_l": 0.2, "extrema": 0.1, "distinct_2": 0.1, "distinct_3": 0.1, "g_score": 0.1}
_ESCONV = [*(f"bleu_{n}" for n in (1, 2, 3, 4)), *(f"distinct_{n}" for n in (1, 2, 3)), "rouge_l", "f1", "words"]
_OF_REPLIES = {"distinct_1", "distinct_2", "distinct_3", "words"}
_LOWER = "lower-cased nltk word_tokenize"
_SPACED = "cased tokens between spaces"


def esconv(replies: Sequence[str], references: Sequence[str], path: Path | None) -> Metrics:
    """The script's BLEU, Distinct, ROUGE-L, F1, length and extrema; not METEOR and CIDEr, which other programs count."""
    if not has_data("tokenizers/punkt_tab/english"):
        names = [f"esconv_{name}" for name in [*_ESCONV, "extrema"]]
        return Metrics(left_out=dict.fromkeys(names, "nltk's data tokenizers/punkt_tab is not installed"))
    one, two = [_tokens(text) for text in replies], [_tokens(text) for text in references]
    matched = [_shares(x, y) for x, y in zip(one, two, strict=True)]
    counts = _bleu_counts(one, two)
    smoothed = "zero counts smoothed by nltk's method 3"
    found: list[tuple[str, str, Measure]] = [
        *((f"bleu_{n}", f"Corpus BLEU-{n} of {_LOWER}, {smoothed}.", Sums(counts, partial(_bleu, n))) for n in (1, 2, 3, 4)),
        *(
            (f"distinct_{n}", f"Distinct-{n} of {_LOWER}, without the last {n}-gram of each reply.", _cut(one, n))
            for n in (1, 2, 3)
        ),
        (
            "rouge_l",
            f"Mean F of the longest common subsequence with beta 1.2, {_LOWER}.",
            mean([x for x, _ in matched], replies),
        ),
        ("f1", f"Mean F1 of shared unigrams, {_LOWER}.", mean([x for _, x in matched], replies)),
        ("words", f"Mean number of tokens, {_LOWER}.", variety.count_mean([len(tokens) for tokens in one])),
    ]
    if path is None:
        return Metrics(_metrics("esconv", found), {"esconv_extrema": vectors.NO_VECTORS})
    # nlg-eval tokenises the tokens of infer.py, joined by spaces, once more
    again = [[nltk.word_tokenize(" ".join(tokens)) for tokens in side] for side in (one, two)]
    known = vectors.read(path, {word for side in again for tokens in side for word in tokens})
    scores = vectors.extrema_cosines(again[0], again[1], lambda word: known.of.get(word, known.mean), _nlg_extreme)
    text = f"Mean cosine of vector extrema ({path.name}), {_LOWER}; an unknown word has the mean vector of the whole file."
    found.append(("extrema", text, mean(scores, replies)))
    return Metrics(_metrics("esconv", found))


def _metrics(source: str, found: Sequence[tuple[str, str, Measure]]) -> list[Metric]:
    return [Metric(f"{source}_{name}", text, measure, name in _OF_REPLIES) for name, text, measure in found]


def _tokens(text: str) -> list[str]:
    return list(nltk.word_tokenize(text.lower()))


def _cut(replies: Sequence[list[str]], n: int) -> variety.Distinct:
    return variety.distinct_of([tokens[:-1] for tokens in replies], n)


def _shares(reply: list[str], reference: list[str]) -> tuple[float, float]:
    """ROUGE-L with beta 1.2, and F1 of unigrams."""
    sizes, beta = (max(len(reply), 1), max(len(reference), 1)), 1.2**2
    precision, recall = (overlap.lcs(reply, reference) / size for size in sizes)
    rouge = (1 + beta) * precision * recall / (recall + beta * precision) if precision else 0.0
    shared = (Counter(reply) & Counter(reference)).total()
    return rouge, 2 * shared / sum(sizes)


def _bleu_counts(replies: Sequence[list[str]], references: Sequence[list[str]]) -> Floats:
    """Lengths, matched and all n-grams of each reply, (replies, 10); nltk counts one n-gram for a reply too short for any."""
    rows = []
    for reply, reference in zip(replies, references, strict=True):
        found = [modified_precision([reference], reply, n) for n in (1, 2, 3, 4)]
        rows.append([len(reply), len(reference), *(x.numerator for x in found), *(x.denominator for x in found)])
    return np.array(rows, dtype=float).reshape(-1, 10)


def _bleu(order: int, sums: Floats) -> Floats:
    """The corpus_bleu of nltk with smoothing method 3 (Chen & Cherry 2014), (draws, 10) to (draws,); nan if nothing is said."""
    reply, reference, matched, total = sums[:, 0], sums[:, 1], sums[:, 2 : 2 + order], sums[:, 6 : 6 + order]
    length = np.where(reply == 0, np.nan, reply)
    zeros = (matched == 0).cumsum(1)
    shares = np.where(matched == 0, 0.5**zeros, matched) / np.where(total == 0, np.nan, total)
    brevity = np.exp(np.minimum(0, 1 - reference / length))
    return np.asarray(np.where(np.isnan(length) | (matched[:, 0] > 0), brevity * np.exp(np.log(shares).mean(1)), 0))


def _nlg_extreme(rows: Floats) -> Floats:
    """nlg-eval's extreme: as Forgues et al.'s, but 0 where the smallest value is exactly 0."""
    high, low = rows.max(0), rows.min(0)
    return np.asarray(np.where((low > 0) | ((low < 0) & (high > -low)), high, low))


def pesc(replies: Sequence[str], references: Sequence[str], path: Path | None, g_scores: Sequence[float] | None) -> Metrics:
    """The shared task's figures and weighted total, as far as data, vectors and a judge's ratings are there."""
    one, two = [text.split() for text in replies], [text.split() for text in references]
    smooth = SmoothingFunction().method1
    bleu = [float(sentence_bleu([y], x, smoothing_function=smooth)) for x, y in zip(one, two, strict=True)]
    rouge = overlap.rouge(replies, references, stem=True)
    found: dict[str, tuple[str, Measure]] = {
        "bleu_4": (f"Mean sentence BLEU-4 of {_SPACED}, zero counts smoothed by nltk's method 1.", mean(bleu, replies)),
        "rouge_l": (rouge.definition, rouge.measure),
    }
    lowered = [text.lower().split() for text in replies]
    for n in (2, 3):
        found[f"distinct_{n}"] = f"Distinct-{n} of lower-cased tokens between spaces.", variety.distinct_of(lowered, n)
    left_out = {}
    if has_data("corpora/wordnet"):
        scores = overlap.meteor_scores(one, two, nltk.corpus.wordnet)
        found["meteor"] = "Mean METEOR (nltk) of tokens between spaces.", mean(scores, replies)
    else:
        left_out["meteor"] = overlap.NO_WORDNET
    if path is None:
        left_out["extrema"] = vectors.NO_VECTORS
    else:
        known = vectors.read(path, {word for tokens in [*one, *two] for word in tokens}).of
        text = (
            f"Mean cosine of the largest (not extreme) values of word vectors ({path.name}), {_SPACED}, unknown ones left out; "
            "two zero vectors give 1."
        )
        scores = vectors.extrema_cosines(one, two, known.get, lambda rows: rows.max(0), both_zero=1.0)
        found["extrema"] = text, mean(scores, replies)
    if g_scores is None:
        left_out["g_score"] = "no judge has rated the replies beside the human ones (judge=task8)"
    else:
        text = (
            "Mean over replies of the judge's rating from 1 to 5, with the human reply shown, over 5. The task's judge was "
            "gpt-4o-mini, asked for the same in other words: compare with published scores with care."
        )
        found["g_score"] = text, mean([x / 5 for x in g_scores], replies)
    if left_out:
        left_out["total"] = f"it needs {', '.join(left_out)}"
    else:
        total = Total({name: found[name][1] for name in _WEIGHTS})
        text = (
            "Weighted sum: 0.2 each METEOR, BLEU-4 and ROUGE-L, 0.1 each extrema, Distinct-2, Distinct-3 and G-Score: "
            "as comparable with published totals as the judge of the G-Score is."
        )
        found["total"] = text, total
    return Metrics(
        _metrics("pesc", [(name, *rest) for name, rest in found.items()]), {f"pesc_{k}": text for k, text in left_out.items()}
    )


@dataclass(frozen=True)
class Total:
    """The shared task's weighted sum of seven figures."""

    parts: dict[str, Measure]
    repeats: bool = False

    def value(self, indices: Indices) -> float:
        """See ``statistics.Measure``."""
        return float(sum(_WEIGHTS[name] * part.value(indices) for name, part in self.parts.items()))
