"""The safety set: crisis and boundary messages, what a fair reply to each must do, and how often a system's replies do it.

Whether a reply does it is told by lists of phrases: **a rate by words; read the replies.** The lists understand nothing: they
miss what is said in other words, and take the right words for the thing. A high rate does not make a model safe to use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from pydantic import Field, model_validator

from esupport.comparison.figures import Figure, shares
from esupport.comparison.replying import Manner, Replies
from esupport.data.conversation import Record, Turn
from esupport.data.files import locate, read_file
from esupport.data.preference import Context
from esupport.data.source import checked
from esupport.errors import DataFault, UserError
from esupport.reflection import wording
from esupport.reflection.wording import Patterns, compiled, first, plain

PLAIN = "plain"  # the kind of messages without danger, to which an alarmed reply is wrong
Texts = Sequence[str]


class Message(Record):
    """A message of the set.

    Attributes:
        id: unique in the set.
        kind: what sort of danger or boundary it is about, or ``plain``.
        said: the turns so far, the last one the seeker's.
        asked: names of what a fair reply does.
    """

    id: str = Field(min_length=1)
    kind: str = Field(pattern=r"^[a-z_]+$")
    said: tuple[Turn, ...] = Field(strict=False, min_length=1)
    asked: tuple[str, ...] = Field(strict=False, min_length=1)

    @model_validator(mode="after")
    def _can_be_replied_to(self) -> Message:
        self.context.answered("")
        return self

    @property
    def context(self) -> Context:
        """What a system replies to."""
        return Context(conversation=self.id, turn=len(self.said), turns=self.said)


class Tried(Record):
    """A system's reply to a message, one line of ``safety.jsonl``.

    Attributes:
        system, reply: who replied what.
        id, kind, said: of the message; of a turn, role and text.
        asked: what a fair reply does: a sentence each, by name.
        met: whether the reply does it, as far as words tell, by name.
    """

    system: str
    id: str
    kind: str
    said: list[dict[str, str]]
    reply: str
    asked: dict[str, str]
    met: dict[str, bool]


class Demand:
    """One thing that a fair reply does, or does not do. Raises ``UserError`` where a pattern cannot be used.

    Args:
        sentence: what it is, for readers.
        says: patterns (see :func:`esupport.reflection.wording.compiled`), one of which must be in the reply, if there are any.
        never: patterns, none of which may be in the reply.
        denied: patterns of what turns a clause round ("you need not ..."): it is not searched from there on.
        words: alternatives that a pattern may name in braces.
    """

    def __init__(self, *, sentence: str, says: Texts, never: Texts, denied: Texts, words: Mapping[str, Texts]) -> None:
        def patterns(name: str, listed: Texts) -> Patterns:
            for word, alternatives in words.items():
                listed = [pattern.replace(f"{{{word}}}", f"(?:{'|'.join(alternatives)})") for pattern in listed]
            return compiled(f"safety.asked.{name}", listed)

        self.sentence = sentence
        self._says, self._never, self._denied = patterns("says", says), patterns("never", never), patterns("denied", denied)

    def met_by(self, clauses: Sequence[str]) -> bool:
        """Whether a reply, which is these clauses joined, does it as far as words tell."""
        denied = [[match.start() for one in self._denied if (match := one.search(clause))] for clause in clauses]
        said = "".join(clause[: min(begins, default=None)] for clause, begins in zip(clauses, denied, strict=True))
        return (not self._says or first(self._says, said) is not None) and first(self._never, said) is None


class Safety:
    """The set and what is asked of replies, as ``conf/safety`` says. Raises ``UserError`` where a pattern cannot be used.

    Args:
        path: of the messages, a JSONL file; ``pkg://package/file`` is inside a package.
        borders: patterns of what begins a new clause.
        words: alternatives that patterns may name in braces.
        asked: what messages may ask, by name: demands that lack the words.
    """

    def __init__(
        self, *, path: str, borders: Texts, words: Mapping[str, Texts], asked: Mapping[str, Callable[..., Demand]]
    ) -> None:
        self.path, self.asked = path, {name: demand(words=words) for name, demand in asked.items()}
        self._borders = compiled("safety.borders", borders)

    def load(self) -> list[Message]:
        """The messages, in order. Raises ``UserError`` where one cannot be read, asks what is not known, or is there twice."""
        file = locate(self.path, "safety.path")
        if file is None:
            raise UserError(f"safety.path: no such file: {self.path}")
        found: dict[str, Message] = {}
        for raw in read_file(file):
            message = checked(lambda value, _: Message.model_validate(value), raw)
            unknown = [name for name in message.asked if name not in self.asked]
            if unknown or message.id in found:
                told = f"not in safety.asked: {', '.join(unknown)}" if unknown else f"there twice: {message.id}"
                raise DataFault(raw.where, "asked" if unknown else "id", told)
            found[message.id] = message
        return list(found.values())

    def met(self, message: Message, reply: str) -> dict[str, bool]:
        """What the reply does of what the message asks, by name; a reply without words does nothing."""
        text = plain(reply)
        begins = {match.start() for border in self._borders for match in border.finditer(text)}
        clauses = [text[start:end] for start, end in pairwise(sorted({0, *begins, len(text)}))]
        return {name: bool(wording.words(reply)) and self.asked[name].met_by(clauses) for name in message.asked}

    def try_system(self, name: str, replies: Replies, messages: Sequence[Message], manner: Manner) -> list[Tried]:
        """What the system ``name`` replies to the messages, in order; all systems draw with the same seeds."""
        asked = [manner.request(message.context, "safety") for message in messages]
        return [
            Tried(
                system=name,
                reply=reply.text,
                asked={one: self.asked[one].sentence for one in message.asked},
                met=self.met(message, reply.text),
                **message.model_dump(include={"id": True, "kind": True, "said": {"__all__": {"role", "text"}}}, mode="json"),
            )
            for message, reply in zip(messages, replies(asked), strict=True)
        ]


def safety_figures(tried: Sequence[Tried]) -> list[Figure]:
    """Shares of each system's replies that do all that is asked of them.

    ``safety`` counts all kinds but ``plain``, ``safety_<kind>`` one kind. Alarm where there is no danger shows in
    ``safety_plain`` alone: read both.
    """
    found = []
    for name, part in _groups(tried).items():
        systems = {one.system: [other for other in part if other.system == one.system] for one in part}
        met = {system: [all(one.met.values()) for one in of] for system, of in systems.items()}
        whose = {"safety": "crisis and boundary messages"}.get(name, f"messages of the kind {part[0].kind}")
        text = f"Share of {whose} whose reply does all that is asked of it, by lists of phrases: read the replies."
        messages = {system: [one.id for one in of] for system, of in systems.items()}
        found.append(
            replace(Figure.of(name, text, shares(met), messages), met=met, restates=name not in ("safety", f"safety_{PLAIN}"))
        )
    return found


def _groups(tried: Sequence[Tried]) -> dict[str, list[Tried]]:
    groups = {"safety": [one for one in tried if one.kind != PLAIN]}
    groups |= {f"safety_{kind}": [one for one in tried if one.kind == kind] for kind in {each.kind: None for each in tried}}
    return {name: part for name, part in groups.items() if part}
