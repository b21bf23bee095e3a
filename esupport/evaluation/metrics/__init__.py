"""Automatic metrics of replies against the human ones, prepared once and then valued on any resample of the replies.

Shares and similarities are fractions (BLEU 0.12, not 12). Where published figures rest on other definitions, these are there
under their own names: ``esconv_...`` as in Liu et al. 2021 (thu-coai), ``pesc_...`` as in NLPCC 2025 shared task 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from esupport.evaluation.metrics import overlap, published, variety, vectors
from esupport.evaluation.metrics.base import Metric, Metrics, cleaned

__all__ = ["Metric", "Metrics", "prepare"]


def prepare(
    replies: Sequence[str],
    references: Sequence[str],
    tokens: Sequence[int | None] | None = None,
    word_vectors: Path | None = None,
    bertscore: str | None = None,
    ratings: Sequence[float] | None = None,
) -> Metrics:
    """All metrics of the replies of one or several systems, one after the other; see ``statistics.interval`` and ``compare``.

    Args:
        replies: what the systems said, (replies,).
        references: what the human supporter said there, (replies,).
        tokens: length of each reply in the model's tokens, (replies,).
        word_vectors: a file in word2vec's or GloVe's text format, for vector extrema.
        bertscore: name or folder of BERTScore's model; it is loaded as transformers does, so a name may download it.
        ratings: a judge's 1 to 5 of each reply, (replies,), in the place of the G-Score of NLPCC 2025 task 8.

    Raises ``UserError`` where the vectors or the model cannot be read, ``ValueError`` where lengths differ.
    """
    if len({len(x) for x in (replies, references, tokens, ratings) if x is not None}) > 1:
        raise ValueError("replies, references, tokens and ratings differ in length")
    said, human = cleaned(replies), cleaned(references)
    metrics = Metrics(
        [
            *overlap.bleu(said, human),
            overlap.rouge(said, human),
            *variety.distinct(said),
            *variety.length(said, tokens),
        ]
    )
    for part in (
        overlap.meteor(said, human),
        vectors.similarity(said, human),
        vectors.bert(said, human, bertscore),
        vectors.extrema(said, human, word_vectors),
        published.esconv(said, human, word_vectors),
        published.pesc(said, human, word_vectors, ratings),
    ):
        metrics.found.extend(part.found)
        metrics.left_out.update(part.left_out)
    return metrics
