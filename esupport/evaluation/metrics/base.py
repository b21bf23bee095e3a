"""What the metrics share: their form, clean texts, means over replies, and whether nltk's data is there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from esupport.evaluation.statistics import Floats, Measure, Sums, ratio

_LONE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Metric:
    """A metric, prepared on replies.

    Attributes:
        name: as ``bleu_4``.
        definition: tokens, casing, smoothing, and whether it is a mean or counted over all replies: one sentence for tables.
        measure: its value on any of the replies.
        of_replies: whether it is a figure of the replies alone, which the human ones have too.
    """

    name: str
    definition: str
    measure: Measure
    of_replies: bool = False


@dataclass(frozen=True)
class Metrics:
    """What could be prepared, and why the rest, by name, could not."""

    found: list[Metric] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def cleaned(texts: Sequence[str]) -> list[str]:
    """The texts without lone surrogates, which no tokenizer takes."""
    return [_LONE.sub("\ufffd", text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")) for text in texts]


def mean(values: Sequence[float] | Floats, replies: Sequence[str]) -> Sums:
    """The mean over replies; nan values are not counted, and there is none where every reply is empty."""
    found = np.asarray(values, dtype=float).reshape(-1)
    counted = ~np.isnan(found)
    said = np.array([bool(reply.strip()) for reply in replies], dtype=bool)
    return Sums(np.stack([np.where(counted, found, 0), counted, said & counted], 1), spoken_ratio)


def has_data(name: str) -> bool:
    """Whether nltk finds this data, as ``corpora/wordnet``; nothing is downloaded."""
    import nltk  # a second that a run of evolve.py need not wait

    for path in (name, f"{name}.zip"):
        try:
            nltk.data.find(path)
        except LookupError:
            continue
        return True
    return False


def spoken_ratio(sums: Floats) -> Floats:
    """First over second of (draws, 3) sums; nan where that is 0, or where the third is: no reply has a word."""
    return np.asarray(np.where(sums[:, 2] == 0, np.nan, ratio(sums)))
