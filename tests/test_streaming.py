"""Conversations, pairs and rows stream: read once, rendered once, and never all in memory."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Compose
from families import conversation, small_model
from pairs import pairs_of, planted, renderer_of

from esupport.config.check import check_types
from esupport.data import files, shelf
from esupport.data.conversation import Conversation, Turn
from esupport.data.readers import native, preference
from esupport.data.source import Source
from esupport.errors import DataFault
from esupport.objectives import reference
from esupport.objectives.logprobs import target_logprobs
from esupport.objectives.reference import score
from esupport.rendering import datamodule
from esupport.rendering import pairs as rendering_pairs
from esupport.rendering.conversations import render_all, rendered
from esupport.rendering.corpus import Corpus, hold
from esupport.rendering.pairs import render_pairs, render_read_pairs
from esupport.rendering.row import Row
from esupport.rendering.rows import Parts, Rows, rows_digest
from esupport.rendering.template import Renderer
from esupport.store import Store
from esupport.training.environment import make
from esupport.training.prepare import Prepared, prepare

FRACTIONS = {"train": 0.8, "valid": 0.2}
ARRAYS = ("ids", "positions", "branch", "sees", "targets", "parents", "response", "reference")


def written(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(record.model_dump_json() + "\n" for record in records), encoding="utf-8")
    return path


def source(path: Path, pairs: Path | None = None, **settings: Any) -> Source:
    rest: dict[str, Any] = {"split": "seed", "fractions": {"train": 1.0}, "seed": 0, "on_error": "stop", "limit": None}
    return Source(str(path), native.parse, **{**rest, **settings}, pairs=str(pairs) if pairs else None)


def test_a_reader_with_other_settings_reads_anew(tmp_path: Path) -> None:
    def parse(raw: Any, key: str | None, emotion: str) -> Conversation:
        return native.parse({**raw, "emotion": emotion}, key)

    path = written(tmp_path / "a.jsonl", talks(3))
    for emotion in ("sad", "glad"):
        reader = replace(source(path), parse=partial(parse, emotion=emotion))
        assert {one.emotion for one in reader.read("data", Store(tmp_path / "store")).train} == {emotion}


def talks(count: int, seed: int = 0) -> list[Conversation]:
    """Conversations of every form: who opens, unwritten turns, own instructions, groups, any letters, a few very long ones."""
    draw, found = random.Random(seed), []
    letters = "abc  é\u2028\u0085\n\t\r😀\"\\{}|'日"
    for number in range(count):
        opens, turns = draw.randrange(2), []
        for index in range(draw.randint(3, 9)):
            text = f"{number}.{index} " + "".join(draw.choices(letters, k=draw.choice([5, 30, 400])))
            seeker = (index + opens) % 2 == 0
            strategy, blank = (None, False) if seeker else (draw.choice([None, "Question"]), draw.random() < 0.1)
            turns.append(Turn(role="seeker" if seeker else "supporter", text="" if blank else text, strategy=strategy))
        found.append(
            Conversation(
                id=f"{draw.choice(letters)}{number}",
                turns=tuple(turns),
                profile=draw.choice([{}, {"Age": "44", "日": ""}]),
                instruction=draw.choice([None, "", "Be brief."]),
                group=draw.choice([None, f"g{number // 2}"]),
            )
        )
    return found


def equal(one: Corpus, other: Corpus) -> None:
    """All that a corpus is, save what its conversations were read from."""
    assert [row.name for row in one.rows] == [row.name for row in other.rows]
    for a, b in zip(one.rows, other.rows, strict=True):
        assert (a.responses, a.branches) == (b.responses, b.branches)
        assert all(getattr(a, name).dtype == getattr(b, name).dtype for name in ARRAYS)
        assert all(np.array_equal(getattr(a, name), getattr(b, name), equal_nan=name == "reference") for name in ARRAYS)
    assert [len(unit) for unit in one.units] == [len(unit) for unit in other.units]
    assert one.rows.responses.tolist() == other.rows.responses.tolist() == [row.responses for row in one.rows]
    assert one.rows.digest == other.rows.digest == rows_digest(list(other.rows))
    numbers = [name for name, kind in Corpus.__annotations__.items() if kind == "int"]
    assert len(numbers) == 11
    assert {name: getattr(one, name) for name in numbers} == {name: getattr(other, name) for name in numbers}
    assert list(map(str, one.skipped)) == list(map(str, other.skipped))


@pytest.mark.parametrize("template", ["qwen", "thinking", "counting"])
def test_rows_read_back_are_the_rows_that_were_written(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "RECORDS", 7)
    store, said = Store(tmp_path / "store"), [*talks(40), conversation(6, name="smuggled", words="<s></s><|im_end|>")]
    renderer = renderer_of(template, max_tokens=350)
    side = source(written(tmp_path / "a.jsonl", said)).read("data", store).train
    # a draw does not keep the order of the file
    place = {talk.id: f"a.jsonl:{number}" for number, talk in enumerate(said, start=1)}
    ids = [talk.id for talk in side]
    said = sorted(said, key=lambda talk: ids.index(talk.id))
    assert list(side) == said
    assert list(side.where) == [place[talk.id] for talk in said]
    kept = render_all("train", side, renderer, "skip", store)
    held = hold("train", lambda tally: rendered(tally, said, list(side.where), renderer, "skip"))
    equal(kept, held)
    assert kept.dropped or kept.cut_turns
    names = {row.name for row in kept.rows}
    assert [talk.id for talk in kept.kept] == [talk.id for talk in said if talk.id in names]
    assert kept.units[-1][0].name == kept.kept[-1].id
    assert [row.name for row in kept.rows[2:5]] == [row.name for row in held.rows][2:5]
    with pytest.raises(IndexError):
        kept.rows[len(kept.rows)]
    own = rendered_pairs_of(tmp_path, renderer, store)
    equal(*own)
    assert own[0].lost_replies


def rendered_pairs_of(folder: Path, renderer: Renderer, store: Store) -> tuple[Corpus, Corpus]:
    """Pairs of several conversations, mixed, from a file and from memory."""
    made = [pair for n in range(9) for pair in pairs_of(conversation(8, name=f"t{n}"), (1, 3, 5, 7))]
    random.Random(0).shuffle(made)
    made[3] = made[3].model_copy(update={"chosen": "Far too long. " * 200})
    path = written(folder / "pairs.jsonl", made)
    read = source(path, pairs=path, fractions={"valid": 0.0}).read_pairs("data", store)
    assert sorted(pair.model_dump_json() for pair in read.train) == sorted(pair.model_dump_json() for pair in made)
    kept = render_read_pairs("train", read.train, renderer, "stop", store)
    return kept, render_pairs("train", made, renderer, "stop")


class Work:
    """Counts what is parsed and what is rendered."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.done = {"parsed": 0, "paired": 0, "rendered": 0, "hung": 0}
        self._count(patch, native, "parse", "parsed")
        self._count(patch, preference, "parse", "paired")
        self._count(patch, Renderer, "render", "rendered")
        self._count(patch, rendering_pairs, "respond", "hung")

    def _count(self, patch: pytest.MonkeyPatch, owner: Any, attribute: str, name: str) -> None:
        function = getattr(owner, attribute)

        @wraps(function)
        def counted(*given: Any, **named: Any) -> Any:
            self.done[name] += 1
            return function(*given, **named)

        patch.setattr(owner, attribute, counted)

    def taken(self) -> dict[str, int]:
        done, self.done = self.done, dict.fromkeys(self.done, 0)
        return {name: count for name, count in done.items() if count}


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(monkeypatch)


def started(composed: Compose, path: Path, *overrides: str) -> Prepared:
    """What a run does before it loads weights."""
    settings = ("data=native", f"data.path={path}", "data.fractions={train: 0.8, valid: 0.2, test: 0}", "replay.ratio=0")
    plain = check_types("train", composed(*TINY, *settings, *overrides))
    return prepare(plain, make(plain["model"], "model"))


def test_a_second_start_parses_and_renders_nothing_and_what_was_changed_is_read_anew(
    composed: Compose, tmp_path: Path, work: Work
) -> None:
    said = [conversation(6, name=f"t{n}") for n in range(30)]
    path = written(tmp_path / "a.jsonl", said)
    first = started(composed, path)
    assert work.taken() == {"parsed": 30, "rendered": 30}
    again = started(composed, path)
    assert work.taken() == {}
    for name in ("train", "valid"):
        equal(again.corpora[name], first.corpora[name])
        assert list(again.corpora[name].kept) == list(first.corpora[name].kept)
    path.rename(tmp_path / "kept.jsonl")
    (tmp_path / "sub").mkdir()
    started(composed, written(tmp_path / "sub" / "a.jsonl", said))
    assert work.taken() == {}, "it is the content that counts, not where it lies"
    path = tmp_path / "sub" / "a.jsonl"
    started(composed, path, "rendering.instruction=Listen.")
    assert work.taken() == {"rendered": 30}
    started(composed, path, "rendering.max_tokens=300")
    assert work.taken() == {"rendered": 30}
    started(composed, path, "data.seed=1")
    assert work.taken() == {"parsed": 30, "rendered": 30}
    started(composed, path, "data.limit=5")
    assert work.taken() == {"parsed": 30, "rendered": 10}
    written(path, [*said[:-1], conversation(8, name="another")])
    started(composed, path)
    assert work.taken() == {"parsed": 30, "rendered": 30}


def test_a_second_start_reads_no_pair_anew(composed: Compose, tmp_path: Path, work: Work) -> None:
    said = [conversation(6, name=f"t{n}") for n in range(6)]
    path = written(tmp_path / "a.jsonl", said)
    pairs = written(tmp_path / "pairs.jsonl", [pair for talk in said for pair in pairs_of(talk, (1, 3))])
    first = started(composed, path, "objective=dpo", f"data.pairs={pairs}")
    assert work.taken() == {"parsed": 6, "rendered": 6, "paired": 12, "hung": 12}
    again = started(composed, path, "objective=dpo", f"data.pairs={pairs}")
    assert work.taken() == {}
    for name in ("train", "pairs_valid"):
        equal(again.corpora[name], first.corpora[name])
    assert len(first.corpora["pairs_valid"].units) == 1


def test_another_tokenizer_or_template_renders_anew(tmp_path: Path, work: Work) -> None:
    store = Store(tmp_path / "store")
    side = source(written(tmp_path / "a.jsonl", [conversation(6, name=f"t{n}") for n in range(4)])).read("data", store).train
    work.taken()
    for template, rendered_anew in (("qwen", 4), ("qwen", 0), ("thinking", 4)):
        render_all("train", side, renderer_of(template), "stop", store)
        assert work.taken().get("rendered", 0) == rendered_anew
    other = renderer_of("qwen")
    other.tokenizer.add_tokens(["rain"])
    render_all("train", side, other, "stop", store)
    assert work.taken() == {"rendered": 4}


def test_a_start_killed_anywhere_goes_on_and_ends_as_the_one_left_alone(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.jsonl", [conversation(6, name=f"t{n}") for n in range(70)])
    whole = started(composed, path, f"paths.store={tmp_path}/whole")
    for owner, name, at in ((native, "parse", 50), (Renderer, "render", 40)):
        with monkeypatch.context() as patch:
            left, real = iter(range(at)), getattr(owner, name)

            @wraps(real)
            def dies(*given: Any, left: Iterator[int] = left, real: Any = real) -> Any:
                if next(left, None) is None:
                    raise KeyboardInterrupt
                return real(*given)

            patch.setattr(owner, name, dies)
            with pytest.raises(KeyboardInterrupt):
                started(composed, path, f"paths.store={tmp_path}/killed")
    again = started(composed, path, f"paths.store={tmp_path}/killed")
    for side in ("train", "valid"):
        equal(again.corpora[side], whole.corpora[side])
        assert list(again.corpora[side].kept) == list(whole.corpora[side].kept)
    digests = [sorted(p.name for p in (tmp_path / name / "rows").iterdir()) for name in ("whole", "killed")]
    assert digests[0] == digests[1]


class Alive:
    """The most objects of a class that were alive at once."""

    def __init__(self, kind: type, patch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        made = kind.__init__

        def init(one: Any, *given: Any, **named: Any) -> None:
            made(one, *given, **named)
            self.now += 1
            self.most = max(self.most, self.now)
            weakref.finalize(one, self._gone)

        patch.setattr(kind, "__init__", init)

    def _gone(self) -> None:
        self.now -= 1


def most_alive(composed: Compose, folder: Path, count: int) -> dict[str, int]:
    """Rows and conversations alive at once in two starts, an epoch, a validation and a measurement of ``count`` talks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shelf, "RECORDS", 4)
        for module in (datamodule, reference):
            patch.setattr(module, "WINDOW", 8)
        rows = Alive(Row, patch)
        # pydantic makes records past __init__; those of JSON and those of the reader come by these ways
        talks_alive = Alive(Conversation, patch)
        for maker in ("model_validate", "model_validate_json"):
            patch.setattr(Conversation, maker, through(maker, talks_alive))
        path = written(folder / f"{count}.jsonl", [conversation(6, name=f"t{n}") for n in range(count)])
        rows.most = talks_alive.most = talks_alive.now = 0
        store = f"paths.store={folder}/store{count}"
        started(composed, path, store)
        prepared = started(composed, path, store)
        assert len(prepared.corpora["train"].units) == 0.8 * count
        data = datamodule.RowDataModule(prepared.corpora, 4, 500, 0.0, 0)
        assert sum(len(set(batch.names)) for step in data.train_dataloader() for batch in step) >= 0.8 * count
        assert sum(len(set(batch.names)) for step in data.val_dataloader()[0] for batch in step) >= 0.2 * count
        patch.setattr(reference, "target_logprobs", lambda policy, batch: torch.zeros(len(batch.targets)))
        policy: Any = torch.nn.Linear(1, 1)
        policy.device = torch.device("cpu")
        measured = prepared.corpora["train"].scored([np.zeros(3, np.float32)] * int(0.8 * count))
        assert sum(1 for _ in score(policy, measured.rows, 500, "32-true")) == 0.8 * count
        return {"rows": rows.most, "conversations": talks_alive.most}


def through(maker: str, alive: Alive) -> Any:
    """The class method ``maker`` of conversations, with what it makes counted."""
    real = getattr(Conversation, maker).__func__

    def counted(cls: Any, *given: Any, **named: Any) -> Any:
        one = real(cls, *given, **named)
        alive.now += 1
        alive.most = max(alive.most, alive.now)
        weakref.finalize(one, alive._gone)
        return one

    return classmethod(counted)


def test_no_more_is_in_memory_for_more_conversations(composed: Compose, tmp_path: Path) -> None:
    few, many = (most_alive(composed, tmp_path, count) for count in (60, 120))
    assert few == many
    assert 0 < many["conversations"] <= 4
    assert 8 < many["rows"] <= 40


def test_every_reply_is_held_out_once_whatever_the_windows_and_ranks(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.jsonl", [conversation(6, name=f"t{n}") for n in range(50)])
    corpus = started(composed, path).corpora["valid"]
    want = sorted((row.name, tuple(row.ids[row.targets].tolist())) for row in corpus.rows)
    for window in (1, 3, 256):
        monkeypatch.setattr(datamodule, "WINDOW", window)
        for ranks in (1, 2, 3):
            parts = [datamodule.Windows(corpus, 300, rank, ranks) for rank in range(ranks)]
            batches = [batch for part in parts for index in range(len(part)) for batch in part[index]]
            assert {(batch.step_targets, batch.step_responses) for batch in batches} == {(corpus.targets, corpus.replies)}
            got: dict[str, list[int]] = {}
            for batch in batches:
                for token, response in zip(batch.targets.tolist(), batch.response.tolist(), strict=True):
                    got.setdefault(batch.names[response], []).append(token)
            assert sorted((name, tuple(ids)) for name, ids in got.items()) == want


def test_a_rank_with_nothing_to_learn_reads_one_token() -> None:
    long = max((row for unit in planted().units for row in unit), key=len)
    (batch,) = datamodule.Steps([[long]], 1, rank=1, world_size=2)[(0,)]
    assert (len(batch.ids), len(batch.targets)) == (1, 0)
    assert target_logprobs(small_model("llama"), batch).shape == (0,)


def test_scores_are_the_same_a_window_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = small_model("llama"), planted().rows
    whole = list(score(model.train(), rows, 700, "32-true"))
    assert model.training
    monkeypatch.setattr(reference, "WINDOW", 2)
    for got, want in zip(score(model, rows, 700, "32-true"), whole, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)
    kept = Parts[Any](np.concatenate(whole), np.cumsum([0, *Rows.of(rows).responses]))
    assert all(np.array_equal(a, b) for a, b in zip(kept, whole, strict=True))


def test_lines_are_read_one_by_one_and_end_as_in_text_mode(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"a": "\u2028\u0085"}\r\n\r{"b": 1}\r{"c": 2}\n\n{"d": 3}'.encode())
    found = [(raw.where, raw.value) for raw in files.read_file(path)]
    lines = path.read_text(encoding="utf-8").split("\n")
    assert found == [(f"a.jsonl:{n}", json.loads(line)) for n, line in enumerate(lines, start=1) if line]
    path.write_bytes('{"a": "é"}\n{"b": 1}\n'.encode() + b'{"c": "\xff"}\n')
    raws = files.read_file(path)
    assert [next(raws).value, next(raws).value] == [{"a": "é"}, {"b": 1}], "what is sound before a fault is read before it"
    with pytest.raises(DataFault, match=rf"a\.jsonl: not UTF-8 at byte {path.read_bytes().index(0xFF)}"):
        next(raws)


def test_a_large_file_is_hashed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esupport.store._LARGE", 4)
    hashed: list[str] = []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: (hashed.append(file.name), real(file, kind))[1])
    path, store = tmp_path / "a.bin", Store(tmp_path / "store")
    path.write_bytes(b"one large file")
    assert {store.digest(path) for _ in range(2)} == {hashlib.sha256(b"one large file").hexdigest()}
    assert len(hashed) == 2, "it was written just now, and may be again in the same moment"
    for content in (b"one large file", b"two large file"):
        path.write_bytes(content)
        rested = time.time() - 10 + len(hashed)
        os.utime(path, (rested, rested))
        before = len(hashed)
        assert {Store(tmp_path / "store").digest(path) for _ in range(3)} == {hashlib.sha256(content).hexdigest()}
        assert len(hashed) == before + 1


def test_held_out_pairs_are_those_of_the_same_conversations_as_ever(tmp_path: Path) -> None:
    made = [pair for n in range(10) for pair in pairs_of(conversation(8, name=f"t{n}"), (1, 3))]
    random.Random(1).shuffle(made)
    path = written(tmp_path / "pairs.jsonl", made)
    splits = source(path, pairs=path, fractions=FRACTIONS).read_pairs("data", Store(tmp_path / "store"))
    ranked = sorted({p.context.conversation for p in made}, key=lambda name: hashlib.sha256(f"0/{name}".encode()).digest())
    sides: tuple[tuple[Any, set[str]], ...] = ((splits.valid, set(ranked[:2])), (splits.train, set(ranked[2:])))
    for side, names in sides:
        own = [pair for pair in made if pair.context.conversation in names]
        order = list(dict.fromkeys(pair.context.conversation for pair in own))
        assert list(side) == sorted(own, key=lambda pair: order.index(pair.context.conversation))
    assert not len(splits.test)
    few = source(path, pairs=path, fractions=FRACTIONS, limit=3).read_pairs("data", Store(tmp_path / "store"))
    kept = [p.model_dump_json() for p in made if p.context.conversation in ranked[2:]][:3]
    assert sorted(pair.model_dump_json() for pair in few.train) == sorted(kept)
