"""The lead of the tree row in tokens and forwards, which can be counted: no later change may lose it unnoticed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Compose, Train
from speaking import Local
from transformers.models.llama.modeling_llama import LlamaModel

from esupport.config.check import check_types
from esupport.config.command_line import composed
from esupport.data.conversation import Conversation
from esupport.data.files import read_file
from esupport.data.preference import Context, Finding, PreferencePair
from esupport.data.readers.native import parse
from esupport.models.forward import base_of
from esupport.objectives.logprobs import CHUNK, shares, target_logprobs
from esupport.reflection.method import Method, deepest
from esupport.rendering.conversations import rendered
from esupport.rendering.corpus import Corpus, hold
from esupport.rendering.packing import pack
from esupport.rendering.pairs import render_pairs
from esupport.rendering.row import common_prefix
from esupport.training.environment import make
from esupport.training.prepare import prepare


@pytest.fixture(scope="module")
def talks() -> list[Conversation]:
    from esupport.data.files import locate

    folder = locate("pkg://esupport.data/shipped", "data.path")
    assert folder
    return [parse(raw.value, raw.key) for raw in read_file(folder / "train.jsonl")][:24]


def pairs(talks: list[Conversation], of_human: bool) -> list[PreferencePair]:
    """At every reply: one of the next conversation, against the human's or, as with refined replies, another of it."""
    found = []
    for talk, other in zip(talks, [*talks[1:], talks[0]], strict=True):
        others = [other.turns[turn].text for turn in other.supporter_turns()]
        for number, turn in enumerate(talk.supporter_turns()):
            context = Context(conversation=talk.id, turn=turn, turns=talk.turns[:turn])
            chosen = talk.turns[turn].text if of_human else others[(number + 1) % len(others)]
            found.append(PreferencePair(context=context, chosen=chosen, rejected=others[number % len(others)]))
    return found


@contextmanager
def counting(model: Any) -> Iterator[dict[str, int]]:
    """Tokens that the decoder and the head are given."""
    counts = {"decoder": 0, "head": 0, "forwards": 0}

    def decoder(module: Any, args: Any, kwargs: Any) -> None:
        counts["decoder"] += kwargs["input_ids"].numel()
        counts["forwards"] += 1

    def head(module: Any, args: Any) -> None:
        counts["head"] += args[0].shape[0]

    base = base_of(model)
    hooks = [
        base.get_decoder().register_forward_pre_hook(decoder, with_kwargs=True),
        base.get_output_embeddings().register_forward_pre_hook(head),
    ]
    yield counts
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("budget", [2048, 600])
@pytest.mark.parametrize(("kind", "lead"), [("conversations", 3.5), ("human pairs", 4.7), ("pairs", 4.2)])
def test_training_reads_so_many_times_fewer_tokens_than_a_row_for_each_response(
    kind: str,
    lead: float,
    budget: int,
    talks: list[Conversation],
    local: Local,
) -> None:
    corpus: Corpus
    corpus = (
        hold("train", lambda tally: rendered(tally, talks, [], local.renderer, "stop"))
        if kind == "conversations"
        else render_pairs("train", pairs(talks, kind == "human pairs"), local.renderer, "stop")
    )
    rows = [row for unit in corpus.units for row in unit]
    naive = sum(row.naive_tokens for row in rows)
    policy = local.slot.load(None)
    with counting(policy) as counts:
        batches = pack(rows, budget)
        for share in chain.from_iterable(shares(policy, batch, lambda logprobs, _: logprobs.sum()) for batch in batches):
            share.backward()
    assert any(batch.parts for batch in batches) == (budget < 2048 and kind != "conversations"), "a trunk is never cut"
    assert counts["decoder"] == sum(map(len, rows)), "nothing is padded, and nothing is read twice"
    assert naive / counts["decoder"] > lead
    assert counts["head"] == corpus.targets, "once, and its gradient with it"
    assert counts["forwards"] == sum(len(batch.parts) or 1 for batch in batches)
    if budget == 2048:
        assert counts["forwards"] <= 1.25 * counts["decoder"] / budget + 1, "batches are full"


def test_no_more_than_a_chunk_of_logits_is_in_memory(talks: list[Conversation], local: Local) -> None:
    rows = hold("train", lambda tally: rendered(tally, talks[:4], [], local.renderer, "stop")).rows
    (batch,) = pack(rows, 100_000)
    sizes: list[int] = []
    with local.slot.speaking(None) as policy, torch.no_grad():
        hook = (
            base_of(policy).get_output_embeddings().register_forward_hook(lambda module, args, out: sizes.append(out.shape[0]))
        )
        target_logprobs(policy, batch)
        hook.remove()
    assert len(sizes) > 1
    assert max(sizes) == CHUNK
    assert sum(sizes) == len(batch.targets)


def test_a_conversation_is_read_once_for_all_its_replies_and_rows_that_ended_leave(local: Local) -> None:
    requests = local.requests(turns=100, temperature=0.7, max_new_tokens=24, one_line=True)
    prompts = [local.renderer.prompt(asked.messages) for asked in requests]
    beginnings = {(asked.family, *p[:end]) for asked, p in zip(requests, prompts, strict=True) for end in range(1, len(p) + 1)}
    generator = local.generator(rows=64)
    local.read.clear()
    replies = [reply for batch in generator.plan(requests) for reply in generator.write([requests[i] for i in batch], None)]
    read = sum(columns for rows, columns in local.read if columns > 1)
    assert read == len(beginnings) < 0.34 * sum(map(len, prompts))
    stepped = sum(rows for rows, columns in local.read if columns == 1)
    wanted = sum(reply.tokens for reply in replies)
    assert stepped < 1.5 * wanted


def test_reflections_refinements_and_retries_of_a_conversation_read_it_once(local: Local) -> None:
    """With the method's own prompts, and families larger than a batch: what is read later is what only later prompts say."""
    made: Method = make(check_types("evolve", composed("evolve", ["model=tiny"]))["reflection"], "reflection")
    of = [(talk, turn) for talk in local.talks for turn in talk.supporter_turns()]
    contexts = [Context(conversation=talk.id, turn=turn, turns=talk.turns[:turn]) for talk, turn in of]
    after = deepest(contexts)
    findings = {axis: Finding(text="of someone") for axis in made.axes}
    reflections = [r for c in contexts for r in made.reflect_requests(c, after[c.key], "Hm.", 0, 0).values()]
    refinements = [made.refine_request(c, after[c.key], "Hm.", findings, 0, 0) for c in contexts]
    retries = [made.refine_request(c, after[c.key], "Hm.", findings, 0, 1) for c in contexts if c is not after[c.key]]
    local.slot.load(None)
    for requests in (reflections, refinements, retries):
        generator, own, trunks, begun = local.generator(rows=8), 0, set(), set()
        local.read.clear()
        for batch in generator.plan(requests):
            asked = [replace(requests[i], sampling=replace(requests[i].sampling, max_new_tokens=2)) for i in batch]
            generator.write(asked, None)
            prompts = [tuple(local.renderer.prompt(r.messages, r.begun)) for r in asked]
            named = generator._trunks(asked, prompts)
            trunks |= {*named}
            tokens = [len(prompt) - common_prefix(trunk, prompt) for trunk, prompt in zip(named, prompts, strict=True)]
            own += sum(tokens) + tokens[0] * max(0, 4 - len(tokens))  # a batch of fewer is filled up
            assert sum(tokens) < sum(map(len, prompts)) / 2
            begun |= {trunk for trunk, prompt in zip(named, prompts, strict=True) if prompt[: len(trunk)] == trunk}
        assert len(trunks) == len(local.talks)
        assert begun == (set() if requests is retries else trunks), "the deepest prompt begins with all of it"
        read = sum(columns for _, columns in local.read if columns > 1)
        assert read == own + (sum(map(len, trunks)) if requests is reflections else 0)


@pytest.fixture
def forwarded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Of each forward through the tiny model: its tokens, and whether they are learnt from."""
    counts: list[tuple[int, bool]] = []
    real = LlamaModel.forward

    def forward(self: Any, input_ids: torch.Tensor, **others: Any) -> Any:
        counts.append((input_ids.numel(), torch.is_grad_enabled()))
        return real(self, input_ids=input_ids, **others)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    return counts


def test_a_run_reads_each_token_once_an_epoch(train: Train, composed: Compose, forwarded: list[tuple[int, bool]]) -> None:
    settings = ["replay.ratio=0", "trainer.max_epochs=2"]
    train(*settings)
    plain = check_types("train", composed(*TINY, "data.limit=12", *settings))
    rows = prepare(plain, make(plain["model"], "model")).corpora["train"].rows
    assert sum(tokens for tokens, learning in forwarded if learning) == 2 * sum(map(len, rows))


def test_preference_training_reads_each_token_once_and_scores_the_reference_once_for_all_runs(
    talks: list[Conversation], train: Train, composed: Compose, forwarded: list[tuple[int, bool]], tmp_path: Path
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(pair.model_dump_json(exclude_none=True) + "\n" for pair in pairs(talks, of_human=True)[:24]))
    settings = ["objective=dpo", f"data.pairs={path}", "replay.ratio=0"]
    read = []
    for number, rate in enumerate(("1e-4", "2e-4")):
        forwarded.clear()
        train(*settings, f"objective.optimizer.lr={rate}", folder=f"run{number}")
        read.append({kind: sum(tokens for tokens, learning in forwarded if learning is kind) for kind in (True, False)})
    plain = check_types("train", composed(*TINY, "data.limit=12", *settings))
    corpora = prepare(plain, make(plain["model"], "model")).corpora
    learnt, held_out = (sum(map(len, corpora[name].rows)) for name in ("train", "pairs_valid"))
    assert read[0][True] == read[1][True] == learnt
    assert read[0][False] - read[1][False] == learnt + held_out, "the reference, whatever the learning rate"
