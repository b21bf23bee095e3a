"""Figures of a set of replies that show whether they drift: length, variety, repetition."""

from __future__ import annotations

import re

from esupport.reflection.wording import UNSPACED, ngrams

_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]")


def words(text: str) -> list[str]:
    """Lower-cased words and punctuation marks; in scripts that put no spaces between words, each letter is one."""
    return _WORD.findall(text.lower())


def repetition(reply: str, n: int = 3) -> float:
    """Share of a reply's n-grams that stood in it before; 0 for one shorter than n."""
    found = ngrams(words(reply), n)
    return 1 - len(set(found)) / len(found) if found else 0.0
