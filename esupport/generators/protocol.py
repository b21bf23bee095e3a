"""What is asked of a generator, what it answers, and the one protocol that all of them keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from esupport.data.conversation import Record
from esupport.data.preference import Context
from esupport.errors import UserError
from esupport.rendering.template import Message, Renderer
from esupport.store import key_of


@dataclass(frozen=True)
class Sampling:
    """How a reply is sampled.

    Args:
        max_new_tokens: longest reply, in tokens.
        temperature: 0 takes the likeliest token each time.
        top_p: nucleus of sampling.
        one_line: end at the first line break.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    one_line: bool = False


@dataclass(frozen=True)
class Request:
    """One text to be written.

    Attributes:
        id: what it is for, unique among the requests of a step.
        family: requests of one family begin alike (the same conversation), which a generator may use.
        messages: chat messages, the last one the user's.
        begun: the beginning of the answer, which the generator goes on from.
        sampling: how it is sampled.
        seed: of the sampling of this request alone.
        trunk: messages that requests of the family begin with, at least in part, in later steps and attempts too; saves time.
    """

    id: str
    family: str
    messages: tuple[Message, ...]
    begun: str
    sampling: Sampling
    seed: int
    trunk: tuple[Message, ...] = ()

    @property
    def version(self) -> str:
        """Hash of what is asked: messages and the answer's beginning."""
        return key_of([self.messages, self.begun])


HELD_OUT = "held out"  # the step of replies that systems are compared on: evolve.py and evaluate.py share these texts


def reply_request(context: Context, renderer: Renderer, sampling: Sampling, seed: Any, step: str) -> Request:
    """A reply to a context, as inference writes it; ``seed`` and ``step`` tell its draw from those of others."""
    messages = tuple(renderer.context_messages(context))
    return Request(context.key, context.conversation, messages, "", sampling, seed_of(seed, step, context.key))


class Reply(Record):
    """What was written: the text without ``begun`` (:func:`behind`), its tokens, and whether it came to an end of its own.

    A line break is an end where one line is asked for.
    """

    text: str
    tokens: int
    finished: bool


def behind(begun: str, text: str) -> str:
    """``text`` without white space around it, save one blank that parts it from the word that it was ``begun`` with."""
    body = text.strip()
    return f" {body}" if body and text[0].isspace() and begun[-1:].strip() else body


def reply_of(request: Request, text: str, tokens: int, ended: bool) -> Reply:
    """What is kept of a text that was written behind ``begun``; one line is over at its first line break behind words."""
    line_break = ""
    if request.sampling.one_line:
        body = text.lstrip()
        line, line_break, _ = body.partition("\n")
        text = text[: len(text) - len(body)] + line
    return Reply(text=behind(request.begun, text), tokens=tokens, finished=ended or bool(line_break))


class BrokenOff(UserError):
    """A batch that was not answered to its end; ``replies`` are those that came, by their place in it."""

    def __init__(self, message: str, replies: Mapping[int, Reply]) -> None:
        super().__init__(message)
        self.replies = replies


class Generator(Protocol):
    """Who writes text.

    Attributes:
        name: of it, in pairs and lineage; no address and no path.
        serves_policy: whether it can speak as M_t, that is with a given adapter.
        independent: whether a reply depends on its request alone, not on others of its batch.
    """

    name: str
    serves_policy: bool
    independent: bool

    def identity(self) -> dict[str, Any]:
        """What, besides the requests and the adapter, decides its words."""
        ...

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Batches of indices: a pure function of the requests, so that a stopped step goes on with the same batches."""
        ...

    def write(self, requests: Sequence[Request], adapter: Path | None) -> list[Reply]:
        """Replies to one planned batch. ``adapter`` is the folder of M_t's adapter; None is the model without one.

        Raises:
            UserError: it cannot be reached, or does not answer; :class:`BrokenOff` where it answered some.
        """
        ...


def in_pieces(requests: int, size: int) -> list[list[int]]:
    """A plan in the given order, ``size`` requests a batch."""
    return [list(range(start, min(start + size, requests))) for start in range(0, requests, size)]


def write_all(generator: Generator, requests: Sequence[Request], adapter: Path | None) -> list[Reply]:
    """Replies to ``requests``, in their order, batch by batch as the generator plans them."""
    replies: dict[int, Reply] = {}
    for batch in generator.plan(requests):
        replies.update(zip(batch, generator.write([requests[i] for i in batch], adapter), strict=True))
    return [replies[index] for index in range(len(requests))]


def seed_of(*parts: Any) -> int:
    """A 63-bit seed from what names a request: the run's seed, the step, the context, the attempt."""
    return int(key_of(parts), 16) >> 1
