"""One evaluation, part by part: replies, likelihoods, a judge, the safety set, dialogues."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esupport.comparison.agreement import agreement
from esupport.comparison.dialogue import Dialogue, converse
from esupport.comparison.figures import Figure, breakdown, differences, estimates, of_replies
from esupport.comparison.judging import Judged, dialogue_figures, errors, judge_all, judge_dialogues, judged_figures
from esupport.comparison.likelihoods import feedback, likelihoods
from esupport.comparison.replying import Replies, Replying
from esupport.comparison.safety import Message, Safety, Tried, safety_figures
from esupport.comparison.seeker import Seeker
from esupport.comparison.systems import HUMAN, System
from esupport.comparison.winning import win_rates
from esupport.data.conversation import Conversation
from esupport.evaluation.answered import Answered
from esupport.evaluation.judge.method import Judge
from esupport.evaluation.judge.quoting import person
from esupport.evaluation.metrics.prepared import prepare
from esupport.generators.protocol import Generator
from esupport.models.slot import Slot
from esupport.objectives.reference import Scorer
from esupport.rendering.contexts import spread_turns
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
        """All parts; what the user may have set wrongly is made before anything is written."""
        plain, seed = self.plain, self.plain["seed"]
        judge, safety, seeker = self._judge(), self._safety(), self._seeker()
        answered = {system.name: self.replying.of(system) for system in self.systems}
        people = {conversation.id: conversation for conversation in self.side}
        judged = self._judged(judge, answered, people)
        self._measure_likelihoods()
        self._measure_replies(answered, judged)
        if judge and judged:
            self.figures += judged_figures(judged, judge)
        tried = self._try(*safety) if safety else []
        dialogues = self._converse(seeker, judge, judged, people) if seeker else []
        names = [system.name for system in self.systems]
        measured = estimates(self.figures, names, seed)
        shown = [figure for figure in self.figures if figure.name in _BROKEN_DOWN]
        replied = {one.context.conversation for replies in answered.values() for one in replies}
        metrics = {
            "name": plain["name"],
            "split": plain["split"],
            "baseline": plain["baseline"],
            "contexts": len(self.replying.contexts),
            "conversations": len(replied),
            "judge": judged.told() if judged else None,
            "systems": [
                {"system": one.name, "round": one.round, "kind": one.kind, "figures": measured[one.name]}
                for one in self.systems
            ],
            "definitions": {figure.name: figure.definition for figure in self.figures},
            "left_out": self.left_out,
            "cut": self._cut(),
            "comparisons": differences(self.figures, plain["baseline"], seed),
            "win_rates": win_rates(judged, seed) if judged else [],
            "breakdown": breakdown(shown, people, plain["metrics"]["breakdown_from"], seed),
            "errors": errors(judged) if judged else {},
            "agreement": agreement(judged, [Path(path) for path in plain["agreement_with"]]) if judged else [],
        }
        return Found(metrics, answered, [people[id_] for id_ in sorted(replied)], judged, tried, dialogues)

    def _cut(self) -> dict[str, int]:
        """What of the side is not measured, or not whole: contexts that do not fit, and what rendering had to leave out."""
        chosen, contexts, corpus = self.plain["contexts"], [context for context, _ in self.replying.contexts], self.corpus
        asked = spread_turns(corpus.kept, chosen["conversations"], chosen["per_conversation"])
        return {
            "contexts_left_out": sum(1 for _ in asked) - len(contexts),
            "turns_cut_of_contexts": sum(context.turn - len(context.turns) for context in contexts),
            "conversations_dropped": corpus.dropped,
            "replies_lost": corpus.lost_replies,
            "turns_cut": corpus.cut_turns,
            "faults": len(corpus.skipped),
        }

    def _judge(self) -> Judge | None:
        if not self.plain["judge"]:
            self.left_out["judge"] = "no judge is named (judge=openai or judge=local)"
            return None
        judge: Judge = make(self.plain["judge"], "judge")
        return judge.speaking(self.slot, self.replying.manner.renderer)

    def _judged(
        self, judge: Judge | None, answered: Mapping[str, Sequence[Answered]], people: Mapping[str, Conversation]
    ) -> Judged | None:
        if judge is None:
            return None
        replying = self.replying
        if replying.history == "own" and len(answered) > 1:
            self.left_out["win_rates"] = "on their own histories, systems reply to different contexts"
        return judge_all(judge, replying.store, answered, people, self.plain["judge_limit"], replying.console)

    def _measure_likelihoods(self) -> None:
        weighted = [system for system in self.systems if system.has_weights]
        self.figures += likelihoods(weighted, self.corpus, self.scorer)
        ranked = feedback(weighted, self.corpus.kept, self.replying.manner.renderer, self.scorer)
        if isinstance(ranked, str):
            self.left_out["feedback_auc"] = ranked
        else:
            self.figures += ranked

    def _measure_replies(self, answered: Mapping[str, Sequence[Answered]], judged: Judged | None) -> None:
        flat = [one for replies in answered.values() for one in replies]
        vectors = self.plain["metrics"]["word_vectors"]
        grades = None
        if judged and any(judged.grades.values()):
            given = {(one.system, one.conversation, one.turn): one.scores for of in judged.grades.values() for one in of}
            keys = ((one.system, one.context.conversation, one.context.turn) for one in flat)
            grades = [given.get(key, {}).get("g_score", math.nan) for key in keys]
        metrics = prepare(
            [one.reply for one in flat],
            [one.human for one in flat],
            [one.tokens for one in flat],
            Path(vectors).expanduser() if vectors else None,
            self.plain["metrics"]["bertscore"],
            grades,
        )
        self.left_out |= metrics.left_out
        self.figures += of_replies(answered, metrics, [system.name for system in self.systems if system.kind == HUMAN])

    def _safety(self) -> tuple[Safety, list[Message]] | None:
        if not self.plain["safety"]:
            self.left_out["safety"] = "no set of messages is named (safety=default)"
            return None
        safety: Safety = make(self.plain["safety"], "safety")
        return safety, safety.load()

    def _try(self, safety: Safety, messages: Sequence[Message]) -> list[Tried]:
        """The crisis and boundary messages, of every system that can be asked."""
        replying, found = self.replying, list[Tried]()
        for system in self._speakers():
            found += safety.try_system(system.name, replying.speaking(system), messages, replying.manner)
        self.figures += safety_figures(found)
        for system in self.systems:
            if system.file:
                self.left_out[f"safety of {system.name}"] = "its replies were written elsewhere: read that evaluation's"
        return found

    def _seeker(self) -> tuple[Seeker, Replies, list[Conversation]] | None:
        """The simulated seeker, who plays it, and the cards."""
        cards = [whole for whole in {whole.id: whole for _, whole in self.replying.contexts}.values() if person(whole)]
        if not self.plain["seeker"]:
            self.left_out["dialogue"] = "no seeker is simulated (seeker=default)"
        elif not cards:
            self.left_out["dialogue"] = "the data tells nothing of the seekers that could be played"
        else:
            node = self.plain["seeker_speaker"]
            named = ("seeker_speaker", node) if node else ("generator", self.plain["generator"])
            speaker: Generator = make_generator(named[1], named[0], self.slot, self.replying.manner.renderer)
            seeker: Seeker = make(self.plain["seeker"], "seeker")
            return seeker, self.replying.speaking(System("seeker", "server", speaker)), cards
        return None

    def _converse(
        self,
        played: tuple[Seeker, Replies, list[Conversation]],
        judge: Judge | None,
        judged: Judged | None,
        people: Mapping[str, Conversation],
    ) -> list[Dialogue]:
        """Whole conversations with a simulated seeker, of every system that can be asked."""
        seeker, speak, cards = played
        replying, found = self.replying, dict[str, list[Dialogue]]()
        for system in self._speakers():
            replies = replying.speaking(system)
            found[system.name] = converse(system.name, replies, seeker, speak, cards, replying.manner)
        if judge is None or judged is None:
            return [one for part in found.values() for one in part]
        most = self.plain["judge_limit"]
        rated, why_not = judge_dialogues(judge, replying.store, judged, found, people, most, replying.console)
        if why_not:
            self.left_out["dialogue_ratings"] = why_not
        else:
            self.figures += dialogue_figures(rated, judge)
        return rated

    def _speakers(self) -> list[System]:
        return [system for system in self.systems if system.generator is not None]
