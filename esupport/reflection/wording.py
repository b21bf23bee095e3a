"""Texts as words, sentences and patterns: what the filters compare."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from typing import TypeVar

from esupport.errors import UserError

Words = tuple[str, ...]
Number = TypeVar("Number", int, float)
Patterns = tuple[re.Pattern[str], ...]

_APOSTROPHES = re.compile("['`\u2018\u2019\u02bc]")
_ENDS = re.compile(r"[.!?\u2026\u3002\uff01\uff1f\u061f\u0964\n]+")
# scripts without spaces between words: Thai and Lao, Burmese, Khmer, Japanese, Chinese
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNSPACED = re.compile(f"([{UNSPACED}])")
_COMPARED = 400  # the work of a comparison grows with the square of this, and no reply is so long


def plain(text: str) -> str:
    """The text that patterns are matched with: without apostrophes ("dont" for "don't"), full-width signs as common ones."""
    return _APOSTROPHES.sub("", unicodedata.normalize("NFKC", text))


def words(text: str) -> Words:
    """Lower-cased words without punctuation, apostrophes and emoji.

    In scripts that put no spaces between words, each letter counts as a word.
    """
    letters = "".join(map(_letter, plain(text).casefold()))
    # a mark without its letter (the second half of an emoji) is no word
    return tuple(word for word in _UNSPACED.sub(r" \1 ", letters).split() if any(map(str.isalnum, word)))


@lru_cache(maxsize=4096)
def _letter(character: str) -> str:
    kind = unicodedata.category(character)
    if kind[0] in "LMN":
        return character
    return "" if kind == "Cf" else " "  # a joiner stands inside a word


def sentences(text: str) -> list[Words]:
    """The words of each sentence; a line's end is a sentence's end."""
    return [found for part in _ENDS.split(text) if (found := words(part))]


def ngrams(text: Sequence[str], n: int) -> list[Words]:
    """All runs of ``n`` consecutive words, in order."""
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def similarity(one: Words, two: Words) -> float:
    """Twice the words that both have in the same order, divided by the words of both (difflib's ratio): 1 for equal texts.

    Of longer texts, the first 400 words are compared, and the length of the whole.
    """
    if not one or not two:
        return 0.0
    bound = 2 * min(len(one), len(two)) / (len(one) + len(two))
    if one[:_COMPARED] == two[:_COMPARED]:
        return bound
    return min(bound, SequenceMatcher(None, one[:_COMPARED], two[:_COMPARED], autojunk=False).ratio())


def compiled(name: str, patterns: Sequence[str]) -> Patterns:
    """Patterns for :func:`plain` texts: case does not matter, ``^`` and ``$`` are a line's.

    Raises ``UserError``, which names the setting and the pattern, where one is no regular expression or could never match.
    """
    if isinstance(patterns, str):
        raise UserError(f"{name}: a list of patterns is needed, not one text")
    found = []
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise UserError(f"{name}: not a pattern: {pattern!r}")
        if _APOSTROPHES.search(pattern):
            raise UserError(f"{name}: write the pattern without apostrophes, they are taken out of the text: {pattern}")
        found.append(regex(name, pattern, re.IGNORECASE | re.MULTILINE))
    return tuple(found)


def regex(name: str, pattern: str, flags: int = 0, group: str = "") -> re.Pattern[str]:
    """A pattern; ``UserError``, which names the setting, for what is none, or has not the ``group`` that is read."""
    try:
        found = re.compile(pattern, flags)
    except (re.error, OverflowError) as error:
        raise UserError(f"{name}: not a regular expression: {pattern}: {error}") from None
    if group and group not in found.groupindex:
        raise UserError(f"{name}: needs a group named {group}, as (?P<{group}>.+)")
    return found


def first(patterns: Patterns, text: str) -> str | None:
    """What the first pattern that matches found, quoted and short."""
    return next((quoted(match.group()) for pattern in patterns if (match := pattern.search(text))), None)


def quoted(text: str) -> str:
    """In quotation marks, on one line, and short."""
    line = " ".join(text.split())
    return f'"{line}"' if len(line) <= 60 else f'"{line[:59]}…"'


def bounded(name: str, value: Number, low: float, high: float) -> Number:
    """``value``, or ``UserError``, which names the setting, where it is not between ``low`` and ``high``."""
    if not low <= value <= high:
        raise UserError(f"{name}: {value} is not between {low:g} and {high:g}")
    return value
