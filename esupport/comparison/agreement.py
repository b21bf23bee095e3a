"""How far a judge agrees with other judges, or with people who rated the same replies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from esupport.comparison.figures import plain
from esupport.comparison.judging import Judged
from esupport.errors import UserError, first_line
from esupport.evaluation.judge.records import UNUSABLE, Comparison, Rating
from esupport.evaluation.metrics.agreement import alpha, kappa


def agreement(judged: Judged, others: Sequence[Path]) -> list[dict[str, Any]]:
    """With each of ``others``: Krippendorff's alpha (ordinal) of each axis' ratings, Cohen's kappa of the pairwise outcomes.

    Args:
        judged: this evaluation's.
        others: files in the form of ``judged.jsonl``, of replies to the same contexts by systems of the same names.

    Raises:
        UserError: a file cannot be read, or says nothing of these replies.
    """
    mine = [one for found in judged.ratings.values() for one in found]
    compared = dict(pair for found in judged.pairs.values() for pair in _verdicts(found))
    found = []
    for path, name in zip(others, _names(others), strict=True):
        ratings, comparisons = _read(path)
        theirs = {(one.system, one.conversation, one.turn): one for one in ratings}
        shared = [(one, theirs[key]) for one in mine if (key := (one.system, one.conversation, one.turn)) in theirs]
        axes = sorted({axis for one, two in shared for axis in one.scores if axis in two.scores})
        for axis in axes:
            both = [[pair[side].scores.get(axis) for pair in shared] for side in (0, 1)]
            value = alpha(both, [one.conversation for one, _ in shared], "ordinal")
            found.append({"with": name, "of": axis, "measure": "alpha", **plain(asdict(value))})
        outcomes = [(pair, compared[pair], outcome) for pair, outcome in _verdicts(comparisons) if pair in compared]
        if outcomes:
            pairs, ours, others_ = (list(part) for part in zip(*outcomes, strict=True))
            value = kappa(ours, others_, [pair[2] for pair in pairs])
            found.append({"with": name, "of": "pairwise", "measure": "kappa", **plain(asdict(value))})
        if not axes and not outcomes:
            raise UserError(f"agreement_with: {path} says nothing of these replies: systems or contexts differ")
    return found


def _verdicts(comparisons: Sequence[Comparison]) -> list[tuple[tuple[str, str, str, int], str]]:
    """The outcomes that are verdicts, each for the system whose name comes first, whichever way round it was asked."""
    turned, found = {"win": "loss", "loss": "win"}, []
    for one in comparisons:
        if one.outcome not in UNUSABLE:
            outcome = one.outcome if one.a <= one.b else turned.get(one.outcome, one.outcome)
            found.append(((min(one.a, one.b), max(one.a, one.b), one.conversation, one.turn), str(outcome)))
    return found


def _names(paths: Sequence[Path]) -> list[str]:
    """Each file's name, with as many of its folders as tell it from the others of that name."""
    found = []
    for path in paths:
        others = [other.parts for other in paths if other != path]
        ends = [path.parts[-length:] for length in range(1, len(path.parts) + 1)]
        alone = [end for end in ends if not any(other[-len(end) :] == end for other in others)]
        found.append("/".join(alone[0] if alone else ends[-1]))
    return found


def _read(path: Path) -> tuple[list[Rating], list[Comparison]]:
    ratings, comparisons = list[Rating](), list[Comparison]()
    try:
        lines = path.expanduser().read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"agreement_with: {path} cannot be read: {first_line(error)}") from None
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line) if line.strip() else {}
            what = record.pop("what", None)
            if what == "rating":
                ratings.append(Rating.model_validate(record))
            elif what == "pairwise":
                comparisons.append(Comparison.model_validate(record))
        except (ValueError, ValidationError, AttributeError) as error:
            told = f"agreement_with: {path} has a line in another form, line {number}: {first_line(error)}"
            raise UserError(told) from None
    return ratings, comparisons
