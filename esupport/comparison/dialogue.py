"""Whole conversations of a system with a simulated seeker: the same cards and seeds for each system, judged as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import Field, field_serializer

from esupport.comparison.replying import Manner, Replies
from esupport.comparison.seeker import Seeker, message_of
from esupport.data.conversation import Conversation, Record, Turn
from esupport.data.preference import Context
from esupport.errors import UserError
from esupport.evaluation.judge.asking import Item
from esupport.evaluation.judge.method import Judge
from esupport.evaluation.judge.quoting import harmless, person, spoken
from esupport.evaluation.judge.records import Rating
from esupport.evaluation.judge.verdicts import on_rubric
from esupport.generators.protocol import seed_of
from esupport.rendering.template import Renderer

SILENT, TOO_LONG = "the seeker said nothing", "the last turns do not fit"


class Dialogue(Record):
    """A conversation with a simulated seeker, one line of ``dialogues.jsonl``.

    Attributes:
        system: who replied.
        card: id of the conversation whose seeker was played.
        turns: what was said, in turn, the seeker first; a supporter's text is empty where the system gave none. Control
            tokens are broken by a space: neither side's words reach the other's prompt as anything but words.
        broken_off: why it ended before all turns were said; empty where it did not.
        rating: of the whole; None where it was not judged.
    """

    system: str
    card: str
    turns: tuple[Turn, ...] = Field(strict=False)
    broken_off: str = ""
    rating: Rating | None = None

    @field_serializer("turns")
    def _said(self, turns: tuple[Turn, ...]) -> list[dict[str, str]]:
        return [{"role": turn.role, "text": turn.text} for turn in turns]


@dataclass
class _Talk:
    """A dialogue that goes on."""

    card: Conversation
    turns: list[Turn] = field(default_factory=list)
    broken_off: str = ""

    def context(self, manner: Manner) -> Context | None:
        """What the system replies to: what was said, and nothing of the card but its own instruction, if it has one."""
        turns = (*self.turns, Turn(role="supporter", text=""))
        said = Conversation(id=self.card.id, turns=turns, instruction=self.card.instruction)
        return manner.context(said, len(self.turns))


def converse(
    name: str,
    replies: Replies,
    seeker: Seeker,
    speak: Replies,
    cards: Sequence[Conversation],
    manner: Manner,
) -> list[Dialogue]:
    """Dialogues of one system with the seeker of each card, in step: each turn is one set of requests.

    Args:
        name: of the system; no request holds it.
        replies: the system.
        seeker: how the seeker is played.
        speak: who plays it.
        cards: conversations, of which profile, emotion, problem and situation are played; those that tell nothing are left out.
        manner: of what the system is asked; its renderer counts the seeker's tokens too, whoever plays it. On either side the
            oldest turns are dropped, whole.

    Raises:
        UserError: no card tells anything, or a side cannot be asked.
    """
    talks = [_Talk(card) for card in cards if person(card)]
    if not talks:
        raise UserError("seeker: the data tells nothing of the seekers that could be played; leave the dialogues out")
    for _ in range(seeker.turns):
        _seekers_speak(talks, seeker, speak, manner.renderer)
        _system_replies(talks, replies, manner)
    return [Dialogue(system=name, card=talk.card.id, turns=tuple(talk.turns), broken_off=talk.broken_off) for talk in talks]


def rate_dialogues(judge: Judge, dialogues: Sequence[Dialogue], people: Mapping[str, Conversation]) -> list[Item[Rating]]:
    """Whole dialogues on the rubric's axes; one without any reply is left out. See :func:`with_ratings`.

    Args:
        judge: whose questions are asked.
        dialogues: what is rated; a rating's ``turn`` is the number of turns.
        people: the cards by id.
    """
    items = []
    for one in dialogues:
        if any(turn.role == "supporter" and turn.text for turn in one.turns):
            shown = {"person": person(people.get(one.card)), "transcript": spoken(one.turns)}
            items.append(on_rubric(judge, "dialogue", one.system, one.card, len(one.turns), shown, ()))
    return items


def with_ratings(dialogues: Sequence[Dialogue], ratings: Sequence[Rating]) -> list[Dialogue]:
    """The dialogues, each with its own rating, if there is one."""
    found = {(rating.system, rating.conversation): rating for rating in ratings}
    return [one.model_copy(update={"rating": found.get((one.system, one.card))}) for one in dialogues]


def _seekers_speak(talks: Sequence[_Talk], seeker: Seeker, speak: Replies, renderer: Renderer) -> None:
    """The seeker's next turn in each dialogue that is not broken off; one that stays silent breaks it off."""
    asked = [(talk, seeker.request(talk.card, talk.turns, renderer)) for talk in talks if not talk.broken_off]
    waiting = [(talk, request) for talk, request in asked if request]
    for attempt in range(seeker.retries + 1):
        answers = speak([replace(one, seed=seed_of(one.seed, attempt)) for _, one in waiting]) if waiting else []
        for (talk, request), answer in zip(waiting, answers, strict=True):
            if text := message_of(request.begun + answer.text):
                talk.turns.append(Turn(role="seeker", text=text))
        waiting = [(talk, request) for talk, request in waiting if len(talk.turns) % 2 == 0]
    for talk, fitting in asked:
        if len(talk.turns) % 2 == 0:
            talk.broken_off = SILENT if fitting else TOO_LONG


def _system_replies(talks: Sequence[_Talk], replies: Replies, manner: Manner) -> None:
    """The system's reply in each dialogue that is not broken off, whatever it is: nothing is asked again."""
    waiting, requests = [], []
    for talk in talks:
        if talk.broken_off:
            continue
        context = talk.context(manner)
        if context is None:
            talk.broken_off = TOO_LONG
            continue
        waiting.append(talk)
        requests.append(manner.request(context, "dialogue"))
    for talk, reply in zip(waiting, replies(requests) if requests else [], strict=True):
        talk.turns.append(Turn(role="supporter", text=harmless(reply.text)))
