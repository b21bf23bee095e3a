"""The loop: draft, reflect, refine, filter, pair, train, measure; and again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from esupport.config.schema_evolve import Evolution as Settings
from esupport.data.preference import Context, PreferencePair, read_pairs
from esupport.evolution.exam import Exam
from esupport.evolution.learning import Learner, of_round
from esupport.evolution.output import Output
from esupport.evolution.writing import Writer
from esupport.generators.protocol import Sampling, reply_request
from esupport.reflection.filters import Filter
from esupport.reflection.method import Method
from esupport.reflection.pairing import filter_counts, fits, judging, pair_up, sift
from esupport.reflection.steps import Outcome, refine, reflect
from esupport.reflection.wording import words
from esupport.store import Stage, key_of, write_lines
from esupport.training.environment import make


@dataclass
class Evolution:
    """One run of the method from M_0 on.

    Args:
        settings: of the loop; ``conf/evolve.yaml`` tells each.
        method: the reflection group.
        contexts: of each round.
        human: the replies of the data, by the contexts' keys.
        writer, learner, exam, output: of the run.
    """

    settings: Settings
    method: Method
    contexts: Sequence[Sequence[Context]]
    human: Mapping[str, str]
    writer: Writer
    learner: Learner
    exam: Exam
    output: Output

    def run(self, first: Path) -> list[dict[str, Any]]:
        """All rounds from M_0's adapter ``first``; the figures of each system, in order."""
        console, ledger = self.output.console, self.output.ledger
        systems = [self.exam.take("M0", 0, first, None, first)]
        self.output.system(systems, "sft/adapter", self.exam)
        adapters, rounds = [first], []
        for number in range(1, self.settings.rounds + 1):
            if self.exam.drift.stop and number > 1 and systems[-1]["warnings"]:
                console.print(f"Stopped before round {number}: {'; '.join(systems[-1]['warnings'])}.", markup=False)
                break
            console.rule(f"Round {number} of {self.settings.rounds}: M{number - 1} to M{number}")
            made, figures = self._pairs(number, adapters[-1])
            rounds.append(made)
            self.output.pairs(number, made.folder, figures)
            start = adapters[-1] if self.settings.start == "previous" else first
            reference = {"round_start": start, "sft": first, "base": None}[self.settings.reference]
            learnt = rounds if self.settings.pairs == "cumulative" else [made]
            pairs = [pair for stage in learnt for pair in _kept(stage)]
            if not pairs and number > 1:
                console.print(f"Stopped in round {number}: no pair is left; its dropped.jsonl has the reasons.", markup=False)
                break
            corpus = self.learner.render(pairs)
            trained, scored = self.learner.prefer(number, corpus, start, reference)
            started = f"M{number - 1}" if self.settings.start == "previous" else "M0"
            frozen = {"round_start": [started], "sft": ["M0"], "base": []}[self.settings.reference]
            made_from = [stage.key for stage in learnt]
            ledger.add(scored, number, f"round-{number}/reference", [*made_from, *ledger.keys(*frozen)])
            ledger.add(trained, number, f"M{number}", [*made_from, scored.key, *ledger.keys(started)])
            adapters.append(trained.folder / "adapter")
            self.output.round(number, trained.folder, figures, self._settings(number))
            systems.append(self.exam.take(f"M{number}", number, adapters[-1], start, first))
            self.output.system(systems, f"round-{number}/adapter", self.exam)
        return systems

    def _pairs(self, number: int, adapter: Path) -> tuple[Stage, dict[str, Any]]:
        """Steps 1 to 6 of the method: the stage with ``pairs.jsonl`` and ``dropped.jsonl``, and what was counted."""
        contexts, seed, renderer = self.contexts[number - 1], [self.settings.seed, number], self.learner.prepared.renderer
        sampling, ledger = Sampling(**self.learner.plain["evolution"]["draft"]), self.output.ledger
        requests = [reply_request(context, renderer, sampling, seed, "draft") for context in contexts]
        drafted = self.writer.ask("draft", number, requests, "policy", adapter)
        drafts = {c.key: (q, r) for c, q, r in zip(contexts, requests, drafted, strict=True)}
        texts = {key: reply.text for key, (_, reply) in drafts.items()}

        def ask(step: str, by: Any) -> Any:
            return lambda asked: self.writer.ask(step, number, asked, by, adapter)

        method, writers = self.method, {"draft": self.writer.speaker("policy").name}
        writers |= {name: self._writer(step.by) for name, step in method.steps.items()}
        reflected = reflect(method, contexts, texts, seed, ask("reflect", method.reflect.by))
        refined, human = None, self.human
        if method.chosen == "refined":
            judge = judging(contexts, drafts, reflected, self._filters())
            answers = ask("refine", method.refine.by)
            refined, human = refine(method, contexts, texts, reflected.values, seed, answers, judge), {}
        pairs = pair_up(contexts, drafts, reflected, refined, human, writers, number)
        stage = self.writer.store.stage(
            "pairs",
            {"pairs": key_of(pairs), "filters": self.learner.plain["filters"], "fits": renderer.contents},
            lambda folder: self._sift(pairs, folder),
        )
        asked = (f"round-{number}/{step}" for step in ("draft", "reflect", "refine"))
        ledger.add(stage, number, f"round-{number}/pairs", ledger.keys(*asked))
        return stage, self._counts(stage, len(contexts), reflected, refined)

    def _writer(self, by: Any) -> str:
        name = self.writer.speaker(by).name
        same = by != "policy" and name == self.writer.speaker("policy").name
        return f"{name} without its adapter" if same else name

    def _sift(self, pairs: Sequence[PreferencePair], folder: Path) -> None:
        kept, dropped = sift(pairs, self._filters())
        for name, records in (("pairs", kept), ("dropped", dropped)):
            write_lines(folder / f"{name}.jsonl", (pair.model_dump(exclude_none=True) for pair in records))

    def _filters(self) -> dict[str, Filter]:
        """New filters: one of them remembers what it judged."""
        filters = {name: make(node, f"filters.{name}") for name, node in self._filter_nodes().items()}
        return {**filters, "fits": partial(fits, self.learner.prepared.renderer)}

    def _filter_nodes(self) -> dict[str, Any]:
        return {name: node for name, node in self.learner.plain["filters"].items() if node}

    def _counts(self, stage: Stage, contexts: int, reflected: Outcome, refined: Outcome | None) -> dict[str, Any]:
        kept, dropped = _kept(stage), read_pairs(stage.folder / "dropped.jsonl")
        both = [*kept, *dropped]
        asked = self.method.asked
        known = {axis: [pair.reflection[axis].known for pair in both if axis in pair.reflection] for axis in asked}
        ratios = [len(words(pair.chosen)) / max(1, len(words(pair.rejected))) for pair in kept]
        return {
            "contexts": contexts,
            "kept": len(kept),
            "dropped": len(dropped),
            "filters": filter_counts(dropped, [*self._filter_nodes(), "fits"]),
            "refused": dict(Counter(name for pair in both for attempt in pair.refused for name in attempt.verdicts)),
            "reflect": dict(reflected.counts),
            "refine": dict(refined.counts) if refined else {},
            "unknown": {axis: 1 - sum(found) / len(found) for axis, found in known.items() if found},
            "pair_length_ratio": sum(ratios) / len(ratios) if ratios else None,
        }

    def _settings(self, number: int) -> dict[str, Any]:
        objective = of_round(self.learner.plain["objective"], number)
        return {
            "loss": objective["loss"]["_target_"].rpartition(".")[2],
            "beta": objective["loss"]["beta"],
            "learning_rate": objective["optimizer"]["lr"],
            "epochs": of_round(self.learner.plain["evolution"]["epochs"], number),
            "nll_weight": objective["nll_weight"],
        }


def _kept(stage: Stage) -> list[PreferencePair]:
    return read_pairs(stage.folder / "pairs.jsonl")
