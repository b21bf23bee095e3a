"""What is learnt in a training benchmark: the same conversations, replies and pairs for both sides, without generating any.

Every optimizer step holds equally many conversations with equally many supporter turns, because the peer's steps hold a
fixed number of rows. So conversations near the median are taken, whole ones, and cut after the same number of replies.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.work import Training
from esupport.data.conversation import Conversation, content_hash
from esupport.data.preference import Context, PreferencePair
from esupport.data.source import Source
from esupport.errors import UserError
from esupport.models.backbone import Backbone
from esupport.rendering.corpus import Corpus, hold
from esupport.rendering.datamodule import RowDataModule
from esupport.rendering.pairs import respond
from esupport.rendering.row import tree
from esupport.rendering.template import Renderer, Response
from esupport.store import Store
from esupport.training.environment import make
from esupport.training.prepare import renderer_of

Unit = tuple[Response, ...]  # the responses of a conversation; of pairs, each chosen one before its rejected one

_NEIGHBOURS = 12  # replies of like length among which a rejected one is drawn
_REPLY = 32  # tokens of a drawn reply


@dataclass(frozen=True)
class Material:
    """What is learnt and what is held out.

    Attributes:
        corpus, held_out: tree rows, for this project.
        units, held_out_units: the same responses one by one, for the peer, in the order of the rows' responses.
        steps: the units of each optimizer step, in the project's own order.
    """

    corpus: Corpus
    units: list[Unit]
    held_out: Corpus
    held_out_units: list[Unit]
    steps: list[tuple[int, ...]]


def prepare(plain: dict[str, Any], work: Training, backbone: Backbone) -> Material:
    """Read, choose and render. Raises ``UserError`` where there is too little."""
    per_step = plain["batching"]["conversations_per_step"]
    count = per_step * (work.warmup + work.steps)
    if work.length:
        return _material(plain, *drawn(work, count, backbone))
    renderer = renderer_of(plain, backbone)
    source: Source = make(plain["data"], "data")
    with TemporaryDirectory() as folder:
        splits = source.read("data", Store(Path(folder)))
        train, valid = (_whole(side, renderer) for side in (splits.train, splits.valid))
    turns = work.turns or _median(train, max(work.batches) // gcd(per_step, max(work.batches)))  # batches must fill a step
    learnt = _chosen(train, count, turns)
    held_out = _chosen(valid, work.held_out, min(turns, _median(valid, 1))) if work.held_out else []
    if work.task == "sft":
        return _material(plain, *(_replies(name, side, renderer) for name, side in (("train", learnt), ("valid", held_out))))
    everyone = [conversation for conversation, _ in train + valid]
    pool = sorted((len(c.turns[t].text), c.id, c.turns[t].text) for c in everyone for t in c.supporter_turns())
    sides = (("train", learnt), ("pairs_valid", held_out))
    drawn_pairs = (_pairs(name, side, renderer, pool, plain["seed"], work.chosen == "human") for name, side in sides)
    return _material(plain, *drawn_pairs)


def _material(plain: dict[str, Any], learnt: tuple[Corpus, list[Unit]], held_out: tuple[Corpus, list[Unit]]) -> Material:
    data = RowDataModule({"train": learnt[0]}, **plain["batching"], replay_ratio=0.0, seed=plain["seed"])
    return Material(*learnt, *held_out, steps=[tuple(step) for step in data.sampler])


def _whole(conversations: Sequence[Conversation], renderer: Renderer) -> list[tuple[Conversation, tuple[Response, ...]]]:
    """The conversations that fit whole, with an eighth to spare for a rejected reply longer than the human one."""
    found = []
    for conversation in conversations:
        rendered = renderer.render(conversation)
        uncut = not rendered.cut_turns and not rendered.lost_replies
        if uncut and len(rendered.responses[-1].ids) <= renderer.max_tokens * 7 / 8:
            found.append((conversation, rendered.responses))
    return found


def _median(found: Sequence[tuple[Conversation, tuple[Response, ...]]], multiple: int) -> int:
    """The median number of replies, rounded down to a multiple."""
    middle = int(statistics.median([len(responses) for _, responses in found])) if found else 0
    return max(multiple, middle - middle % multiple)


def _chosen(found: Sequence[tuple[Conversation, tuple[Response, ...]]], count: int, turns: int) -> list[Conversation]:
    """``count`` conversations, cut after ``turns`` replies: those that lose least by it."""
    enough = sorted((len(responses), index) for index, (_, responses) in enumerate(found) if len(responses) >= turns)
    if len(enough) < count:
        raise UserError(
            f"only {len(enough)} of {len(found)} conversations that fit whole have {turns} supporter turns, and {count} are "
            "needed: fewer --turns, --steps or --conversations-per-step, or a larger rendering.max_tokens with --override"
        )
    chosen = []
    for _, index in enough[:count]:
        conversation, responses = found[index]
        kept = conversation.turns[: responses[turns - 1].turn + 1]
        chosen.append(conversation.model_copy(update={"turns": kept}))
    return chosen


def _corpus(name: str, units: Sequence[tuple[str, Unit]]) -> tuple[Corpus, list[Unit]]:
    """Tree rows of the responses of each conversation, and these."""
    return hold(name, lambda tally: (tally.add(tree(talk, unit), len(unit)) for talk, unit in units)), [u for _, u in units]


def _replies(name: str, conversations: Sequence[Conversation], renderer: Renderer) -> tuple[Corpus, list[Unit]]:
    """Every supporter turn as a target."""
    return _corpus(name, [(c.id, tuple(renderer.render(c).responses)) for c in conversations])


def _pairs(
    name: str,
    conversations: Sequence[Conversation],
    renderer: Renderer,
    pool: Sequence[tuple[int, str, str]],
    seed: int,
    of_human: bool,
) -> tuple[Corpus, list[Unit]]:
    """A pair of each supporter turn, of two other conversations' replies of the human one's length, or of that and another."""
    units = []
    for conversation in conversations:
        hung: list[Response] = []
        for turn in conversation.supporter_turns():
            said, human = conversation.turns[:turn], conversation.turns[turn].text
            context = Context(conversation=conversation.id, turn=turn, turns=said, instruction=conversation.instruction)
            rejected, other = _others(context, human, pool, seed)
            chosen = human if of_human else other
            hung += respond(PreferencePair(context=context, chosen=chosen, rejected=rejected), renderer)
        if max(len(response.ids) for response in hung) > renderer.max_tokens:
            raise UserError("a reply does not fit: a larger rendering.max_tokens with --override")
        units.append((conversation.id, tuple(hung)))
    return _corpus(name, units)


def _others(context: Context, human: str, pool: Sequence[tuple[int, str, str]], seed: int) -> list[str]:
    """Two replies of other conversations, drawn by the context from those nearest to the ``human`` one in characters."""
    others = [entry for entry in pool if entry[1] != context.conversation and entry[2] != human]
    if len({text for _, _, text in others}) < 2:
        raise UserError("data: pairs need two replies of other conversations")
    middle = bisect_left([length for length, _, _ in others], len(human))
    first = max(0, min(middle - _NEIGHBOURS // 2, len(others) - _NEIGHBOURS))
    near = others[first : first + _NEIGHBOURS]
    draw = np.random.default_rng([seed, context.turn, int(content_hash(context.turns), 16)])
    texts = sorted({text for _, _, text in near})
    return [texts[index] for index in draw.permutation(len(texts))[:2]]


def drawn(work: Training, count: int, backbone: Backbone) -> list[tuple[Corpus, list[Unit]]]:
    """Conversations of random token ids, ``work.length`` each, in place of data: to vary length and vocabulary at will.

    Replies of 32 tokens stand at even distances, ``work.turns`` of them; both of a pair are other ids than the conversation's.
    """
    vocabulary = (work.shape or {}).get("vocab_size") or len(backbone.tokenizer())
    draw = np.random.default_rng([work.length or 0, vocabulary])
    sides = []
    for name, number in (("train", count), ("valid", work.held_out)):
        ids = [draw.integers(16, vocabulary, size=(3, work.length or 0)).tolist() for _ in range(number)]
        sides.append(_corpus(name, [(f"{name} {index}", _drawn_unit(work, rows)) for index, rows in enumerate(ids)]))
    return sides


def _drawn_unit(work: Training, ids: list[list[int]]) -> Unit:
    trunk, *others = (tuple(row) for row in ids)
    turns = work.turns or max(1, len(trunk) // 128)
    ends = [len(trunk) * (number + 1) // turns for number in range(turns)]
    if min(ends) <= _REPLY:
        raise UserError(f"--lengths: {len(trunk)} tokens have no room for {turns} replies of {_REPLY}")
    unit: list[Response] = []
    for turn, end in enumerate(ends):
        context = trunk[: end - _REPLY]
        written = others if work.task == "dpo" else [trunk]
        unit += [Response(context, ids[end - _REPLY : end], turn) for ids in written]
    return tuple(unit)
