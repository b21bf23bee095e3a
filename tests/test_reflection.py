"""Prompts, answers and what is made of them: sandboxed templates, tolerant parsing, quotations that were really said."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.utils import instantiate

from esupport.config.check import check_types
from esupport.config.command_line import composed
from esupport.data.conversation import Turn
from esupport.data.preference import UNKNOWN, Context, Finding
from esupport.errors import UserError
from esupport.generators.protocol import Reply, Request
from esupport.reflection import prompts
from esupport.reflection.method import Method, deepest
from esupport.reflection.parsing import parse_axis, parse_object, parse_reply
from esupport.reflection.steps import refine, reflect

GROUPS = ["personalized", "no_profile", "no_emotion", "no_situation", "no_reflection", "generic", "human", "own"]
CONTEXT = Context(
    conversation="c",
    turn=3,
    turns=(
        Turn(role="seeker", text="I drive a night bus. Since March nobody talks to me."),
        Turn(role="supporter", text="That sounds lonely."),
        Turn(role="seeker", text="It is. I count the stops so that I do not cry."),
    ),
)


def method(group: str = "personalized", *overrides: str) -> Method:
    plain = check_types("evolve", composed("evolve", [f"reflection={group}", *overrides]))
    made: Method = instantiate(plain["reflection"])
    return made


def answering(*answers: str, finished: bool = True) -> Any:
    """Asks are answered in turn, the last answer again and again; what was asked is kept."""
    left = list(answers)
    asked: list[list[Request]] = []

    def ask(requests: list[Request]) -> list[Reply]:
        asked.append(list(requests))
        return [Reply(text=left.pop(0) if len(left) > 1 else left[0], tokens=1, finished=finished) for _ in requests]

    ask.asked = asked  # type: ignore[attr-defined]
    return ask


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_renders_its_prompts(group: str) -> None:
    made = method(group)
    requests = made.reflect_requests(CONTEXT, CONTEXT, "Hm.", 0, 0) if made.asked else {}
    assert set(requests) == set(made.asked)
    for name, request in requests.items():
        text = request.messages[-1]["content"]
        assert "night bus" in text
        assert made.asked[name].question in text
        assert request.begun == made.asked[name].begun
    left_out = {"no_profile": "profile", "no_emotion": "emotion", "no_situation": "situation"}.get(group)
    assert left_out not in made.asked
    assert (group in ("no_reflection", "human")) == (not made.asked)
    if made.chosen == "refined":
        found = {name: Finding(text="forsaken") for name in made.asked}
        prompt = made.refine_request(CONTEXT, CONTEXT, "Hm.", found, 0, 0).messages[-1]["content"]
        assert '"Hm."' in prompt
        assert ("forsaken" in prompt) == bool(made.asked)
        assert (
            "unknown"
            not in made.refine_request(CONTEXT, CONTEXT, "Hm.", {"emotion": Finding(text=UNKNOWN)}, 0, 0).messages[-1][
                "content"
            ]
        )
    else:
        assert made.steps == {}


def test_all_requests_about_a_conversation_name_one_trunk() -> None:
    """Whatever the step, the axis, the attempt and the context: what its deepest transcript ends."""
    made = method()
    earlier = Context(conversation="c", turn=1, turns=CONTEXT.turns[:1])
    other = Context(conversation="d", turn=1, turns=CONTEXT.turns[:1])
    cut = Context(conversation="c", turn=5, turns=CONTEXT.turns[2:])
    after = deepest([earlier, CONTEXT, other, cut])
    first, deep, apart = ((one, after[one.key]) for one in (earlier, CONTEXT, other))
    requests = [
        *made.reflect_requests(*first, "Hm.", 0, 0).values(),
        *made.reflect_requests(*deep, "So.", 0, 1).values(),
        made.refine_request(*first, "Hm.", {"emotion": Finding(text="sad")}, 0, 1),
    ]
    trunk = requests[0].trunk
    assert all(request.trunk == trunk for request in requests)
    assert trunk[-1]["content"].endswith(CONTEXT.turns[-1].text)
    assert made.refine_request(*deep, "", {}, 0, 0).messages[-1]["content"].startswith(trunk[-1]["content"])
    assert made.refine_request(*apart, "", {}, 0, 0).trunk[-1]["content"].endswith(other.turns[-1].text)
    assert after[cut.key] is cut, "of which older turns were cut"
    for own in ("{% for t in turns %}{{ t.text }} {% endfor %}", "{{ draft }}\n{{ transcript }}"):
        assert method("personalized", f"reflection.refine.prompt='{own}'").refine_request(*deep, "Hm.", {}, 0, 0).trunk == ()


def test_generic_self_refinement_sees_the_draft_and_not_the_person() -> None:
    made = method("generic")
    (request,) = made.reflect_requests(CONTEXT, CONTEXT, "Cheer up.", 0, 0).values()
    assert "Cheer up." in request.messages[-1]["content"]
    assert set(made.asked) == {"feedback"}


def test_the_principles_stand_before_both_steps_and_a_prompt_has_a_version() -> None:
    made = method("personalized", "reflection.principles=Be careful.")
    requests = [
        *made.reflect_requests(CONTEXT, CONTEXT, "", 0, 0).values(),
        made.refine_request(CONTEXT, CONTEXT, "", {}, 0, 0),
    ]
    assert all(request.messages[0] == {"role": "system", "content": "Be careful."} for request in requests)
    other = method("personalized", "reflection.principles=Be brief.").refine_request(CONTEXT, CONTEXT, "", {}, 0, 0)
    assert other.version != requests[-1].version
    assert made.refine_request(CONTEXT, CONTEXT, "", {}, 1, 0).version == requests[-1].version, "a seed is no part of a prompt"
    assert made.refine_request(CONTEXT, CONTEXT, "", {}, 0, 1).seed != requests[-1].seed, "a retry draws anew"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ transcript.__init__.__globals__ }}",
        "{{ nothing }}",
        "{% for x in range(10**9) %}x{% endfor %}",
    ],
)
def test_templates_are_sandboxed_and_name_what_there_is(source: str) -> None:
    with pytest.raises(UserError, match=r"^k: .*transcript"):
        prompts.render("k", source, {"transcript": "t"})


def test_a_template_or_pattern_that_cannot_be_used_is_told_before_anything_runs() -> None:
    for override, message in (
        ("reflection.refine.prompt='{{ oops'", r"reflection\.refine\.prompt: not a Jinja2 template"),
        ("reflection.axes.emotion.pattern='('", r"reflection\.axes\.emotion\.pattern: not a regular expression"),
        ("reflection.axes.emotion.pattern='x'", r"reflection\.axes\.emotion\.pattern: needs a group named text"),
    ):
        with pytest.raises(Exception, match=message):
            method("personalized", override)


def test_a_profile_is_not_inferred_before_its_turn() -> None:
    made = method("personalized", "reflection.axes.profile.from_turn=3")
    assert "profile" not in made.axes_of(CONTEXT)
    ask = answering("tired.")
    outcome = reflect(made, [CONTEXT], {CONTEXT.key: "d"}, 0, ask)
    assert outcome.values[CONTEXT.key]["profile"] == Finding(text=UNKNOWN)
    assert outcome.values[CONTEXT.key]["emotion"].text == "tired."
    assert not [request for request in ask.asked[0] if request.id.endswith("/profile")]


@pytest.mark.parametrize(
    ("answer", "text", "evidence"),
    [
        ("a bus driver who counts the stops.", "a bus driver who counts the stops.", "I count the stops so that I do not cry."),
        ("sad. And more.", "sad.", ""),
        ("unknown", UNKNOWN, ""),
        ("Unknown.", UNKNOWN, ""),
        ("not  mentioned", UNKNOWN, ""),
    ],
)
def test_an_axis_is_read(answer: str, text: str, evidence: str) -> None:
    pattern = method().asked["emotion"].pattern
    assert parse_axis(answer, pattern, CONTEXT) == Finding(text=text, evidence=evidence)


@pytest.mark.parametrize("answer", ["", "  ", "...", "?!", "😀😀😀"])
def test_an_axis_that_cannot_be_read_is_none(answer: str) -> None:
    assert parse_axis(answer, method().asked["emotion"].pattern, CONTEXT) is None


def test_a_quotation_is_kept_only_if_the_seeker_said_it() -> None:
    pattern = '(?P<text>.+?), as in "(?P<evidence>[^"]+)"'
    said = parse_axis('lonely, as in "nobody talks to me"', pattern, CONTEXT)
    assert said == Finding(text="lonely", evidence="nobody talks to me")
    for never in ("nobody likes me", "That sounds lonely", "body talks to me"):
        assert parse_axis(f'lonely, as in "{never}"', pattern, CONTEXT) == Finding(text="lonely")


@pytest.mark.parametrize(
    "answer",
    [
        '{"emotion": {"text": "lonely", "evidence": "nobody talks to me"}, "need": {"text": "company", "evidence": ""}}',
        'Sure!\n```json\n{"emotion": {"text": "lonely", "evidence": "\\"Nobody talks to me.\\""}, "need": "company"}\n```',
        '{"emotion": {"text": "lonely\n", "evidence": "nobody talks to me"}, "need": {"text": "company"}, "more": 1}',
    ],
)
def test_json_is_read_as_models_write_it(answer: str) -> None:
    found = parse_object(answer, ["emotion", "need"], CONTEXT)
    assert found is not None
    assert found["emotion"].text == "lonely"
    assert found["emotion"].evidence.lower().startswith("nobody talks to me")
    assert found["need"].text == "company"


@pytest.mark.parametrize(
    "answer",
    ["", "no", "{", '{"emotion": "x"}', '{"emotion": 3, "need": "y"}', '["a"]', '{"emotion": {"text": ""}, "need": "y"}', "{}"],
)
def test_json_that_lacks_something_is_none(answer: str) -> None:
    assert parse_object(answer, ["emotion", "need"], CONTEXT) is None


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ("Hello there.", "Hello there."),
        ('"Hello there."', "Hello there."),
        ("Supporter: Hello there.", "Hello there."),
        ("Here is a refined reply:\n\nHello there.", "Hello there."),
        ('**Refined response:** "Hello there."', "Hello there."),
        ('Supporter: "Hello there."', "Hello there."),
        ('"Supporter: Hello there."', "Hello there."),
        ('Supporter: "Hello," is all she said.', '"Hello," is all she said.'),
        ("Supporter: (a pause) Hello.", "(a pause) Hello."),
        ("Here's a thought: tell her at breakfast.", "Here's a thought: tell her at breakfast."),
        ("```\nHello there.\n```", "Hello there."),
        ('"Hello," she said, "there."', '"Hello," she said, "there."'),
        ("I hear you: it is hard.", "I hear you: it is hard."),
        ("<think>She needs comfort.</think>\nHello there.", "Hello there."),
        ("She needs comfort.</think>Hello there.", "Hello there."),
        ("<think>She needs comfort, so", ""),
        ("Supporter:", ""),
        ("  ", ""),
    ],
)
def test_a_refined_reply_loses_its_wrapping_and_nothing_else(answer: str, reply: str) -> None:
    assert parse_reply(answer) == reply


def test_what_cannot_be_read_is_asked_again_with_another_seed() -> None:
    made = method("personalized", "reflection.reflect.retries=2", "reflection.form=json")
    whole = '"profile": "a", "emotion": "b", "situation": "c", "need": "d"}'
    ask = answering("nonsense", "{", whole)
    outcome = reflect(made, [CONTEXT], {CONTEXT.key: "d"}, 0, ask)
    assert [len(requests) for requests in ask.asked] == [1, 1, 1]
    assert len({requests[0].seed for requests in ask.asked}) == 3
    assert len({requests[0].version for requests in ask.asked}) == 1
    assert outcome.counts["retried"] == 2
    assert outcome.unusable == {CONTEXT.key: "reflect: no answer could be read"}, "the object was begun nowhere"
    made = method("personalized", "reflection.reflect.begun='{'", "reflection.form=json")
    outcome = reflect(made, [CONTEXT], {CONTEXT.key: "d"}, 0, answering(whole))
    assert outcome.unusable == {}
    assert outcome.values[CONTEXT.key]["need"] == Finding(text="d")


def test_a_refinement_that_does_not_end_is_asked_again_and_then_marked() -> None:
    made = method("personalized", "reflection.refine.retries=1")
    ask = answering("A reply that goes on", finished=False)
    outcome = refine(made, [CONTEXT], {CONTEXT.key: "d"}, {}, 0, ask, lambda *said: {} if said[-1] else {"unfinished": "cut"})
    assert len(ask.asked) == 2
    assert outcome.unended == {CONTEXT.key}
    assert outcome.unusable == {}
    outcome = refine(made, [CONTEXT], {CONTEXT.key: "d"}, {}, 0, answering(""), no_fault)
    assert outcome.unusable == {CONTEXT.key: "refine: the reply is empty"}


def test_a_refinement_that_a_filter_would_drop_is_written_anew_and_kept_with_the_reason() -> None:
    made = method("personalized", "reflection.refine.retries=3")
    judged = []

    def judge(key: str, text: str, ended: bool) -> dict[str, str]:
        judged.append((key, text, ended))
        return {} if text == "A question?" else {"same_as_draft": "the reply is the draft"}

    ask = answering("d", "", "A question?", "never asked")
    outcome = refine(made, [CONTEXT], {CONTEXT.key: "d"}, {}, 0, ask, judge)
    assert len({requests[0].seed for requests in ask.asked}) == len(ask.asked) == 3
    assert judged == [(CONTEXT.key, "d", True), (CONTEXT.key, "A question?", True)], "an empty one is no filter's business"
    assert outcome.values == {CONTEXT.key: "A question?"}
    assert outcome.unusable == {}
    assert outcome.counts == {"asked": 1, "retried": 2, "unparsable": 0, "unended": 0}
    assert [(one.text, one.verdicts) for one in outcome.refused[CONTEXT.key]] == [
        ("d", {"same_as_draft": "the reply is the draft"}),
        ("", {"unparsable": "refine: the reply is empty"}),
    ]
    outcome = refine(made, [CONTEXT], {CONTEXT.key: "d"}, {}, 0, answering("d"), judge)
    assert outcome.values == {CONTEXT.key: "d"}, "the last attempt counts, and the filters will say so"
    assert len(outcome.refused[CONTEXT.key]) == 3


def no_fault(_key: str, _text: str, _ended: bool) -> dict[str, str]:
    return {}
