"""A judge is asked through the store: each set of requests once, batch by batch, so that a killed run goes on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from rich.console import Console

from esupport.evaluation.judge.answers import Value
from esupport.evaluation.judge.method import Asked, Judge
from esupport.generators.protocol import Reply, Request
from esupport.generators.stored import ask, waiting
from esupport.store import Store

Result = TypeVar("Result")
_STAGE = "judge"
_BYTES_A_TOKEN = 4  # of UTF-8, about, for a vocabulary of usual size in English


@dataclass(frozen=True)
class Given:
    """What a judge gave in the end: values by key, or the reason why there are none."""

    status: Literal["answered", "refused", "unparsable"]
    values: dict[str, Value]


@dataclass(frozen=True)
class Item(Generic[Result]):
    """What is asked for one result, and how the result follows from what is given, in the order asked."""

    asked: tuple[Asked, ...]
    conclude: Callable[[Sequence[Given]], Result]


@dataclass(frozen=True)
class Cost:
    """What a set of items costs, if each first answer can be used; retries come on top.

    Attributes:
        requests: that would be sent.
        kept: that are in the store and would not.
        prompt_tokens: of those that would be sent.
        new_tokens: of their answers, at most.
        estimated: whether the prompt's tokens are estimated by their characters, for a server's tokenizer is not known.
    """

    requests: int
    kept: int
    prompt_tokens: int
    new_tokens: int
    estimated: bool


class Asker:
    """Puts items to a judge.

    Args:
        judge: with a complete generator (:meth:`Judge.speaking`).
        store: where answers are kept.
        console: for the progress bar.
    """

    def __init__(self, judge: Judge, store: Store, console: Console) -> None:
        self.judge, self.store, self.console = judge, store, console

    def cost(self, items: Sequence[Item[Any]]) -> Cost:
        """What :meth:`settle` would send. Nothing is sent."""
        requests = [asked.request for asked in _each_once(items).values()]
        sent = waiting(self.store, _STAGE, self.judge.speaker, requests)
        renderer = getattr(self.judge.speaker, "renderer", None)
        if renderer is None:
            tokens = sum(-(-len(_text(request).encode()) // _BYTES_A_TOKEN) for request in sent)
        else:
            tokens = sum(len(renderer.prompt(request.messages, request.begun)) for request in sent)
        new = len(sent) * self.judge.sampling.max_new_tokens
        return Cost(len(sent), len(requests) - len(sent), tokens, new, renderer is None)

    def settle(self, items: Sequence[Item[Result]]) -> list[Result]:
        """The items' results, in their order; equal requests are asked once, unusable answers asked for again.

        Raises:
            UserError: the judge cannot be reached; what it has answered is kept for the next run.
        """
        open_ = _each_once(items)
        given: dict[str, Given] = {}
        for attempt in range(self.judge.retries + 1):
            replies = self._ask([self.judge.again(asked.request, attempt) for asked in open_.values()])
            for (id_, asked), reply in zip(list(open_.items()), replies, strict=True):
                given[id_] = self._given(asked, reply.text)
                if given[id_].status == "answered":
                    del open_[id_]
        return [item.conclude([given[asked.request.id] for asked in item.asked]) for item in items]

    def _given(self, asked: Asked, text: str) -> Given:
        values = asked.read(text)
        if values is not None:
            return Given("answered", values)
        return Given("refused" if re.search(self.judge.refusal, text.strip()) else "unparsable", {})

    def _ask(self, requests: Sequence[Request]) -> list[Reply]:
        return ask(self.store, _STAGE, self.judge.speaker, requests, None, self.console)[1] if requests else []


def _each_once(items: Sequence[Item[Any]]) -> dict[str, Asked]:
    """What is asked, by the request's id: in an order of its own, so that the items' order starts no new stage."""
    asked = {one.request.id: one for item in items for one in item.asked}
    return {id_: asked[id_] for id_ in sorted(asked)}


def _text(request: Request) -> str:
    return "\n".join([*(message["content"] for message in request.messages), request.begun])
