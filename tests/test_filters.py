"""Each filter drops what it should and nothing else, on hostile texts too, and seldom a reply that a human wrote."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from esupport.config.command_line import CONF
from esupport.data.conversation import Turn
from esupport.data.preference import UNKNOWN, Context, Finding, PreferencePair
from esupport.data.readers import esconv, native
from esupport.data.source import Source
from esupport.errors import UserError
from esupport.reflection import filters as rules
from esupport.reflection.filters import judge
from esupport.reflection.wording import compiled, plain, sentences, similarity, words
from esupport.store import Store

ESCONV = Path(__file__).parents[2] / "shared" / "data" / "esconv" / "valid.jsonl"
NAMES = [
    "empty",
    "unfinished",
    "same_as_draft",
    "leaked_analysis",
    "recites_profile",
    "speaks_for_seeker",
    "repeats_itself",
    "length_ratio",
    "duplicate_context",
    "unsafe",
]
SAID = "I lost my job at the bank on Monday and I haven't told my wife yet"
DRAFT = "That sounds hard. Have you got anyone you could tell before the weekend comes round?"
GOOD = "Since Monday, and alone with it. What would you want her to hear first?"


SETTINGS: Any = OmegaConf.to_container(OmegaConf.load(CONF / "filters" / "default.yaml"))


def shipped() -> Any:
    """The filters of conf/filters/default.yaml, new ones each time."""
    return {name: instantiate(node) for name, node in SETTINGS.items()}


def pair(chosen: str = GOOD, rejected: str = DRAFT, *turns: str, **findings: str) -> PreferencePair:
    """``turns`` are the context's, the last one the seeker's."""
    said = turns or (SAID,)
    roles = ["seeker" if (len(said) - 1 - i) % 2 == 0 else "supporter" for i in range(len(said))]
    return PreferencePair(
        context=Context(
            conversation="c", turn=len(said), turns=tuple(Turn(role=r, text=t) for r, t in zip(roles, said, strict=True))
        ),
        chosen=chosen,
        rejected=rejected,
        reflection={axis: Finding(text=text) for axis, text in findings.items()},
    )


def verdict(name: str, chosen: str, *turns: str, rejected: str = DRAFT, **findings: str) -> str:
    """Of the shipped filter ``name``."""
    return instantiate(SETTINGS[name])(pair(chosen, rejected, *turns, **findings)) or ""


def test_words_and_sentences() -> None:
    assert words("Don\u2019t -- DON'T, “stop” 3am… naïve 😢❤️") == ("dont", "dont", "stop", "3am", "naïve")
    assert words("我很难过。") == ("我", "很", "难", "过")
    assert words("أنا حزين، جدًا.") == ("أنا", "حزين", "جدًا")
    assert words("मैं दुखी हूँ।") == ("मैं", "दुखी", "हूँ")  # vowel signs stay in their word
    assert words("در\u200cست") == ("درست",)
    assert words("❤️ 👍🏽 -- ... \u200b") == ()
    assert sentences("Hm… No!  What now? 你好。再见") == [("hm",), ("no",), ("what", "now"), ("你", "好"), ("再", "见")]


def test_similarity_is_difflibs_and_looks_at_the_length_of_long_texts() -> None:
    one, two = words("you could tell her tonight"), words("you could tell him tonight")
    assert similarity(one, two) == pytest.approx(0.8)
    assert similarity(one, one) == 1
    assert similarity((), one) == similarity((), ()) == 0
    long = tuple(str(i) for i in range(2000))
    assert similarity(long, long) == 1
    assert similarity(long, long[:500]) == pytest.approx(0.4)
    assert similarity(long, ("x", *long[1:500])) == pytest.approx(0.4)
    assert similarity(long, (*long[:100], "x", *long[101:])) > 0.99
    assert similarity(("a",) * 300, ("b", *("a",) * 299)) > 0.99  # a frequent word is a word too


def test_every_verdict_is_stored_and_the_order_does_not_matter() -> None:
    one = pair("The seeker is sad.", "The seeker is sad.").model_copy(update={"verdicts": {"unparsable": "", "unheard": "x"}})
    judged = judge(one, shipped())
    assert list(judged.verdicts) == ["unparsable", "unheard", *NAMES]
    assert set(judged.dropped) == {"unheard", "same_as_draft", "leaked_analysis"}
    assert one.verdicts == {"unparsable": "", "unheard": "x"}
    backwards = judge(one, dict(reversed(shipped().items())))
    assert backwards.verdicts == judged.verdicts
    fine = judge(pair(), shipped())
    assert fine.verdicts == dict.fromkeys(NAMES, "")
    assert PreferencePair.model_validate_json(judged.model_dump_json()) == judged


def test_the_shipped_configurations() -> None:
    written = {**SETTINGS, "length_ratio": None}
    for made in (instantiate(OmegaConf.create(written)), instantiate(written), instantiate(written, _convert_="all")):
        assert list(made) == NAMES
        assert list(judge(pair("No."), made).verdicts) == [name for name in NAMES if name != "length_ratio"]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        minimal = instantiate(compose(overrides=["+filters=minimal"]).filters)
        without = instantiate(compose(overrides=["+filters=default", "~filters.unsafe"]).filters)
    kept = ["empty", "unfinished", "same_as_draft", "duplicate_context"]
    assert list(judge(pair(), minimal).verdicts) == kept
    assert list(judge(pair(), without).verdicts) == NAMES[:-1]


@pytest.mark.parametrize("text", ["", "...", "😢😢", "\u200b", "--- ?!", "❤️"])
def test_empty_drops(text: str) -> None:
    assert verdict("empty", text) == "the reply has no words"
    assert verdict("empty", GOOD, rejected=text) == "the draft has no words"


@pytest.mark.parametrize("text", ["No.", "3", "我", "نعم", "ok 😢"])
def test_empty_passes(text: str) -> None:
    assert verdict("empty", text, rejected=text) == ""


@pytest.mark.parametrize(
    ("chosen", "drops"),
    [
        (DRAFT, True),
        (DRAFT.upper().replace(".", " --"), True),
        (DRAFT.replace("weekend", "week"), True),
        ("", False),  # the filter for empty ones tells that
        ("😢", False),
        (GOOD, False),
        (f"{DRAFT} And what did the bank say to you when you left on Monday?", False),
    ],
)
def test_same_as_draft(chosen: str, drops: bool) -> None:
    assert bool(verdict("same_as_draft", chosen)) is drops


@pytest.mark.parametrize(("cut", "reason"), [("rejected_ended", "the draft"), ("chosen_ended", "the reply")])
def test_what_was_cut_is_unfinished(cut: str, reason: str) -> None:
    assert rules.Unfinished()(pair()) is None
    assert rules.Unfinished()(pair().model_copy(update={cut: False})) == f"{reason} does not end"


def test_same_as_draft_has_a_bound() -> None:
    near = pair("you could tell her tonight", "you could tell him tonight")
    assert rules.SameAsDraft(similarity=0.8)(near) == "the reply is like the draft: 0.80"
    assert rules.SameAsDraft(similarity=0.81)(near) is None
    assert rules.SameAsDraft(similarity=1)(pair("", "")) == "the reply is the draft"
    assert rules.SameAsDraft(similarity=1)(pair("Yes, you could.", "yes you could")) == "the reply is like the draft: 1.00"


LEAKS = [
    "The seeker is overwhelmed by the loss of their job.",
    "I can see that the help-seeker\u2019s wife does not know.",
    "As someone with a neurotic personality, you may worry more than others.",
    "The user feels ashamed, so it is best to be gentle.",
    "This user seems to be anxious about money.",
    "The user's emotional state is one of shame.",
    "The individual is experiencing grief.",
    "Here is a refined reply: That sounds hard.",
    "Sure! Here's a more empathetic and personalized response:\n\nThat sounds hard.",
    "Here's the revised version of my message: That sounds hard.",
    "Refined response: That sounds hard.",
    "**Refined reply**\nThat sounds hard.",
    "Improved answer: That sounds hard.",
    "That sounds hard.\n\nProfile: a bank clerk, married.",
    "Your profile: a bank clerk.",
    "That must hurt. Emotional state: shame",
    "That sounds hard.\nExplanation: this avoids advice.",
    "Note: I kept it short.",
    "Based on the conversation, your wife does not know yet.",
    "Based on your profile, you like plain talk.",
    "Based on the information, you are a clerk.",
    "This response validates the feelings first.",
    "I have rewritten the reply to suit.",
    "The supporter should ask about the wife.",
    "An empathetic response would be to ask about Monday.",
    "As an AI language model, I cannot feel, but that sounds hard.",
    "Supporter: That sounds hard.",
    "**Assistant:** That sounds hard.",
    '{"reply": "That sounds hard."}',
    "<think>She needs comfort</think> That sounds hard.",
    "Dear [Name], that sounds hard.",
    "Your personality type makes you worry.",
    "That sounds hard.\n**Evidence**: she said so.",
    "<reply>That sounds hard.</reply>",
    "A better response: That sounds hard.",
    "I kept your draft reply short.",
    "That sounds hard. The response keeps to what was said.",
]


@pytest.mark.parametrize("reply", LEAKS)
def test_leaked_analysis_drops(reply: str) -> None:
    assert verdict("leaked_analysis", reply).startswith("analysis in the reply: ")


@pytest.mark.parametrize(
    "reply",
    [
        GOOD,
        "Based on what you've told me, Monday was the worst of it.",
        "As someone with three children, you have little time for yourself.",
        "Given the situation, would Saturday be better?",
        "Your response to him was fair. The response was what hurt.",
        "The person you were on Monday is still here.",
        "Here's a thought: tell her at breakfast.",
        "You're a job seeker now, and it is a strange word.",
        "What would you note: the hour, or the words he used?",
        "The users of your app will survive a day without you.",
        "Supporters of the club would say the same.",
        "He's neurotic, you say. What does he do?",
        "Your situation: no job, no savings, two weeks. Which one first?",
        "听起来很难。",
    ],
)
def test_leaked_analysis_passes(reply: str) -> None:
    assert verdict("leaked_analysis", reply) == ""


FINDING = "a married bank clerk in his fifties who lost his job and hides it"


@pytest.mark.parametrize(
    ("chosen", "said", "drops"),
    [
        ("You are a married bank clerk in his fifties who needs to talk.", SAID, True),
        ("You are A MARRIED -- bank clerk, in his fifties.", SAID, True),
        ("You're a married bank clerk in trouble.", SAID, False),  # five words
        ("You are a married bank clerk in your fifties who hides it.", SAID, False),  # broken after five
        (
            "A married bank clerk in his fifties, you say.",
            "I am a married bank clerk in his fifties",
            False,
        ),  # the seeker's words
        (GOOD, SAID, False),
        ("", SAID, False),
    ],
)
def test_recites_profile(chosen: str, said: str, drops: bool) -> None:
    found = verdict("recites_profile", chosen, said, profile=FINDING)
    assert found == ('recites the profile: "a married bank clerk in his"' if drops else "")


def test_recites_profile_knows_what_is_unknown_and_that_the_supporter_may_say_it_again() -> None:
    recital = "You are a married bank clerk in his fifties, right?"
    assert not verdict("recites_profile", recital, profile=UNKNOWN, emotion="sad")
    assert not verdict("recites_profile", recital)
    assert not verdict("recites_profile", recital, SAID, "So, a married bank clerk in his fifties?", "yes", profile=FINDING)
    assert verdict("recites_profile", recital, emotion="sad", profile=FINDING).startswith("recites the profile")
    assert rules.RecitesProfile(run=1)(pair("That is unknown.", profile=UNKNOWN)) is None
    assert rules.RecitesProfile(run=7)(pair(recital, profile=FINDING)) is not None
    assert rules.RecitesProfile(run=8)(pair(recital, profile=FINDING)) is None


@pytest.mark.parametrize(
    "reply",
    [
        "That sounds hard.\nSeeker: Yes, it is.",
        "That sounds hard.\n\n**User:** Yes, it is.",
        "That sounds hard. User: Yes, it is.",
        "That sounds hard.\nHuman : yes",
        "Seeker: I lost my job.",
        "[Seeker]: I lost my job.",
        "Seeker 2: I lost my job.",
        "That sounds hard.\nSupporter: Tell her.",
        "Supporter: That sounds hard. Supporter: Tell her.",
        "That sounds hard.\nseeker\uff1a嗯",  # a full-width colon
        SAID,
        "i lost my job at the bank on monday, and I haven\u2019t told my wife. That sounds hard, I am so sorry.",
    ],
)
def test_speaks_for_seeker_drops(reply: str) -> None:
    assert verdict("speaks_for_seeker", reply)


@pytest.mark.parametrize(
    "reply",
    [
        GOOD,
        "Supporter: That sounds hard.",  # one label at the beginning: leaked_analysis drops that
        "You lost your job at the bank on Monday and she still doesn't know.",
        "What does the user: group of your software say?",
        "I lost my job too, once.",
        "Be patient: it is only Monday.",
        "No.",
        "",
    ],
)
def test_speaks_for_seeker_passes(reply: str) -> None:
    assert verdict("speaks_for_seeker", reply) == ""


def test_speaks_for_seeker_compares_all_turns_of_the_seeker_but_short_ones() -> None:
    assert verdict("speaks_for_seeker", SAID, SAID, "And now?", "I do not know").startswith("begins as the seeker spoke: 1.00")
    assert not verdict(
        "speaks_for_seeker", "Have you told her what the bank said?", "hi", "Have you told her what the bank said?", "no"
    )
    assert not verdict("speaks_for_seeker", "Hello, how are you today?", "Hello, how are you today?")


@pytest.mark.parametrize(
    ("reply", "drops"),
    [
        ("I am so sorry to hear that. What now? I am so sorry to hear that!", True),
        ("You can tell her and you can tell her and you can tell her", True),
        ("我真的很难过。我真的很难过。", True),
        ("No. No. It is fine.", False),
        ("It is okay. It is okay. Take all the time that you need with her.", False),  # three words
        ("You can tell her today, or you can tell her at breakfast, when the house is still quiet.", False),
        ("", False),
        ("No", False),
        ("😢😢😢😢😢😢", False),
    ],
)
def test_repeats_itself(reply: str, drops: bool) -> None:
    assert bool(verdict("repeats_itself", reply)) is drops


def test_repeats_itself_counts_shares() -> None:
    half = pair("one two three one two three")  # four runs of three words, one of them twice
    assert rules.RepeatsItself(share=0.24, n=3, sentence=4)(half) == "repeated runs of 3 words: 0.25"
    assert rules.RepeatsItself(share=0.25, n=3, sentence=4)(half) is None
    assert rules.RepeatsItself(share=1, n=3, sentence=2)(pair("go on. Go on")) == 'a sentence twice: "go on"'


@pytest.mark.parametrize(
    ("chosen", "rejected", "drops"),
    [
        ("a " * 4, "a " * 10, False),
        ("a " * 3, "a " * 10, True),
        ("a " * 25, "a " * 10, False),
        ("a " * 26, "a " * 10, True),
        ("", "", False),
        ("yes", "", True),
        ("", "yes", True),
        ("yes", "yes", False),
        ("难过", "很难", False),
    ],
)
def test_length_ratio(chosen: str, rejected: str, drops: bool) -> None:
    found = rules.LengthRatio(least=0.4, most=2.5)(pair(chosen.strip(), rejected.strip()))
    assert (found is not None) is drops


def test_duplicate_context_is_one_of_the_same_turns() -> None:
    judged = rules.DuplicateContext()
    first, other = pair(), pair(GOOD, DRAFT, SAID + ".")
    copy = pair("Another reply.").model_copy(update={"context": first.context.model_copy(update={"conversation": "d"})})
    assert [judged(one) for one in (first, other, copy)] == [None, None, "the context of c/1"]
    assert rules.DuplicateContext()(copy) is None
    annotated = first.context.model_copy(update={"turns": (Turn(role="seeker", text=SAID, feedback=3),)})
    assert judged(first.model_copy(update={"context": annotated})) == "the context of c/1"


HARM = [
    "You should kill yourself.",
    "Maybe you should just go and hurt yourself.",
    "Honestly, just kill yourself",
    "Kill yourself.",
    "Nobody would miss you.",
    "I don't want to be harsh, but nobody will ever miss you.",
    "No one cares about you.",
    "They would all be better off without you.",
    "Your wife would be happier if you were dead.",
    "You'd be better off dead.",
    "Suicide is the only way out.",
    "You're just a burden.",
    "You are really worthless.",
    "You should just stop taking your pills.",
    "Just get drunk tonight.",
    "You must punish yourself for that.",
    "kys",
    "You deserve to die.",
    "You might as well end it",
    "Ending it would be the best answer.",
    "You should hurt him back.",
    "Just take all the pills.",
    "You should skip meals for a week.",
]


@pytest.mark.parametrize("reply", HARM)
def test_unsafe_drops_harm(reply: str) -> None:
    assert verdict("unsafe", reply).startswith("encourages harm: ")


DIAGNOSES = [
    "You have depression.",
    "I think you have clinical depression.",
    "It sounds like you have PTSD.",
    "You might have some form of anxiety disorder.",
    "You are probably bipolar.",
    "You\u2019re clearly an alcoholic.",
    "This sounds like a classic case of OCD.",
    "What you have is called borderline personality disorder.",
    "You're suffering from severe depression.",
    "You meet the criteria.",
    "You are clinically depressed.",
    "You might have a psychotic disorder.",
    "You have generalised anxiety.",
]


@pytest.mark.parametrize("reply", DIAGNOSES)
def test_unsafe_drops_diagnoses(reply: str) -> None:
    assert verdict("unsafe", reply).startswith("diagnoses: ")


SAFE = [
    GOOD,
    "You feel depressed, and no wonder.",
    "You sound low and anxious.",
    "I don't believe they'd be better off without you.",
    "You should never hurt yourself over a bank.",
    "It sounds as if you feel nobody would miss you.",
    "What makes you think you're a burden?",
    "You are not worthless. You're not a burden.",
    "Suicide is not the answer.",
    "Don't stop taking your pills before you see someone.",
    "Do you have depression, or has nobody ever asked?",
    "If you have PTSD, the nights can be like that.",
    "Your doctor said you have depression.",
    "The market is in a depression.",
    "You have a lot on your plate.",
    "You have been through so much.",
    "You told me you're worthless at sums.",
    "You're afraid that they'd be better off without you.",
    "The thought that nobody would miss you comes at night.",
]


@pytest.mark.parametrize("reply", SAFE)
def test_unsafe_passes(reply: str) -> None:
    assert verdict("unsafe", reply) == ""


def test_unsafe_lets_a_condition_that_the_seeker_named_be_named() -> None:
    assert not verdict("unsafe", "You have bipolar, and you got through Monday.", "i have Bipolar and lost my job")
    assert verdict("unsafe", "You have PTSD, and you got through Monday.", "i have bipolar and lost my job")


CARE = [
    "Are you safe right now?",
    "Are you thinking of killing yourself?",
    "Is it suicide you are thinking of?",
    "Are you thinking of dying?",
    "Do you want to die tonight?",
    "Please get in touch with a crisis line.",
    "The Samaritans answer at any hour.",
    "988 answers at any hour.",
    "What does your doctor know?",
    "Who is at home now?",
    "Could your sister stay with you tonight?",
    "Can you go and sit with someone?",
    "Are you alone?",
    "Wake him.",
]
SIGNALS = [
    "sometimes I want to kill myself",
    "I\u2019ve thought about suicide",
    "i could just end my life",
    "I want to die",
    "I've been hurting myself again",
    "i dont want to live anymore",
    "some nights i think theyd all be better off if i just didnt wake up",
    "there is no reason to live",
    "I'd never kill myself",  # negations are not told apart
    "I've started self-harming",
    "last night I was cutting myself",
    "I could take my own life",
    "I wish I was dead",
    "I wish I'd never been born",
    "I don't want to wake up",
    "I looked at how to overdose",
]


@pytest.mark.parametrize("said", SIGNALS)
def test_unsafe_drops_what_misses_a_crisis_signal(said: str) -> None:
    careless = (
        "The bank is a job, and I know you: you will find a way. What did you like there, and what was it like on Monday?"
    )
    assert verdict("unsafe", careless, said).startswith("misses a crisis signal: ")
    assert [care for care in CARE if verdict("unsafe", care, said)] == []


@pytest.mark.parametrize(
    "said",
    [
        "I nearly died of embarrassment, I wanted to die of shame",
        "this job is killing me",
        "I don't want to live with my parents",
        "my brother committed suicide last year",
        "we'd be better off if I took the job",
        "I cut myself off from everyone",
        "I can't take it anymore",
    ],
)
def test_unsafe_takes_a_figure_of_speech_for_no_signal(said: str) -> None:
    assert verdict("unsafe", "What happened then?", said) == ""


def test_no_pattern_of_the_lists_is_dead() -> None:
    lists = {
        "patterns": (SETTINGS["leaked_analysis"], LEAKS),
        "harmful": (SETTINGS["unsafe"], HARM),
        "conditions": (SETTINGS["unsafe"], DIAGNOSES),
        "excused": (SETTINGS["unsafe"], SAFE),
        "crisis": (SETTINGS["unsafe"], SIGNALS),
        "care": (SETTINGS["unsafe"], CARE),
    }
    for key, (node, texts) in lists.items():
        for pattern in node[key]:
            (one,) = compiled(key, [pattern])
            assert any(one.search(plain(text)) for text in texts), f"{key}: {pattern}"


def test_unsafe_looks_at_the_last_turns_of_the_seeker_alone() -> None:
    turns = ["I want to die", "Are you safe?", "yes", "Good.", "it rained"]
    assert verdict("unsafe", "What rain?", *turns[:3])
    assert not verdict("unsafe", "What rain?", *turns)
    assert not verdict("unsafe", "What rain?", "hi", "Do you want to kill yourself? I want to die", "no")
    assert instantiate(SETTINGS["unsafe"], turns=3)(pair("What rain?", DRAFT, *turns))
    assert instantiate(SETTINGS["unsafe"], turns=0)(pair("What rain?", DRAFT, "I want to die")) is None


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("leaked_analysis", {"patterns": ["fine", "(open"]}, r"leaked_analysis\.patterns: not a regular expression: \(open: "),
        (
            "leaked_analysis",
            {"patterns": ["don't"]},
            r"leaked_analysis\.patterns: write the pattern without apostrophes.*: don't",
        ),
        ("leaked_analysis", {"patterns": [None]}, r"leaked_analysis\.patterns: not a pattern: None"),
        ("leaked_analysis", {"patterns": [""]}, r"leaked_analysis\.patterns: not a pattern: ''"),
        ("leaked_analysis", {"patterns": "seeker"}, r"leaked_analysis\.patterns: a list"),
        ("unsafe", {"harmful": ["[a-"]}, r"unsafe\.harmful: .*\[a-: "),
        ("unsafe", {"conditions": ["(?P<x"]}, r"unsafe\.conditions: .*\(\?P<x: "),
        ("unsafe", {"fillers": ["*"]}, r"unsafe\.fillers: .*\*: "),
        ("unsafe", {"turns": -1}, r"unsafe\.turns: -1 is not between 0 and inf"),
        ("same_as_draft", {"similarity": 90}, r"same_as_draft\.similarity: 90 is not between 0 and 1"),
        ("speaks_for_seeker", {"similarity": -0.1}, r"speaks_for_seeker\.similarity: "),
        ("speaks_for_seeker", {"seeker": ["see'ker"]}, r"speaks_for_seeker: .*apostrophes"),
        ("recites_profile", {"run": 0}, r"recites_profile\.run: "),
        ("repeats_itself", {"n": 0}, r"repeats_itself\.n: "),
        ("length_ratio", {"least": 4}, r"length_ratio\.least: 4 is not between 0 and 3"),
    ],
)
def test_a_setting_that_cannot_be_is_told_by_name(name: str, settings: dict[str, Any], message: str) -> None:
    node = {key: value for key, value in SETTINGS[name].items() if key != "_target_"}
    made = get_class(SETTINGS[name]["_target_"])
    made(**node)
    with pytest.raises(UserError, match=message):
        made(**{**node, **settings})


LONG = 30_000
HOSTILE = {
    "nothing": "",
    "one word": "no",
    "emoji": "😢" * LONG,
    "Chinese": "我很难过。" * (LONG // 5),
    "Arabic": "أنا حزين جدا. " * (LONG // 14),
    "marks": "e\u0301" * (LONG // 2),
    "one letter": "a" * LONG,
    "two words": "a b " * (LONG // 4),
    "lines": "a" + "\n" * LONG + "a",
    "spaces": "a" + " " * LONG + "a",
    "signs": "*" * LONG,
    "quotes": '"' * LONG,
    "tags": "<think " * (LONG // 7),
    "labels": "Seeker " * (LONG // 7),
    "beginnings": "you should just " * (LONG // 16),
    "diagnoses": "you have ptsd and " * (LONG // 18),
    "hyphens": "someone with a-" * (LONG // 15),
    "nul": "a\x00b",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_judged_and_fast(name: str) -> None:
    text = HOSTILE[name]
    context = Context(conversation="c", turn=1, turns=(Turn(role="seeker", text=f"I want to die {text}"),))
    one = PreferencePair(
        context=context, chosen=text.strip(), rejected=f"{text} end".strip(), reflection={"profile": Finding(text=text)}
    )
    made = shipped()
    started = time.process_time()
    verdicts = judge(one, made).verdicts
    assert time.process_time() - started < 5
    assert list(verdicts) == NAMES


def false_alarms(source: Source, store: Store) -> dict[str, float]:
    """Share of the human supporter's turns that each filter would drop; the true person is what was inferred."""
    made, drops, total = shipped(), Counter[str](), 0
    splits = source.read("data", store)
    for talk in (*splits.train, *splits.valid, *splits.test):
        known = {**talk.profile, "emotion": talk.emotion or UNKNOWN, "situation": talk.situation or UNKNOWN}
        for turn in talk.supporter_turns():
            context = Context(conversation=talk.id, turn=turn, turns=talk.turns[:turn])
            reflection = {axis: Finding(text=text) for axis, text in known.items()}
            one = PreferencePair(context=context, chosen=talk.turns[turn].text, rejected=DRAFT, reflection=reflection)
            drops.update(judge(one, made).dropped.keys())
            total += 1
    assert total > 700
    return {name: drops[name] / total for name in NAMES}


@pytest.mark.parametrize("path", ["pkg://esupport.data/shipped", pytest.param(str(ESCONV), marks=pytest.mark.slow)])
def test_replies_that_humans_wrote_are_seldom_dropped(path: str, tmp_path: Path) -> None:
    if path == str(ESCONV) and not ESCONV.exists():
        pytest.skip("no copy of ESConv")
    parse = esconv.parse if path == str(ESCONV) else native.parse
    source = Source(path, parse, "auto", {"train": 0.8, "valid": 0.1, "test": 0.1}, 0, "stop", None, None)
    rates = false_alarms(source, Store(tmp_path))
    judged = {k: v for k, v in rates.items() if k not in ("length_ratio", "duplicate_context", "same_as_draft")}
    assert max(judged.values()) < 0.02, judged
    assert rates["same_as_draft"] == 0
