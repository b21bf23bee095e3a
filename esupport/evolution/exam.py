"""What M_0, M_1, ... are compared on: a held-out set that is fixed before round 1, the same requests and seeds for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from esupport.config.schema_evolve import Drift
from esupport.data.conversation import Conversation
from esupport.data.preference import Context
from esupport.evaluation.likelihood import nll, per_conversation
from esupport.evaluation.metrics.variety import distinct_n
from esupport.evaluation.replies import repetition, words
from esupport.evolution.writing import Writer
from esupport.generators.protocol import HELD_OUT, Reply, Sampling, reply_request
from esupport.objectives.reference import Scorer
from esupport.rendering.contexts import reply_row
from esupport.rendering.corpus import Corpus
from esupport.rendering.row import Row
from esupport.rendering.rows import Rows
from esupport.rendering.template import Renderer


@dataclass
class Exam:
    """Measures systems on the held-out side.

    Args:
        held_out: conversations whose replies' likelihood is measured.
        contexts: held-out contexts to which each system replies, with their conversations.
        sampling: of these replies.
        seed: of the sampling.
        renderer, writer, scorer: of the run.
        drift: bounds beyond which replies are said to drift; ``conf/evolve.yaml`` tells each.

    Attributes:
        replies: by system, in the order of the contexts.
    """

    held_out: Corpus
    contexts: Sequence[tuple[Context, Conversation]]
    sampling: Sampling
    seed: int
    renderer: Renderer
    writer: Writer
    scorer: Scorer
    drift: Drift
    replies: dict[str, list[Reply]] = field(default_factory=dict)

    def take(self, system: str, round_: int, adapter: Path, start: Path | None, first: Path) -> dict[str, Any]:
        """The figures of one system; ``start`` is what its round started from, ``first`` M_0's adapter."""
        scores, stage = self.scorer.scores(self.held_out.rows, adapter)
        self.writer.ledger.add(stage, round_, f"{system}/held-out likelihood", self.writer.ledger.keys("data", system))
        value, interval = nll(*per_conversation(self.held_out.units, scores))
        replies = self._write(system, round_, adapter)
        texts = [reply.text for reply in replies]
        figures = {
            "system": system,
            "round": round_,
            "nll": value,
            "nll_interval": list(interval),
            "perplexity": math.exp(value),
            "replies": len(replies),
            "reply_tokens": float(np.mean([reply.tokens for reply in replies])) if replies else None,
            "length_ratio": _length_ratio(texts, [reply.text for reply in self.replies["M0"]]),
            "distinct_2": distinct_n(texts, 2),
            "repetition": float(np.mean([repetition(text) for text in texts])) if texts else None,
            "unfinished": float(np.mean([not reply.finished for reply in replies])) if replies else None,
            "kl_start": self._kl(round_, replies, adapter, start) if start else None,
            "kl_sft": self._kl(round_, replies, adapter, first) if start else 0.0,
        }
        return figures | {"warnings": self._warnings(figures)}

    def _write(self, system: str, round_: int, adapter: Path) -> list[Reply]:
        requests = [reply_request(c, self.renderer, self.sampling, self.seed, HELD_OUT) for c, _ in self.contexts]
        self.replies[system] = self.writer.ask("replies", round_, requests, "policy", adapter)
        return self.replies[system]

    def _kl(self, round_: int, replies: Sequence[Reply], adapter: Path, other: Path) -> float | None:
        """Mean log-ratio a token of the system's own replies: an estimate of KL(system || other).

        The replies are sampled as they are shown (with a temperature and a nucleus), so it leans towards likely tokens.
        """
        rows = Rows.of(self._rows(replies))
        if not rows:
            return None
        own, stage = self.scorer.scores(rows, adapter)
        made_from = self.writer.ledger.keys(f"round-{round_}/replies")
        self.writer.ledger.add(stage, round_, "likelihood of own replies", made_from)
        others, stage = self.scorer.scores(rows, other)
        self.writer.ledger.add(stage, round_, "likelihood of own replies, before", made_from)
        return float((np.concatenate(own) - np.concatenate(others)).sum() / sum(len(row.targets) for row in rows))

    def _rows(self, replies: Sequence[Reply]) -> list[Row]:
        return [
            reply_row(context, reply.text, self.renderer)
            for (context, _), reply in zip(self.contexts, replies, strict=True)
            if reply.text and reply.finished  # an end the model did not write would be scored
        ]

    def _warnings(self, figures: dict[str, Any]) -> list[str]:
        drift, found = self.drift, []
        ratio = figures["length_ratio"]
        if drift.length_ratio is not None and ratio is not None and not 1 / drift.length_ratio <= ratio <= drift.length_ratio:
            found.append(f"replies are {ratio:.2f} times as long as M0's")
        for name, text in (
            ("repetition", "{:.0%} of word trigrams are repeated within a reply"),
            ("unfinished", "{:.0%} of replies do not end"),
        ):
            bound = getattr(drift, name)
            if bound is not None and figures[name] is not None and figures[name] > bound:
                found.append(text.format(figures[name]))
        if drift.kl is not None and figures["kl_sft"] is not None and figures["kl_sft"] > drift.kl:
            found.append(f"{figures['kl_sft']:.2f} nats a token away from M0")
        return found


def _length_ratio(texts: Sequence[str], at_first: Sequence[str]) -> float | None:
    """Words of ``texts`` for each of M_0's to the same contexts; 0 where a system has fallen silent, None where M_0 has."""
    then = sum(len(words(text)) for text in at_first)
    return sum(len(words(text)) for text in texts) / then if then else None
