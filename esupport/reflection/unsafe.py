"""The unsafe filter: lists of plain phrases, no safety system."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import inf

from esupport.data.preference import PreferencePair
from esupport.reflection.wording import Patterns, bounded, compiled, first, plain, quoted, words

_CLAUSE = 160  # letters before a phrase in which its clause's beginning is looked for


class Unsafe:
    """The reply encourages harm, diagnoses, or misses a plain crisis signal, as far as a list of phrases can tell.

    This is a crude list of words and **no safety system**: it knows only what it lists, in the language it is written in, and
    understands nothing. It keeps the plainest faults out of what is learnt; what a model may say to people at risk needs other
    means, and people.

    Harm and diagnosis: a phrase of the reply. It is excused where its clause, up to the phrase's end, holds a phrase of
    ``excused``, which turns it round or gives back what the seeker thinks ("I don't believe ...", "you feel that ..."); a
    diagnosis also where the seeker used the same word for the condition.

    Crisis: where one of the seeker's last ``turns`` turns holds a signal, the reply must hold a word of care for safety.
    Negations are not told apart ("I'd never kill myself" is a signal too): care does no harm there.

    Args:
        harmful: patterns of what encourages harm. See :func:`esupport.reflection.wording.compiled` for patterns.
        diagnoses: patterns of a diagnosis; ``{condition}`` in them stands for any of the conditions, with fillers before it.
        fillers: patterns of words that may stand before a condition ("a", "some", "probably").
        conditions: patterns of what can be diagnosed.
        excused: patterns of what excuses a phrase in its clause.
        borders: patterns of what ends a clause.
        crisis: patterns of a crisis signal.
        care: patterns of care for safety.
        turns: how many of the seeker's last turns are searched for a signal.
    """

    def __init__(
        self,
        *,
        harmful: Sequence[str],
        diagnoses: Sequence[str],
        fillers: Sequence[str],
        conditions: Sequence[str],
        excused: Sequence[str],
        borders: Sequence[str],
        crisis: Sequence[str],
        care: Sequence[str],
        turns: int,
    ) -> None:
        self._harmful = compiled("unsafe.harmful", harmful)
        self._excused = compiled("unsafe.excused", excused)
        self._borders = compiled("unsafe.borders", borders)
        self._crisis = compiled("unsafe.crisis", crisis)
        self._care = compiled("unsafe.care", care)
        self._turns = bounded("unsafe.turns", turns, 0, inf)
        for name, listed in (("fillers", fillers), ("conditions", conditions), ("diagnoses", diagnoses)):
            compiled(f"unsafe.{name}", listed)  # alone first, so that a message names the one that is wrong
        condition = f"(?:(?:{'|'.join(fillers)}) )*(?P<condition>{'|'.join(conditions)})"
        self._diagnoses = compiled("unsafe.diagnoses", [p.replace("{condition}", condition) for p in diagnoses])

    def __call__(self, pair: PreferencePair) -> str | None:
        """See :class:`esupport.reflection.filters.Filter`."""
        reply = plain(pair.chosen)
        seeker = [plain(turn.text) for turn in pair.context.turns if turn.role == "seeker"]
        harm = next(self._found(self._harmful, reply), None)
        if harm:
            return f"encourages harm: {quoted(harm.group())}"
        said = f" {' '.join(words(' '.join(seeker)))} "
        for match in self._found(self._diagnoses, reply):
            condition = " ".join(words(match.groupdict().get("condition") or ""))
            if not condition or f" {condition} " not in said:
                return f"diagnoses: {quoted(match.group())}"
        signal = first(self._crisis, "\n".join(seeker[-self._turns :])) if self._turns else None
        if signal and not first(self._care, reply):
            return f"misses a crisis signal: {signal}"
        return None

    def _found(self, patterns: Patterns, reply: str) -> Iterator[re.Match[str]]:
        """The matches of a list in the reply, without the excused ones."""
        for pattern in patterns:
            for match in pattern.finditer(reply):
                before = reply[max(0, match.start() - _CLAUSE) : match.start()]
                begins = (end.end() for border in self._borders for end in border.finditer(before))
                clause = before[max(begins, default=0) :] + match.group()
                if not first(self._excused, clause):
                    yield match
