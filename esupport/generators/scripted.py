"""Texts written by a function, for tests and dry runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from esupport.generators.protocol import Reply, Request, in_pieces


class Scripted:
    """Answers each request by a function of it.

    It passes for M_t, whatever the adapter: the loop around it can then be tried without a model.

    Args:
        answer: gives the text, without ``request.begun``; the same for equal requests.
        rows: requests in a batch, after which a stopped step goes on.
    """

    name = "scripted"
    serves_policy = True
    independent = True

    def __init__(self, answer: Callable[[Request], str], rows: int) -> None:
        self.answer, self.rows = answer, rows

    def identity(self) -> dict[str, Any]:
        """The function's name and the keywords that it is given by the configuration."""
        given = self.answer.keywords if isinstance(self.answer, partial) else {}
        function = self.answer.func if isinstance(self.answer, partial) else self.answer
        named = function if hasattr(function, "__qualname__") else type(function)
        return {
            "generator": "scripted",
            "answer": f"{named.__module__}.{named.__qualname__}",
            "keywords": given,
        }

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Pieces in the given order."""
        return in_pieces(len(requests), self.rows)

    def write(self, requests: Sequence[Request], adapter: Path | None) -> list[Reply]:
        """Replies to one planned batch."""
        texts = [self.answer(request) for request in requests]
        return [Reply(text=text, tokens=len(text.split()), finished=True) for text in texts]
