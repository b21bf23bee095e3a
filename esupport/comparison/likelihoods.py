"""What systems with weights think of the human replies: likelihood, and whether it ranks them as the seekers did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from esupport.comparison.figures import Figure
from esupport.comparison.systems import System
from esupport.data.conversation import Conversation
from esupport.evaluation.feedback import HIGH, LOW, Auc, rated_turns
from esupport.evaluation.likelihood import nll_of, per_conversation, perplexity_of
from esupport.objectives.reference import Scorer
from esupport.rendering.contexts import context_of, reply_row
from esupport.rendering.corpus import Corpus
from esupport.rendering.row import Row
from esupport.rendering.rows import Rows
from esupport.rendering.template import Renderer


def likelihoods(systems: Sequence[System], corpus: Corpus, scorer: Scorer) -> list[Figure]:
    """Negative log-likelihood per token of all human replies of ``corpus``, and perplexity."""
    names = [conversation.id for conversation in corpus.kept]
    scores = [per_conversation(corpus.units, scorer.scores(corpus.rows, system.adapter)[0]) for system in systems]
    if not scores:
        return []
    sums, counts = (np.concatenate(part) for part in zip(*scores, strict=True))
    clusters = {system.name: names for system in systems}
    text = "of the human replies, end of turn included, teacher-forced, over all their tokens."
    return [
        Figure.of("nll", f"Negative log-likelihood in nats a token {text}", nll_of(sums, counts), clusters),
        replace(Figure.of("perplexity", f"Perplexity {text}", perplexity_of(sums, counts), clusters), restates=True),
    ]


def feedback(
    systems: Sequence[System], conversations: Sequence[Conversation], renderer: Renderer, scorer: Scorer
) -> list[Figure] | str:
    """How well each adapter's log-ratio to the base, a token, ranks replies rated high over replies rated low; or why not."""
    adapted = [system for system in systems if system.adapter]
    if not adapted:
        return "there is no adapter to compare with the base"
    kept, rows = [], list[Row]()
    for one in rated_turns(conversations):
        context = context_of(one.conversation, one.turn, renderer, renderer.max_tokens)
        if context is not None:
            kept.append(one)
            rows.append(reply_row(context, one.conversation.turns[one.turn].text, renderer))
    if len({one.high for one in kept}) < 2:
        return "the data has no ratings by seekers (feedback), or only high or only low ones"
    lengths = np.array([len(row.targets) for row in rows])
    whole = Rows.of(rows)
    base = np.concatenate(scorer.scores(whole, None)[0])
    ratios = [(np.concatenate(scorer.scores(whole, system.adapter)[0]) - base) / lengths for system in adapted]
    high = np.array([one.high for one in kept] * len(adapted), dtype=np.intp)
    clusters = {system.name: [one.conversation.id for one in kept] for system in adapted}
    text = (
        f"How often the log-probability ratio to the base, a token, of a human reply that the seeker rated {HIGH} or 5 is "
        f"above that of one rated 1 or {LOW}; chance is 0.5."
    )
    return [Figure.of("feedback_auc", text, Auc(np.concatenate(ratios).astype(float), high), clusters)]
