"""All automatic metrics of some replies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from esupport.evaluation.metrics import overlap, published, variety, vectors
from esupport.evaluation.metrics.base import Metrics, cleaned


def prepare(
    replies: Sequence[str],
    references: Sequence[str],
    tokens: Sequence[int | None] | None = None,
    word_vectors: Path | None = None,
    bertscore: str | None = None,
    g_scores: Sequence[float] | None = None,
) -> Metrics:
    """All metrics of the replies of one or several systems, one after the other; see ``statistics.interval`` and ``compare``.

    Args:
        replies: what the systems said, (replies,).
        references: what the human supporter said there, (replies,).
        tokens: length of each reply in the model's tokens, (replies,).
        word_vectors: a file in word2vec's or GloVe's text format, for vector extrema.
        bertscore: name or folder of BERTScore's model; it is loaded as transformers does, so a name may download it.
        g_scores: a judge's rating of each reply beside the human's, 1 to 5 or nan, (replies,): NLPCC 2025 shared task 8.

    Raises ``UserError`` where the vectors or the model cannot be read, ``ValueError`` where lengths differ.
    """
    if len({len(x) for x in (replies, references, tokens, g_scores) if x is not None}) > 1:
        raise ValueError("replies, references, tokens and g_scores differ in length")
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
        published.pesc(said, human, word_vectors, g_scores),
    ):
        metrics.found.extend(part.found)
        metrics.left_out.update(part.left_out)
    return metrics
