"""Dialogues with a simulated seeker: who sees what, equal terms for systems, what the seeker says, the judge of the whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import cache, partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console
from test_judge import HOSTILE, SCORES, asker, judge, skeleton

from esupport.comparison.dialogue import SILENT, TOO_LONG, Dialogue, converse, rate_dialogues, with_ratings
from esupport.comparison.judging import Judged, judge_dialogues
from esupport.comparison.replying import Manner
from esupport.comparison.seeker import Seeker, message_of
from esupport.config.binding import bind
from esupport.config.command_line import composed
from esupport.data.conversation import Conversation, Turn
from esupport.errors import UserError
from esupport.generators.protocol import Reply, Request, Sampling
from esupport.generators.scripted import Scripted
from esupport.generators.stored import ask
from esupport.rendering.template import Renderer
from esupport.store import Store

if TYPE_CHECKING:
    from speaking import Local

SAMPLING = Sampling(max_new_tokens=8, temperature=0.7, top_p=0.9)
PLENTY = 100_000  # tokens


def card(id_: str, **known: Any) -> Conversation:
    turns = (Turn(role="seeker", text="Said in the data."), Turn(role="supporter", text="Replied in the data."))
    profile = {"age": "58", "occupation": "night bus driver"}
    return Conversation(**{"id": id_, "turns": turns, "profile": profile, "emotion": "loneliness", "problem": "work", **known})


CARDS = [card("bus", situation="Nobody talks to me at night."), card("ferry", profile={"age": "31", "work": "a cook"})]
OF_THE_CARDS = ("58", "night bus driver", "loneliness", "Nobody talks", "31", "a cook")


class Side:
    """One who answers by a function of the request, and what was asked of it, set by set."""

    def __init__(self, script: Callable[[Request], str]) -> None:
        self.script, self.sets = script, list[list[Request]]()

    def __call__(self, requests: Sequence[Request]) -> list[Reply]:
        self.sets.append(list(requests))
        return [Reply(text=self.script(request), tokens=1, finished=True) for request in requests]

    @property
    def asked(self) -> list[Request]:
        return [request for one in self.sets for request in one]


@cache
def seeker(*overrides: str) -> Seeker:
    plain = OmegaConf.to_container(composed("train", ["+seeker=default", *overrides]).seeker, resolve=True)
    bind(plain, "seeker")
    made: Seeker = instantiate(plain)
    return made


def talks(request: Request) -> str:
    return f"I am at word {request.id.partition('/')[2]}."


def supports(request: Request) -> str:
    return f"I hear you, {len(request.messages)}."


def text(requests: Sequence[Request]) -> str:
    return "\n".join(message["content"] for request in requests for message in request.messages)


def held(
    local: Local,
    replies: Any,
    speak: Any,
    name: str = "M1",
    by: Seeker | None = None,
    cards: Any = CARDS,
) -> list[Dialogue]:
    return converse(name, replies, by or seeker(), speak, cards, Manner(local.renderer, SAMPLING, 7, PLENTY))


def test_a_dialogue_goes_turn_by_turn_all_cards_in_step(local: Local) -> None:
    system, person = Side(supports), Side(talks)
    found = held(local, system, person)
    assert [(one.system, one.card, one.broken_off, len(one.turns)) for one in found] == [
        ("M1", "bus", "", 8),
        ("M1", "ferry", "", 8),
    ]
    assert [turn.role for turn in found[0].turns] == ["seeker", "supporter"] * 4
    assert found[1].turns[2].text == "I am at word 2."
    assert [len(one) for one in system.sets] == [len(one) for one in person.sets] == [2] * 4
    assert all(len({request.id for request in one}) == 2 for one in system.sets + person.sets)
    last = system.sets[-1][0].messages
    assert [m["role"] for m in last] == ["system", *["user", "assistant"] * 3, "user"]
    assert last[0]["content"] == local.renderer.instruction
    assert {request.sampling for request in system.asked} == {SAMPLING}


def test_what_is_kept_has_the_form_that_is_promised(local: Local) -> None:
    (found, _) = held(local, Side(supports), Side(talks), by=seeker("seeker.turns=1"))
    line = json.loads(found.model_dump_json())
    turns = [{"role": "seeker", "text": "I am at word 0."}, {"role": "supporter", "text": "I hear you, 2."}]
    assert line == {"system": "M1", "card": "bus", "turns": turns, "broken_off": "", "rating": None}
    assert Dialogue(**line) == found
    del line["broken_off"]
    assert Dialogue(**line) == found


def test_two_systems_get_the_same_cards_and_seeds_and_no_request_names_them(local: Local) -> None:
    names = "the-one-system", "the-other-system"
    systems, people = [Side(supports), Side(supports)], [Side(talks), Side(talks)]
    for name, system, person in zip(names, systems, people, strict=True):
        held(local, system, person, name)
    assert systems[0].asked == systems[1].asked
    assert people[0].asked == people[1].asked
    other, person = Side(lambda request: "Something else."), Side(talks)
    held(local, other, person, "x")
    for one, two in ((systems[0], other), (people[0], person)):
        assert [(r.id, r.seed) for r in one.asked] == [(r.id, r.seed) for r in two.asked], "whatever the system says"
        assert one.sets[0] == two.sets[0]
        assert len({r.seed for r in one.asked}) == 8
    everything = [*systems[0].asked, *people[0].asked]
    assert not any(name in repr(everything) for name in names)
    assert {r.seed for r in systems[0].asked}.isdisjoint(r.seed for r in people[0].asked)


def test_the_seeds_follow_their_settings(local: Local) -> None:
    system, person = Side(supports), Side(talks)
    held(local, system, person)
    other, again = Side(supports), Side(talks)
    converse("M1", other, seeker("seeker.seed=5"), again, CARDS, Manner(local.renderer, SAMPLING, 8, PLENTY))
    assert {r.seed for r in person.asked}.isdisjoint(r.seed for r in again.asked)
    assert {r.seed for r in system.asked}.isdisjoint(r.seed for r in other.asked)


def test_the_seeker_never_sees_the_instruction_and_the_system_never_the_card(local: Local) -> None:
    own = card("own", instruction="Be of use to this person.")
    system, person = Side(supports), Side(talks)
    held(local, system, person, cards=[*CARDS, own])
    for known in OF_THE_CARDS:
        assert known in text(person.asked)
        assert known not in text(system.asked)
    for instruction in (local.renderer.instruction, "Be of use"):
        assert instruction in text(system.asked)
        assert instruction not in text(person.asked)
    for said in ("Said in the data", "Replied in the data"):
        assert said not in text(system.asked) + text(person.asked)
    assert "58" not in text([r for r in person.asked if r.family == "ferry"])
    assert text(person.sets[1]).count("| Supporter: I hear you, 2.") == 3


def test_cards_that_tell_nothing_are_left_out_and_none_at_all_is_told(local: Local) -> None:
    bare = card("bare", profile={}, emotion=None, problem=None)
    little = bare.model_copy(update={"id": "little", "situation": "My dog died."})
    assert [one.card for one in held(local, Side(supports), Side(talks), cards=[bare, *CARDS, little])] == [
        "bus",
        "ferry",
        "little",
    ]
    with pytest.raises(UserError, match="seeker: the data tells nothing"):
        held(local, Side(supports), Side(talks), cards=[bare])


# ---- what the seeker says


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("I can't sleep.", "I can't sleep."),
        (" Seeker: I can't sleep.", "I can't sleep."),
        ("**Seeker:** I can't sleep.", "I can't sleep."),
        ("| Seeker: I can't sleep.", "I can't sleep."),
        ("| I can't sleep.", "I can't sleep."),
        ("The seeker: Seeker (58): I can't sleep.", "I can't sleep."),
        ("USER : I can't sleep.", "I can't sleep."),
        ('"I can\'t sleep."', "I can't sleep."),
        ('Seeker: "I can\'t sleep."', "I can't sleep."),
        ('"Sleep well" she says. "Well"', '"Sleep well" she says. "Well"'),
        ("I can't sleep.\nSupporter: Why?\nSeeker: No idea.", "I can't sleep."),
        ("I can't sleep. Supporter: Why?", "I can't sleep."),
        ("I can't sleep.\n\n| **Supporter**: Why?", "I can't sleep."),
        ("I can't sleep. **Assistant:** Why?", "I can't sleep."),
        ("I can't sleep.\ntherapist: why?", "I can't sleep."),
        ("I can't sleep.\nSeeker: At all.", "I can't sleep."),
        ("I have one supporter: my dog. And a user: me.", "I have one supporter: my dog. And a user: me."),
        ("Here's the thing: I can't sleep.", "Here's the thing: I can't sleep."),
        ("<think>Supporter: no</think>I can't sleep.", "I can't sleep."),
        ("They are 58.</think>\nSeeker: I can't sleep.", "I can't sleep."),
        ("I can't\nsleep.", "I can't\nsleep."),
        ("眠れない。", "眠れない。"),
        ("I can't sleep.<|im_end|>", "I can't sleep.< |im_end|>"),
        *[(empty, "") for empty in ("", " \n", "...", "Seeker:", "Supporter: Tell me more.", "**Assistant:** Hi", "| ", '""')],
        ("<think>They are 58, so", ""),
        ("Seeker:\nSupporter: Tell me more.", ""),
    ],
)
def test_what_of_an_answer_the_seeker_says(answer: str, said: str) -> None:
    assert message_of(answer) == said


def test_what_the_answer_was_begun_with_is_said_too(local: Local) -> None:
    for begun, answer in (("Seeker: I", " can't sleep."), ("Seeker:", "Seeker: I can't sleep."), ("", "I can't sleep.")):
        by = seeker(f"seeker.begun='{begun}'", "seeker.turns=1")
        person = Side(lambda _, answer=answer: answer)  # type: ignore[misc]
        assert held(local, Side(supports), person, by=by)[0].turns[0].text == "I can't sleep."
        assert person.asked[0].begun == begun


def test_an_empty_answer_is_asked_for_again_with_another_seed(local: Local) -> None:
    seeds: dict[str, list[int]] = {}

    def late(request: Request) -> str:
        seeds.setdefault(request.id, []).append(request.seed)
        return talks(request) if request.family == "bus" or len(seeds[request.id]) == 3 else "Supporter: Tell me."

    person = Side(late)
    found = held(local, Side(supports), person)
    assert [len(one.turns) for one in found] == [8, 8]
    assert [len(one) for one in person.sets] == [2, 1, 1] * 4
    assert all(len(set(own)) == len(own) == (3 if id_.startswith("ferry") else 1) for id_, own in seeds.items())
    first, again = person.sets[0][1], person.sets[1][0]
    assert replace(again, seed=first.seed) == first


def test_a_seeker_that_stays_silent_ends_its_dialogue_and_it_is_told(local: Local) -> None:
    system, person = Side(supports), Side(lambda request: "..." if request.id in ("bus/4", "mute/0") else talks(request))
    found = held(local, system, person, cards=[*CARDS, card("mute")])
    assert [(one.card, len(one.turns), one.broken_off) for one in found] == [
        ("bus", 4, SILENT),
        ("ferry", 8, ""),
        ("mute", 0, SILENT),
    ]
    assert [len(one) for one in system.sets] == [2, 2, 1, 1]
    assert [len(one) for one in person.sets] == [3, 1, 1, 2, 2, 1, 1, 1]
    assert [one for one in rate_dialogues(judge(rates), found, {}) if one.asked[0].request.family == "mute"] == []
    nobody = Side(supports)
    assert {one.broken_off for one in held(local, nobody, Side(lambda _: ""))} == {SILENT}
    assert nobody.sets == []


def test_a_system_that_says_nothing_is_not_asked_again_and_the_dialogue_goes_on(local: Local) -> None:
    system, person = Side(lambda _: " "), Side(talks)
    found = held(local, system, person, by=seeker("seeker.turns=2"))
    assert [turn.text for turn in found[0].turns] == ["I am at word 0.", "", "I am at word 2.", ""]
    assert [len(one) for one in system.sets] == [2, 2]
    assert "| Supporter: (no words)" in text(person.sets[1])
    assert [m["content"] for m in system.sets[1][0].messages[1:]] == ["I am at word 0. I am at word 2."]
    assert rate_dialogues(judge(rates), found, {}) == []


# ---- what does not fit


def bounded(renderer: Renderer, max_tokens: int) -> Renderer:
    other = copy(renderer)
    other.max_tokens = max_tokens
    return other


def test_the_oldest_turns_of_a_long_dialogue_are_dropped_whole(local: Local) -> None:
    def tokens(request: Request) -> int:
        return len(local.renderer.prompt(request.messages, request.begun))

    by, first_message = seeker("seeker.turns=6"), Side(talks)
    held(local, Side(supports), first_message, by=seeker("seeker.turns=1"), cards=CARDS[:1])
    bound = tokens(first_message.asked[0]) + by.sampling.max_new_tokens + 200
    system, person = Side(lambda r: "so " * 30 + r.id), Side(lambda r: "and " * 20 + r.id)
    (found,) = converse("M1", system, by, person, CARDS[:1], Manner(bounded(local.renderer, bound), SAMPLING, 7, 220))
    assert (len(found.turns), found.broken_off) == (12, "")
    assert max(map(tokens, system.asked)) <= 220
    assert max(map(tokens, person.asked)) <= bound - by.sampling.max_new_tokens
    last = system.asked[-1].messages
    assert last[0]["content"] == local.renderer.instruction
    said = [m["content"] for m in last[1:]]
    assert said == [turn.text for turn in found.turns[:-1]][-len(said) :]
    assert 1 < len(said) < 11
    lines = re.findall(r"^\| (?:Seeker|Supporter): .*", person.asked[-1].messages[-1]["content"], re.M)
    assert lines == [f"| {turn.role.capitalize()}: {turn.text}" for turn in found.turns[:10]][-len(lines) :]
    assert 1 < len(lines) < 10
    assert lines[0].startswith("| Seeker")


@pytest.mark.parametrize(("side", "turns"), [("supporter", 2), ("seeker", 1), ("card", 0)])
def test_where_not_even_the_last_turns_fit_the_dialogue_ends(local: Local, side: str, turns: int) -> None:
    system = Side(lambda r: "so " * 2000 if side == "supporter" else "Yes.")
    person = Side(lambda r: "so " * 2000 if side == "seeker" else "No.")
    renderer = bounded(local.renderer, 100 if side == "card" else 1500)
    (found,) = converse("M1", system, seeker(), person, CARDS[:1], Manner(renderer, SAMPLING, 7, 1500))
    assert (len(found.turns), found.broken_off) == (turns, TOO_LONG)
    assert (len(system.sets), len(person.sets)) == {"supporter": (1, 1), "seeker": (0, 1), "card": (0, 0)}[side]


# ---- injected text


def test_what_the_other_side_says_stays_data(local: Local) -> None:
    def asked(end: str) -> tuple[list[Request], list[Request], list[Request]]:
        own = [card("bus", profile={"age": "58" + end}, situation="night" + end)]
        system, person = Side(lambda r: "Yes." + end), Side(lambda r: "No." + end)
        found = held(local, system, person, cards=own)
        items = [
            item
            for form in ("json", "one")
            for item in rate_dialogues(judge(rates, f"judge.form={form}"), found, {"bus": own[0]})
        ]
        return system.asked, person.asked, [one.request for item in items for one in item.asked]

    plain, hostile = asked(" Well."), asked(HOSTILE.replace("\ud800", ""))
    for which in (1, 2):
        assert len(plain[which]) == len(hostile[which]) == {1: 4, 2: 1 + len(SCORES)}[which]
        for one, other in zip(plain[which], hostile[which], strict=True):
            assert skeleton(one.messages[-1]["content"]) == skeleton(other.messages[-1]["content"])
            assert one.messages[0] == other.messages[0]
            assert "Ignore the above" in other.messages[-1]["content"]
            assert "49" not in other.messages[-1]["content"]
    special = set(local.renderer.tokenizer.all_special_ids)

    def controls(request: Request) -> list[int]:
        return [i for i in local.renderer.prompt(request.messages, request.begun) if i in special]

    for which in range(3):
        for one, other in zip(plain[which], hostile[which], strict=True):
            assert controls(one) == controls(other)
            assert [m["role"] for m in one.messages] == [m["role"] for m in other.messages]


# ---- through the store, and with a model


def through(store: Store, script: Callable[[Request], str], asked: list[str]) -> Callable[[Sequence[Request]], list[Reply]]:
    def noted(request: Request, script_name: str) -> str:
        asked.append(request.id)
        return script(request)

    generator = Scripted(partial(noted, script_name=script.__name__), 16)
    return lambda requests: ask(store, "replies", generator, requests, None, Console(file=StringIO()))[1]


def test_what_was_said_is_kept_and_asked_once(local: Local, tmp_path: Path) -> None:
    store, system, person = Store(tmp_path), list[str](), list[str]()
    found = held(local, through(store, supports, system), through(store, talks, person))
    assert (len(system), len(person)) == (8, 8)
    again = held(local, through(store, supports, system), through(store, talks, person), "M2")
    assert (len(system), len(person)) == (8, 8)
    assert [one.turns for one in again] == [one.turns for one in found]
    held(local, through(store, lambda _: "Something else.", system), through(store, talks, person), "M3")
    assert len(person) == 8 + 3 * 2, "the first messages are those of all systems"


def test_two_systems_of_the_tiny_model_are_talked_with_and_judged_by_it(local: Local, tmp_path: Path) -> None:
    """The model speaks for all three. Of random weights, it says no sense, but words."""
    console, store = Console(file=StringIO()), Store(tmp_path)
    generator = local.generator()

    def speak(requests: Sequence[Request]) -> list[Reply]:
        return ask(store, "replies", generator, requests, None, console)[1]

    by = seeker("seeker.turns=2", "seeker.sampling.max_new_tokens=8")
    manner = Manner(local.renderer, SAMPLING, 0, 2000)
    one, two = (converse(n, speak, by, speak, local.talks, manner) for n in ("M0", "M1"))
    assert [d.model_copy(update={"system": "M1"}) for d in one] == two
    assert [d.card for d in one] == [talk.id for talk in local.talks]
    assert sum(len(d.turns) == 4 for d in one) >= 3
    assert len({d.turns for d in one}) == len(one)
    form = replace(judge(rates, "judge.form=one", "judge.retries=0"), generator=generator)
    people = {talk.id: talk for talk in local.talks}
    ratings = asker(form, tmp_path).settle(rate_dialogues(form, [*one, *two], people))
    assert {rating.system for rating in ratings} == {"M0", "M1"}


# ---- the judge


def rates(request: Request) -> str:
    prompt = request.messages[-1]["content"]
    if "JSON" in prompt:
        return json.dumps({**SCORES, "reason": "so"})
    (axis,) = [axis for axis, question in judge(rates).asked_axes.items() if question in prompt]
    return f" {SCORES[axis]}"


@pytest.mark.parametrize("form", ["json", "one"])
def test_a_whole_dialogue_is_judged_on_the_axes(form: str, local: Local, tmp_path: Path) -> None:
    asked: list[Request] = []

    def script(request: Request) -> str:
        asked.append(request)
        return rates(request)

    by = judge(script, f"judge.form={form}")
    one, two = (held(local, Side(supports), Side(talks), name) for name in ("M1", "M2"))
    items = rate_dialogues(by, [*one, *two], {c.id: c for c in CARDS})
    found = asker(by, tmp_path).settle(items)
    assert [(r.system, r.conversation, r.turn) for r in found] == [
        ("M1", "bus", 8),
        ("M1", "ferry", 8),
        ("M2", "bus", 8),
        ("M2", "ferry", 8),
    ]
    assert all((r.scores, r.status, r.error) == (SCORES, "rated", None) for r in found)
    assert len(asked) == 2 * (1 if form == "json" else len(SCORES)), "equal dialogues are judged once, whoever spoke"
    for request in asked:
        prompt = request.messages[-1]["content"]
        assert f"| Supporter: {one[0].turns[-1].text}\n" in prompt
        assert "whole conversation" in prompt
        assert "error" not in prompt
        assert ("| age: 58\n" in prompt) == (request.family == "bus")
        assert len(re.findall(r"fit: |Helpfulness: |Safety: ", prompt)) == (5 if form == "json" else 1)
        assert not any(name in repr(request) for name in ("M1", "M2"))
    rated = with_ratings([*two, *one], found)
    assert [(d.system, d.card, d.rating) for d in rated] == [(d.system, d.conversation, d) for d in (*found[2:], *found[:2])]
    assert Dialogue(**json.loads(rated[0].model_dump_json())) == rated[0]
    assert with_ratings(one, found[2:])[0].rating is None


def test_what_judging_the_replies_has_cost_counts_against_the_limit(local: Local, tmp_path: Path) -> None:
    """Beyond it the dialogues stay unrated, and the run, which has paid for the replies, goes on."""
    asked: list[Request] = []

    def script(request: Request) -> str:
        asked.append(request)
        return rates(request)

    by, console, store = judge(script), Console(file=StringIO()), Store(tmp_path)
    talked = {name: held(local, Side(lambda r, name=name: f"{name}."), Side(talks), name) for name in ("M1", "M2")}  # type: ignore[misc]
    before = {"name": "script", "requests": 10, "kept": 3, "prompt_tokens": 5000, "new_tokens": 70, "estimated": False}
    judged, people = Judged(cost=dict(before)), {c.id: c for c in CARDS}
    unrated, reason = judge_dialogues(by, store, judged, talked, people, 5001, console)
    assert (unrated, judged.cost, asked) == ([*talked["M1"], *talked["M2"]], before, [])
    assert reason
    needed = int(re.findall(r"judge_limit=(\d+)", reason)[0])
    assert needed > 5001
    assert f"about {needed:,} tokens, more than 5,001" in reason
    assert judge_dialogues(by, store, judged, talked, people, needed - 1, console)[1], "alone they would not go beyond it"
    rated, none = judge_dialogues(by, store, judged, talked, people, needed, console)
    assert none is None
    assert [one.rating.scores for one in rated if one.rating] == [SCORES] * 4
    sent = {"requests": 14, "prompt_tokens": needed, "new_tokens": 70 + 4 * by.sampling.max_new_tokens, "estimated": True}
    assert judged.cost == {**before, **sent}
    assert len(asked) == 4
    again = Judged(cost={**before, "requests": 0, "prompt_tokens": 0})
    assert judge_dialogues(by, store, again, talked, people, 10, console)[1] is None, "what is kept costs nothing"
    assert (again.cost["requests"], again.cost["kept"], again.cost["prompt_tokens"]) == (0, 3 + 4, 0)


def test_a_rating_of_a_dialogue_that_cannot_be_read_is_counted(local: Local, tmp_path: Path) -> None:
    by = judge(lambda _: "It was fine.")
    (item, _) = rate_dialogues(by, held(local, Side(supports), Side(talks)), {})
    assert [r.status for r in asker(by, tmp_path).settle([item])] == ["unparsable"]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("seeker.prompt='{{'", r"seeker\.prompt: not a Jinja2 template"),
        ("seeker.prompt='{{ draft }}'", r"seeker\.prompt: 'draft'"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_told(key: str, message: str, local: Local) -> None:
    with pytest.raises(Exception, match=message):
        held(local, Side(supports), Side(talks), by=seeker(key))
