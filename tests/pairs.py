"""Preference pairs of several turns and conversations, and what each response is worth by one ordinary forward of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import TINY, Compose
from families import conversation, tokenizer_for
from omegaconf import OmegaConf
from torch import Tensor

from esupport.data.conversation import Conversation
from esupport.data.preference import Context, PreferencePair
from esupport.models.slot import Slot
from esupport.objectives.dpo import PreferenceOptimization
from esupport.rendering.datamodule import RowDataModule
from esupport.rendering.packing import Batch
from esupport.rendering.pairs import render_pairs, respond
from esupport.rendering.row import Floats, Row, tree
from esupport.rendering.template import Renderer, Response
from esupport.store import Store
from esupport.training.environment import make

Ids = tuple[int, ...]
Both = tuple[Response, Response]  # chosen, rejected


def context_at(talk: Conversation, turn: int) -> Context:
    return Context(conversation=talk.id, turn=turn, turns=talk.turns[:turn])


def pairs_of(talk: Conversation, turns: Iterable[int]) -> list[PreferencePair]:
    """A pair before each of ``turns``, of unlike lengths; no two texts of a conversation are the same."""
    found = []
    for number, turn in enumerate(turns):
        hear = "I hear you. " * (1 + number % 3)
        chosen, rejected = f"{hear}What about day {turn}.{number} of {talk.id}?", f"Number {turn}.{number}, {talk.id}. " + hear
        found.append(PreferencePair(context=context_at(talk, turn), chosen=chosen, rejected=rejected.strip()))
    return found


def renderer_of(template: str, max_tokens: int = 1000) -> Renderer:
    return Renderer(tokenizer_for(template), "Support the seeker.", "system", {}, max_tokens)


@dataclass(frozen=True)
class Planted:
    """Units of rows, and the pairs of responses that they were grown from."""

    units: list[list[Row]]
    pairs: list[Both]

    @property
    def rows(self) -> list[Row]:
        return [row for unit in self.units for row in unit]

    def responses_of(self, row: Row) -> list[Response]:
        """The responses of a row, told by their completions; an even one must be a chosen one before its rejected one."""
        said = [tuple(map(int, row.ids[row.targets[row.response == r]])) for r in range(row.responses)]
        by_completions = {(chosen.completion, rejected.completion): (chosen, rejected) for chosen, rejected in self.pairs}
        assert len(by_completions) == len(self.pairs)
        return [response for k in range(0, len(said), 2) for response in by_completions[said[k], said[k + 1]]]

    def in_order(self) -> list[Response]:
        return [response for row in self.rows for response in self.responses_of(row)]

    def scored(self, scores: dict[Ids, float]) -> Planted:
        """With ``scores`` (by the responses' ids) as the reference."""
        found = [np.array([scores[r.ids] for r in self.responses_of(row)], dtype=np.float32) for row in self.rows]
        left = iter(found)
        return Planted([[replace(row, reference=next(left)) for row in unit] for unit in self.units], self.pairs)


def planted() -> Planted:
    """Rows of every form that a preference set can take.

    Several turns of several conversations on shared trunks, two pairs of one context, a chosen reply that the trunk goes on
    with, a template that rewrites its end, one that rewrites its beginning, and completions of which one begins the other.
    """
    units: list[list[Row]] = []
    pairs: list[Both] = []

    def plant(name: str, both: Sequence[Both]) -> None:
        pairs.extend(both)
        units.append(tree(name, [response for pair in both for response in pair]))

    for template, count in (("qwen", 3), ("thinking", 1), ("counting", 1)):
        renderer = renderer_of(template)
        for number in range(count):
            talk = conversation(8 - 2 * number, name=f"{template} {number}", words="and on " * number)
            made = pairs_of(talk, (1, 3, 3, 5)[: 4 - number])
            own = talk.turns[1].text
            made.insert(1, made[0].model_copy(update={"chosen": own, "rejected": f"Not that, {talk.id}."}))
            plant(talk.id, [(r[0], r[1]) for r in (respond(pair, renderer) for pair in made)])
    chosen, rejected = pairs[0]
    longer = tuple(reversed(rejected.completion)) * 2
    begins = Response(chosen.context, longer[:5], 1), Response(chosen.context, longer, 1)
    later = (*rejected.ids, 7, 8, 9)
    ends = Response(later, (11,), 3), Response(later, (12, 13), 3)
    plant("by hand", [begins, ends])
    return Planted(units, pairs)


def alone(model: Any, response: Response) -> Tensor:
    """Log-probability of a completion: a scalar from an ordinary forward of this response and of nothing else."""
    ids = torch.tensor([response.ids])
    logprobs = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    return logprobs.gather(1, ids[0, 1:, None])[-len(response.completion) :, 0].double().sum()


@torch.no_grad()
def scores_alone(model: Any, responses: Iterable[Response]) -> dict[Ids, float]:
    """:func:`alone` of each response, by its ids."""
    return {response.ids: float(alone(model, response)) for response in responses}


def sums_of(logprobs: Tensor, batch: Batch) -> Tensor:
    """Sums over the targets of each response, one by one."""
    return torch.stack([logprobs[batch.response == r].sum() for r in range(len(batch.names))])


def plain_of(composed: Compose, *overrides: str) -> dict[str, Any]:
    """Settings of preference training of the tiny model, as plain containers."""
    plain = OmegaConf.to_container(composed(*TINY, "objective=dpo", *overrides), resolve=True)
    assert isinstance(plain, dict)
    return plain  # type: ignore[return-value]


def objective(plain: dict[str, Any], policy: Any, reference_is_start: bool = False, **changes: Any) -> PreferenceOptimization:
    node = {**plain["objective"], **changes}
    module: PreferenceOptimization = make(node, "objective")(policy=policy, reference_is_start=reference_is_start)
    return module


@dataclass
class Bench:
    """The tiny model in its slot, and three conversations with seven pairs to train it on."""

    plain: dict[str, Any]
    folder: Path
    pairs: list[PreferencePair] = field(default_factory=list)

    def __post_init__(self) -> None:
        backbone = make(self.plain["model"], "model")
        self.slot, self.store = Slot(backbone, 0, "cpu"), Store(self.folder / "store")
        self.renderer = Renderer(backbone.tokenizer(), "Support the seeker.", "system", {}, 1000)
        for number, turns in enumerate(((1, 3, 3), (3, 5), (1, 7))):
            self.pairs += pairs_of(conversation(8, name=f"talk {number}"), turns)
        self.corpus = render_pairs("train", self.pairs, self.renderer, "stop")
        both = [(one, other) for one, other in (respond(pair, self.renderer) for pair in self.pairs)]
        self.planted = Planted(list(self.corpus.units), both)

    @property
    def rows(self) -> list[Row]:
        return self.planted.rows

    def adapter(self, name: str, seed: int) -> Path:
        """An adapter that is not the base, as one that was trained before."""
        policy = self.slot.load(None)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in policy.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        self.slot.backbone.save(policy, self.folder / name)
        return self.folder / name

    def measured(self, adapter: Path | None) -> list[Floats]:
        """The scores of an adapter, or of the backbone alone, by one ordinary forward a response."""
        with self.slot.speaking(adapter) as policy:
            own = scores_alone(policy, self.planted.in_order())
        return [row.reference for row in self.planted.scored(own).rows]

    def fit(
        self, start: Path, scores: list[Floats], is_start: bool = False, held_out: list[Floats] | None = None, **batching: int
    ) -> tuple[PreferenceOptimization, Any]:
        """Train from ``start`` against ``scores``, without the store; the module and its trainer."""
        corpora = {"train": self.corpus.scored(scores)}
        if held_out:
            corpora["pairs_valid"] = self.corpus.scored(held_out)
        data = RowDataModule(corpora, **{**self.plain["batching"], **batching}, replay_ratio=0.0, seed=0)
        module = objective(self.plain, self.slot.load(start), is_start)
        trainer = make({**self.plain["trainer"], "enable_checkpointing": False, "logger": False}, "trainer", callbacks=[])
        trainer.fit(module, data)
        return module, trainer

    def weights(self) -> dict[str, Tensor]:
        """The adapter that is in the slot now."""
        policy = self.slot._policy
        assert policy is not None
        return {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}
