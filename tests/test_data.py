"""Readers, faults, splits."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from esupport.data.conversation import Conversation, Turn, content_hash
from esupport.data.division import draw
from esupport.data.files import SPLITS, read_file, read_splits
from esupport.data.readers import chat, esconv, extes, native, pesc
from esupport.data.source import Source
from esupport.errors import DataFault, UserError
from esupport.store import Store
from esupport.training.environment import make

ESCONV = Path(__file__).parents[2] / "shared" / "data" / "esconv" / "valid.jsonl"
HUB = {
    "emotion_type": "fear",
    "problem_type": "job crisis",
    "situation": "My firm moves away.",
    "dialog": [
        {"text": "Hello there", "speaker": "sys", "strategy": "Others"},
        {"text": "hi ", "speaker": "usr"},
        {"text": "the firm moves", "speaker": "usr"},
        {"text": "Where to?", "speaker": "sys", "strategy": "Question"},
        {"text": "Far?", "speaker": "sys", "strategy": "Question"},
    ],
}
GITHUB = {
    "experience_type": "Current Experience",
    "emotion_type": "fear",
    "survey_score": {"seeker": {"initial_emotion_intensity": "5"}},
    "dialog": [
        {"speaker": "seeker", "annotation": {}, "content": "the firm moves"},
        {"speaker": "supporter", "annotation": {"strategy": "Question"}, "content": "Where to?"},
        {"speaker": "seeker", "annotation": {"feedback": "4"}, "content": "north"},
        {"speaker": "supporter", "annotation": {"strategy": "Information"}, "content": "It snows there."},
    ],
}
EXTES = {
    "scene": "Work",
    "description": "My firm moves away.",
    "content": [
        {"User": "the firm moves"},
        {"AI Strategy": "Question", "AI": "Where to?"},
        {"User": "north"},
        {"AI Strategy": "", "AI": "I see."},
    ],
}
PESC = {
    "17": {
        "whole_dialog": ["seeker: the firm moves: north", "supporter:Where to?", "seeker:north", "supporter:"],
        "character": {
            "Name": "Ada",
            "Age": 44,
            "Hobby": "chess",
            "emotion_type": "fear",
            "problem_type": "job",
            "situation": "The firm.",
        },
    }
}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
    ]
}


def source(path: Path | str, parse: Any = esconv.parse, **settings: Any) -> Source:
    fractions = {"train": 0.8, "valid": 0.1, "test": 0.1}
    return Source(
        str(path),
        parse,
        **{"split": "auto", "fractions": fractions, "seed": 0, "on_error": "stop", "limit": None, "pairs": None, **settings},
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def said(talk: Conversation) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in talk.turns]


def test_esconv_hub_form_alone_and_as_a_string_in_a_column() -> None:
    talk = esconv.parse(HUB)
    assert said(talk) == [("supporter", "Hello there"), ("seeker", "hi the firm moves"), ("supporter", "Where to? Far?")]
    assert talk.turns[2].strategy == "Question"
    assert (talk.emotion, talk.problem, talk.situation) == ("fear", "job crisis", "My firm moves away.")
    assert esconv.parse({"text": json.dumps(HUB)}) == talk


def test_esconv_github_form_and_the_negative_set() -> None:
    talk = esconv.parse(GITHUB)
    assert [turn.role for turn in talk.turns] == ["seeker", "supporter"] * 2
    assert talk.turns[2].feedback == 4
    assert talk.turns[3].strategy == "Information"
    names = {"seeker": "speaker", "supporter": "listener"}
    failed = {**GITHUB, "dialog": [{**u, "speaker": names[str(u["speaker"])]} for u in GITHUB["dialog"]]}  # type: ignore[index]
    assert said(esconv.parse(failed)) == said(talk)


def test_extes_pesc_and_chat() -> None:
    talk = extes.parse(EXTES)
    assert said(talk)[1] == ("supporter", "Where to?")
    assert (talk.problem, talk.turns[1].strategy, talk.turns[3].strategy) == ("Work", "Question", None)
    person = pesc.parse(PESC["17"], "17")
    assert said(person) == [
        ("seeker", "the firm moves: north"),
        ("supporter", "Where to?"),
        ("seeker", "north"),
        ("supporter", ""),
    ]
    assert person.profile == {"Name": "Ada", "Age": "44", "Hobby": "chess"}
    assert (person.id, person.emotion, person.situation) == ("17", "fear", "The firm.")
    assert person.supporter_turns() == [1]
    asked = chat.parse(CHAT)
    assert asked.instruction == "Be brief."
    assert said(asked) == [("seeker", "2+2?"), ("supporter", "4")]


def test_a_json_array_and_an_object_tell_each_record_its_line(tmp_path: Path, store: Store) -> None:
    array = tmp_path / "a.json"
    array.write_text(json.dumps([GITHUB, {**GITHUB, "dialog": 3}], indent=1))
    raws = list(read_file(array))
    lines = array.read_text().split("\n")
    assert [raw.value["emotion_type"] for raw in raws] == ["fear", "fear"]
    assert all(lines[int(raw.where.split(":")[1]) - 1].strip() == "{" for raw in raws)
    with pytest.raises(DataFault, match=rf"a\.json:{raws[1].where.split(':')[1]}: dialog: Input should be a valid list"):
        source(array).read("data", store)
    named = tmp_path / "p.json"
    named.write_text(json.dumps({**PESC, '1"8': PESC["17"]}, indent=2))
    assert [raw.key for raw in read_file(named)] == ["17", '1"8']
    assert source(named, pesc.parse).read("data", store).train[0].source == "pesc"
    twice = tmp_path / "t.json"
    twice.write_text('{"a": [1], "a": {"b": 2},\n "c": "]}"}')
    assert [*read_file(twice)] == [("t.json:1", "a", [1]), ("t.json:1", "a", {"b": 2}), ("t.json:2", "c", "]}")], "none is lost"
    for nothing in ("[]", " { } "):
        twice.write_text(nothing)
        assert not [*read_file(twice)]


def by_names(value: Any, key: str | None, names: dict[str, list[str]]) -> Conversation:
    """A reader of one's own, with settings that nest: who goes by which names."""
    assert type(names) is dict
    roles = {name: role for role, known in names.items() for name in known}
    turns = [{"role": roles[who], "text": text} for who, text in value]
    return Conversation.model_validate({"id": "0", "source": "own", "turns": turns}, strict=False)


def test_a_reader_of_ones_own_is_given_plain_lists_and_dicts(tmp_path: Path, store: Store) -> None:
    said = [["usr", "It rains."], ["bot", "Still?"], ["client", "Still."], ["bot", "Oh."]]
    path = write(tmp_path / "f.jsonl", said)
    names = {"seeker": ["usr", "client"], "supporter": ["bot"]}
    parse = {"_target_": f"{__name__}.by_names", "_partial_": True, "names": names}
    settings = {
        "split": "seed",
        "fractions": {"train": 1, "valid": 0, "test": 0},
        "seed": 0,
        "on_error": "stop",
        "limit": None,
        "pairs": None,
    }
    made: Source = make({"_target_": "esupport.data.source.Source", "path": str(path), "parse": parse, **settings}, "data")
    (talk,) = made.read("data", store).train
    assert [turn.role for turn in talk.turns] == ["seeker", "supporter"] * 2


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**HUB, "dialog": [*HUB["dialog"][:3], {"text": 7, "speaker": "sys"}]}, r"f\.jsonl:2: dialog\.3\.text: "),  # type: ignore[index]
        (
            {**HUB, "dialog": [{"text": "a", "speaker": "bot"}, {"text": "b", "speaker": "usr"}]},
            r"f\.jsonl:2: dialog\.0\.speaker: 'bot'",
        ),
        ({"text": "{"}, r"f\.jsonl:2: text: not JSON"),
        ({}, r"f\.jsonl:2: dialog: Field required"),
        ([1], r"f\.jsonl:2: "),
    ],
)
def test_a_fault_names_file_line_and_field_and_can_be_skipped(tmp_path: Path, record: Any, message: str, store: Store) -> None:
    path = write(tmp_path / "f.jsonl", HUB, record)
    with pytest.raises(DataFault, match=message):
        source(path).read("data", store)
    splits = source(path, on_error="skip").read("data", store)
    assert len(splits.train) == 1
    assert len(splits.skipped) == 1


def test_what_is_not_json_or_not_text_names_the_place(tmp_path: Path, store: Store) -> None:
    path = write(tmp_path / "f.jsonl", HUB)
    path.write_text(path.read_text() + '{"dialog": [\n')
    with pytest.raises(DataFault, match=r"f\.jsonl:2: not JSON: .* column"):
        source(path).read("data", store)
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataFault, match=r"b\.jsonl: not UTF-8 at byte 0"):
        source(tmp_path / "b.jsonl").read("data", store)
    with pytest.raises(UserError, match=r"data\.path: no such file"):
        source(tmp_path / "none.jsonl").read("data", store)


def talk(name: str, group: str | None = None) -> Conversation:
    return Conversation(id=name, group=group, turns=(Turn(role="seeker", text=name), Turn(role="supporter", text="ok")))


def test_drawn_splits_depend_on_seed_and_content_not_on_order_and_keep_groups_and_copies_together() -> None:
    talks = [talk(f"t{i}", f"g{i // 3}" if i < 30 else None) for i in range(100)]
    fractions = {"train": 0.6, "valid": 0.2, "test": 0.2}

    def drawn(talks: list[Conversation], seed: int) -> dict[str, list[Conversation]]:
        numbers = draw([t.group or content_hash(t.turns) for t in talks], fractions, seed)
        return {side: [talks[i] for i in own] for side, own in numbers.items()}

    sides = drawn(talks, 1)
    assert {s: {t.id for t in ts} for s, ts in sides.items()} == {
        s: {t.id for t in ts} for s, ts in drawn(talks[::-1], 1).items()
    }
    assert {t.id for t in sides["test"]} != {t.id for t in drawn(talks, 2)["test"]}
    assert sorted(t.id for ts in sides.values() for t in ts) == sorted(t.id for t in talks)
    assert all(abs(len(sides[s]) - 100 * f) <= 2 for s, f in fractions.items())
    where = {t.group: s for s, ts in sides.items() for t in ts if t.group}
    assert all(where[t.group] == s for s, ts in sides.items() for t in ts if t.group)


def test_a_copy_is_held_out_and_a_group_on_two_published_sides_is_refused(tmp_path: Path, store: Store) -> None:
    write(tmp_path / "train.jsonl", *(t.model_dump() for t in (talk("a"), talk("b"), talk("c"))))
    write(tmp_path / "test.jsonl", talk("b").model_copy(update={"id": "other"}).model_dump())
    splits = source(tmp_path, native.parse).read("data", store)
    assert [t.id for t in splits.train] == ["a", "c"]
    assert [t.id for t in splits.test] == ["other"]
    assert splits.duplicates == 1
    write(tmp_path / "train.jsonl", talk("a", "g").model_dump())
    write(tmp_path / "valid.jsonl", talk("d", "g").model_dump())
    with pytest.raises(UserError, match="group g is on two sides"):
        source(tmp_path, native.parse).read("data", store)


@pytest.mark.skipif(not ESCONV.exists(), reason="the ESConv file lies beside the project, not in it")
def test_the_real_esconv_file_reads(store: Store) -> None:
    splits = source(ESCONV).read("data", store)
    assert [len(splits.side(side)) for side in SPLITS] == [104, 13, 13]
    talks = [t for side in SPLITS for t in splits.side(side)]
    assert sum(len(t.supporter_turns()) for t in talks) == 1439
    assert all(one.role != two.role for t in talks for one, two in pairwise(t.turns))


def test_the_shipped_conversations_keep_their_promises(store: Store) -> None:
    splits = source("pkg://esupport.data/shipped", native.parse).read("data", store)
    talks = {side: splits.side(side) for side in SPLITS}
    every = [t for side in SPLITS for t in talks[side]]
    assert len(every) >= 72
    assert len({t.id for t in every}) == len(every)
    assert [round(6 * len(talks[side]) / len(every)) for side in SPLITS] == [4, 1, 1]
    assert len({t.problem for t in every}) >= 12
    sizes = Counter(t.group for t in every if t.group)
    assert set(sizes.values()) <= {2, 3}
    assert sum(sizes.values()) >= 48
    assert len({t.group for t in talks["test"] if t.group}) >= 10
    for t in every:
        assert 8 <= len(t.turns) <= 16
        assert t.profile
        assert t.emotion
        assert t.situation
        assert t.turns[0].role == "seeker"
        assert all(turn.strategy for turn in t.turns if turn.role == "supporter")
    profiles = {g: [t.profile for t in every if t.group == g] for g in sizes}
    assert all(one != two for people in profiles.values() for one, two in pairwise(people))
    openings = Counter(" ".join(turn.text.split()[:4]) for t in every for turn in t.turns if turn.role == "supporter")
    assert openings.most_common(1)[0][1] <= 4, "replies that begin alike read like templates"


def test_the_shipped_instruction_examples_keep_their_promises(store: Store) -> None:
    splits = source("pkg://esupport.data/shipped/replay", chat.parse).read("data", store)
    assert sum(len(splits.side(side)) for side in SPLITS) >= 80
    kinds = Counter(t.id.rpartition("-")[0] for side in SPLITS for t in splits.side(side))
    assert set(kinds) == {"general", "profile", "emotion", "situation", "rewrite"}


def test_a_preference_set_on_the_hub_is_read_by_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": "I lost my job.", "chosen": "What was it like?", "rejected": "Cheer up."}]
    there = datasets.DatasetDict(
        {name: datasets.Dataset.from_list(rows) for name in ("train_prefs", "test_prefs", "train_sft")}
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name: there if name == "somebody/preferences" else {})
    found = read_splits("somebody/preferences", "data.pairs")
    assert set(found) == {"train", "test"}
    (raw,) = found["train"]
    assert (raw.where, raw.value) == ("somebody/preferences/train_prefs:0", rows[0])
    with pytest.raises(UserError, match=r"data\.pairs: somebody/else has none of the splits"):
        read_splits("somebody/else", "data.pairs")
