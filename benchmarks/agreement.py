"""Did both sides do the same work? Asked before a ratio is printed; where they did not, there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Result = dict[str, Any]

# nats: a step's loss, and a held-out token's log-probability. In bfloat16 eight bits are left of each number
FLOAT32, BFLOAT16 = 1e-3, 2e-2
# a step's gradient norm, as a share of what this project has
GRADIENT, GRADIENT_BFLOAT16 = 0.01, 0.1
# share of texts that must be equal, token by token the likeliest: two likeliest ones can be nearly tied
TEXTS = 0.95


def bound(bf16: bool) -> float:
    """How far losses, and held-out tokens, may lie apart."""
    return BFLOAT16 if bf16 else FLOAT32


@dataclass
class Agreement:
    """Figures that were compared, and what did not agree.

    Attributes:
        figures: largest differences, over steps, replies and repeats.
        faults: a sentence for each thing that did not agree.
    """

    figures: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether all agreed."""
        return not self.faults

    def within(self, name: str, apart: float, bound: float, unit: str) -> None:
        """Note a difference, and a fault where it is beyond ``bound``."""
        if math.isfinite(apart):
            self.figures[name] = max(apart, self.figures.get(name, 0.0))
        if not apart <= bound:  # nan too
            self.faults.append(f"{name}: {apart:.2g} {unit} apart (bound {bound:g})")


def of_training(ours: Sequence[Result], theirs: Sequence[Result], bf16: bool) -> Agreement:
    """Compare the repeats of two sides pairwise: what was learnt, the losses, the held-out replies."""
    found, most = Agreement(), bound(bf16)
    for one, other in zip(ours, theirs, strict=True):
        if one["learnt"] != other["learnt"]:
            found.faults.append(f"what was learnt: {_tokens(one)} tokens a step here, {_tokens(other)} there, or other ones")
        found.within("loss", _apart(one["losses"], other["losses"]), most, "nats")
        for when in ("before", "after"):
            apart = _apart(one[f"held_out_{when}"], other[f"held_out_{when}"])
            found.within(f"held-out {when}", apart, most, "nats a token")
        norms = _relative(one["gradient_norms"], other["gradient_norms"])
        found.within("gradient norm", norms, GRADIENT_BFLOAT16 if bf16 else GRADIENT, "of it")
    found.faults = list(dict.fromkeys(found.faults))
    return found


def of_texts(ours: Sequence[Result], theirs: Sequence[Result]) -> Agreement:
    """Compare the texts of two sides, which are told by their hashes."""
    found = Agreement()
    for one, other in zip(ours, theirs, strict=True):
        for step, texts in one["texts"].items():
            pairs = list(zip(texts, other["texts"].get(step, []), strict=False))
            share = sum(mine == yours for mine, yours in pairs) / max(len(texts), len(pairs), 1)
            found.figures[f"equal texts, {step}"] = min(share, found.figures.get(f"equal texts, {step}", 1.0))
            if not share >= TEXTS:
                found.faults.append(f"{step}: {share:.0%} of the texts are equal (bound {TEXTS:.0%})")
    found.faults = list(dict.fromkeys(found.faults))
    return found


def _relative(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference as a share; infinite where there are not equally many."""
    if len(one) != len(other):
        return math.inf
    return _largest([abs(a - b) / abs(a) if a else math.inf for a, b in zip(one, other, strict=True)])


def _tokens(result: Result) -> list[int]:
    return [step["tokens"] for step in result["learnt"]]


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference; infinite where there are not equally many."""
    if len(one) != len(other):
        return math.inf
    return _largest([abs(a - b) for a, b in zip(one, other, strict=True)])


def _largest(values: Sequence[float]) -> float:
    """The largest, 0 of none; infinite where one is not a number, which ``max`` would overlook."""
    return max(values, default=0.0) if all(map(math.isfinite, values)) else math.inf
