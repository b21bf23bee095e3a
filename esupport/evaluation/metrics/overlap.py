"""Words shared with the human reply: BLEU (Papineni et al. 2002), ROUGE-L (Lin 2004), METEOR (Banerjee & Lavie 2005)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import nltk
import numpy as np
from nltk.translate.meteor_score import meteor_score
from rouge_score.scoring import fmeasure
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.metrics.bleu import BLEU

from esupport.evaluation.metrics.base import Metric, Metrics, has_data, mean
from esupport.evaluation.replies import words
from esupport.evaluation.statistics import Floats, Sums

NO_WORDNET = "nltk's data corpora/wordnet is not installed"


def bleu(replies: Sequence[str], references: Sequence[str]) -> list[Metric]:
    """BLEU-1 to BLEU-4 as sacrebleu has them."""
    scorer = BLEU(effective_order=True)  # only silences a warning: the counts are the same
    scores = [scorer.sentence_score(reply, [reference]) for reply, reference in zip(replies, references, strict=True)]
    counts = np.array([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scores], dtype=float).reshape(-1, 10)

    text = "Corpus BLEU of 1- to {n}-grams with brevity penalty (sacrebleu: 13a tokens, cased, zero counts smoothed by exp)."
    return [Metric(f"bleu_{n}", text.format(n=n), Sums(counts, partial(_bleu, n))) for n in (1, 2, 3, 4)]


def _bleu(order: int, sums: Floats) -> Floats:
    return np.array([_of_counts(order, row) for row in sums])


def _of_counts(order: int, sums: Floats) -> float:
    if sums[0] == 0:
        return np.nan
    matched, total = list(sums[2 : 2 + order]), list(sums[6 : 6 + order])
    score = BLEU.compute_bleu(matched, total, int(sums[0]), int(sums[1]), "exp", max_ngram_order=order)
    return float(score.score) / 100


def rouge(replies: Sequence[str], references: Sequence[str], stem: bool = False) -> Metric:
    """ROUGE-L as rouge-score has it; ``stem`` with Porter's stems."""
    tokenizer = DefaultTokenizer(use_stemmer=stem)
    scores = []
    for reply, reference in zip(replies, references, strict=True):
        one, two = tokenizer.tokenize(reply), tokenizer.tokenize(reference)
        common = lcs(one, two)
        scores.append(fmeasure(common / max(len(one), 1), common / max(len(two), 1)))
    form = "Porter stems" if stem else "no stemming"
    return Metric(
        "rouge_l",
        f"Mean F1 of the longest common subsequence (rouge-score: lower-cased runs of a-z and 0-9, {form}).",
        mean(scores, replies),
    )


def lcs(one: Sequence[str], two: Sequence[str]) -> int:
    """Length of the longest common subsequence, a word of bits at a time (Hyyrö 2004): rouge-score's table of two texts of
    10,000 words would take 800 MB.
    """
    places: dict[str, int] = {}
    for i, token in enumerate(one):
        places[token] = places.get(token, 0) | 1 << i
    full = (1 << len(one)) - 1
    left = full
    for token in two:
        met = left & places.get(token, 0)
        left = (left + met | left - met) & full
    return len(one) - left.bit_count()


def meteor(replies: Sequence[str], references: Sequence[str]) -> Metrics:
    """METEOR as nltk has it, where WordNet is installed."""
    if not has_data("corpora/wordnet"):
        return Metrics(left_out={"meteor": NO_WORDNET})
    scores = meteor_scores([words(text) for text in replies], [words(text) for text in references], nltk.corpus.wordnet)
    text = "Mean METEOR (nltk: exact, stem and WordNet matches, alpha 0.9, beta 3, gamma 0.5) of lower-cased words and marks."
    return Metrics([Metric("meteor", text, mean(scores, replies))])


def meteor_scores(replies: Sequence[list[str]], references: Sequence[list[str]], wordnet: Any) -> list[float]:
    """Nltk's METEOR of each reply, given as tokens; ``wordnet`` is what has ``synsets(word)``."""
    pairs = zip(replies, references, strict=True)
    return [float(meteor_score([two], one, wordnet=wordnet)) for one, two in pairs]
