"""A judge's answers into values. What is incomplete, out of range or contradicts itself is None, and is asked for again."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from esupport.reflection.parsing import objects_in, without_thoughts

Value = int | str
Readers = Mapping[str, Callable[[Any], Value | None]]
Read = Callable[[str], dict[str, Value] | None]

NONE = "none"  # no error
_CHOICES: dict[str, Value] = {"1": "first", "2": "second", "tie": "tie"}


def choice(said: Any) -> Value | None:
    """``first``, ``second`` or ``tie``, of 1, 2 or "tie"."""
    return _CHOICES.get(str(said).strip(" \"'.").lower()) if type(said) in (int, str) else None


def score(said: Any) -> Value | None:
    """A whole number from 1 to 5, be it written 4 or 4.0."""
    text = str(said).strip() if type(said) in (int, float, str) else ""
    return int(text[0]) if re.fullmatch(r"[1-5](\.0+)?", text) else None


def error_of(names: Collection[str]) -> Callable[[Any], Value | None]:
    """A reader of the error's name, however it is spaced, or ``none``: what the answer begins with.

    Null, or no such key, is ``none`` too: so a judge tells of a reply without fault. Were its rating lost, the means would be
    of the worse replies.
    """

    def read(said: Any) -> Value | None:
        if said is None:
            return NONE
        text = re.sub(r"[\s_-]+", "_", said.lower()).strip("_\"'.") if isinstance(said, str) else ""
        return next((name for name in sorted({*names, NONE}, key=len, reverse=True) if text.startswith(name)), None)

    return read


def read_object(readers: Readers, answer: str) -> dict[str, Value] | None:
    """The values in the one JSON object of an answer that has all that ``readers`` need; its ``reason`` is kept too.

    Several such objects that differ are no answer.
    """
    found = []
    for value in objects_in(without_thoughts(answer)):
        read = {key: reader(value.get(key)) for key, reader in readers.items()}
        complete = {key: item for key, item in read.items() if item is not None}
        if any(key in value for key in readers):
            found.append((complete, value.get("reason")))
    if not found or any(values != found[0][0] for values, _ in found) or set(found[0][0]) != set(readers):
        return None
    values, reason = found[0]
    return {**values, "reason": reason} if isinstance(reason, str) else values


def read_one(key: str, reader: Callable[[Any], Value | None], pattern: str, answer: str) -> dict[str, Value] | None:
    """The value of ``key`` in an answer that goes on from a beginning: the group ``answer`` of ``pattern``."""
    found = re.match(pattern, without_thoughts(answer).strip(), re.DOTALL | re.IGNORECASE)
    value = reader(found["answer"]) if found else None
    return None if value is None else {key: value}
