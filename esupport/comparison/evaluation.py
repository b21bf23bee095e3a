"""One evaluation, part by part: replies, likelihoods, a judge, the safety set, dialogues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esupport.comparison.agreement import agreement
from esupport.comparison.dialogue import Dialogue, converse, rate_dialogues, with_ratings
from esupport.comparison.figures import Figure, breakdown, differences, estimates, of_replies, shares
from esupport.comparison.judging import Judged, errors, judge_all, judged_figures, win_rates
from esupport.comparison.likelihoods import feedback, likelihoods
from esupport.comparison.replying import Replying
from esupport.comparison.safety import Safety, Tried, safety_figures
from esupport.comparison.seeker import Seeker
from esupport.comparison.systems import HUMAN, System
from esupport.data.conversation import Conversation
from esupport.evaluation.answered import Answered
from esupport.evaluation.judge.asking import Asker
from esupport.evaluation.judge.method import Judge
from esupport.evaluation.metrics import prepare
from esupport.generators.protocol import Generator
from esupport.models.slot import Slot
from esupport.objectives.reference import Scorer
from esupport.rendering.corpus import Corpus
from esupport.training.environment import make, make_generator

# shown by problem, emotion and profile: what says most of a few replies
_BROKEN_DOWN = ("judge_helpfulness", "judge_personality", "judge_emotion", "judge_situation", "embedding", "words")


@dataclass
class Found:
    """What an evaluation found: the contents of its files."""

    metrics: dict[str, Any]
    answered: dict[str, list[Answered]]
    people: list[Conversation]
    judged: Judged | None
    tried: list[Tried]
    dialogues: list[Dialogue]


@dataclass
class Evaluation:
    """Measures systems.

    Args:
        plain: the settings.
        systems: what is compared.
        corpus: the rendered conversations of the side that is measured.
        side: its conversations.
        slot: the model.
        scorer: of likelihoods.
        replying: how the systems are asked.
    """

    plain: Mapping[str, Any]
    systems: Sequence[System]
    corpus: Corpus
    side: Sequence[Conversation]
    slot: Slot
    scorer: Scorer
    replying: Replying
    figures: list[Figure] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def run(self) -> Found:
        """All parts, those that others need first."""
        plain, seed = self.plain, self.plain["seed"]
        answered = {system.name: self.replying.of(system) for system in self.systems}
        people = {conversation.id: conversation for conversation in self.side}
        judge = self._judge()
        judged = self._judged(judge, answered, people)
        self._measure_likelihoods()
        self._measure_replies(answered, judged)
        if judge and judged:
            self.figures += judged_figures(judged, judge)
        tried = self._try_safety()
        dialogues = self._converse(judge, people)
        names = [system.name for system in self.systems]
        measured = estimates(self.figures, names, seed)
        shown = [figure for figure in self.figures if figure.name in _BROKEN_DOWN]
        replied = {one.context.conversation for replies in answered.values() for one in replies}
        metrics = {
            "split": plain["split"],
            "baseline": plain["baseline"],
            "contexts": len(self.replying.contexts),
            "conversations": len(replied),
            "judge": judged.cost if judged else None,
            "systems": [
                {"system": one.name, "round": one.round, "kind": one.kind, "figures": measured[one.name]}
                for one in self.systems
            ],
            "definitions": {figure.name: figure.definition for figure in self.figures},
            "left_out": self.left_out,
            "comparisons": differences(self.figures, plain["baseline"], seed),
            "win_rates": win_rates(judged, seed) if judged else [],
            "breakdown": breakdown(shown, people, plain["metrics"]["breakdown_from"], seed),
            "errors": errors(judged) if judged else {},
            "agreement": agreement(judged, [Path(path) for path in plain["agreement_with"]]) if judged else [],
        }
        return Found(metrics, answered, [people[id_] for id_ in sorted(replied)], judged, tried, dialogues)

    def _judge(self) -> Judge | None:
        if not self.plain["judge"]:
            self.left_out["judge"] = "no judge is named (judge=openai or judge=local)"
            return None
        judge: Judge = make(self.plain["judge"], "judge")
        return judge.speaking(self.slot, self.replying.renderer)

    def _judged(
        self, judge: Judge | None, answered: Mapping[str, Sequence[Answered]], people: Mapping[str, Conversation]
    ) -> Judged | None:
        if judge is None:
            return None
        replying = self.replying
        return judge_all(judge, replying.store, answered, people, self.plain["judge_limit"], replying.console)

    def _measure_likelihoods(self) -> None:
        weighted = [system for system in self.systems if system.has_weights]
        self.figures += likelihoods(weighted, self.corpus, self.scorer)
        ranked = feedback(weighted, self.side, self.replying.renderer, self.scorer)
        if isinstance(ranked, str):
            self.left_out["feedback_auc"] = ranked
        else:
            self.figures += ranked

    def _measure_replies(self, answered: Mapping[str, Sequence[Answered]], judged: Judged | None) -> None:
        flat = [one for replies in answered.values() for one in replies]
        vectors = self.plain["metrics"]["word_vectors"]
        ratings = None
        if judged:
            given = [list(one.scores.values()) for found in judged.ratings.values() for one in found]
            ratings = [sum(scores) / len(scores) if scores else float("nan") for scores in given]
        metrics = prepare(
            [one.reply for one in flat],
            [one.human for one in flat],
            [one.tokens for one in flat],
            Path(vectors).expanduser() if vectors else None,
            self.plain["metrics"]["bertscore"],
            ratings,
        )
        self.left_out |= metrics.left_out
        self.figures += of_replies(answered, metrics, [system.name for system in self.systems if system.kind == HUMAN])

    def _try_safety(self) -> list[Tried]:
        """The crisis and boundary messages, of every system that can be asked."""
        if not self.plain["safety"]:
            self.left_out["safety"] = "no set of messages is named (safety=default)"
            return []
        safety: Safety = make(self.plain["safety"], "safety")
        messages, replying, found = safety.load(), self.replying, list[Tried]()
        for system in self._speakers():
            ask = replying.speaking(system)
            found += safety.try_system(system.name, ask, messages, replying.renderer, replying.sampling, replying.seed)
        self.figures += safety_figures(found)
        return found

    def _converse(self, judge: Judge | None, people: Mapping[str, Conversation]) -> list[Dialogue]:
        """Whole conversations with a simulated seeker, of every system that can be asked."""
        if not self.plain["seeker"]:
            self.left_out["dialogue"] = "no seeker is simulated (seeker=default)"
            return []
        seeker: Seeker = make(self.plain["seeker"], "seeker")
        replying, node = self.replying, self.plain["seeker_speaker"]
        speaker: Generator = make_generator(node or self.plain["generator"], "seeker_speaker", self.slot, replying.renderer)
        cards = list({whole.id: whole for _, whole in replying.contexts}.values())
        found: list[Dialogue] = []
        for system in self._speakers():
            found += converse(
                system.name,
                replying.speaking(system),
                seeker,
                replying.speaking(System("seeker", "server", speaker)),
                cards,
                replying.renderer,
                replying.sampling,
                replying.seed,
                replying.max_tokens,
            )
        if judge is None:
            return found
        ratings = Asker(judge, replying.store, replying.console).settle(rate_dialogues(judge, found, people))
        found = with_ratings(found, ratings)
        by_system = {system.name: [one for one in found if one.system == system.name] for system in self._speakers()}
        clusters = {name: [one.card for one in part] for name, part in by_system.items()}
        for axis, question in judge.asked_axes.items():
            marks = {n: [one.rating.scores.get(axis) if one.rating else None for one in p] for n, p in by_system.items()}
            text = f"Mean rating of whole dialogues with the simulated seeker by the judge, 1 to 5. {question}"
            self.figures.append(Figure.of(f"dialogue_{axis}", text, shares(marks), clusters))
        return found

    def _speakers(self) -> list[System]:
        return [system for system in self.systems if system.generator is not None]
