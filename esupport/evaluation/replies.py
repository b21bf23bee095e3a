"""Figures of a set of replies that show whether they drift: length, variety, repetition."""

from __future__ import annotations

import re

from esupport.reflection.wording import ngrams

_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Lower-cased words and punctuation marks."""
    return _WORD.findall(text.lower())


def repetition(reply: str, n: int = 3) -> float:
    """Share of a reply's n-grams that stood in it before; 0 for one shorter than n."""
    found = ngrams(words(reply), n)
    return 1 - len(set(found)) / len(found) if found else 0.0
