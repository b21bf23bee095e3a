"""Filters: which pairs are fit to learn from. A filter sees the context, the draft and the refined reply, never the human's.

They are plain classes: Hydra would take a dataclass inside a mapping for a piece of configuration.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import inf
from typing import Protocol

from esupport.data.conversation import content_hash
from esupport.data.preference import PreferencePair
from esupport.reflection.wording import bounded, compiled, first, ngrams, plain, quoted, sentences, similarity, words


class Filter(Protocol):
    """One named step of the judgement; its settings stand in ``conf/filters``."""

    def __call__(self, pair: PreferencePair) -> str | None:
        """A short reason for dropping the pair, or ``None`` where it passes."""


def judge(pair: PreferencePair, filters: Mapping[str, Filter | None]) -> PreferencePair:
    """The pair with the verdict of every filter by name, beside those it has: empty where it passed.

    Every filter judges every pair, so a filter's count does not depend on the others. ``None`` is one that is switched off.
    """
    verdicts = {name: one(pair) or "" for name, one in filters.items() if one is not None}
    return pair.model_copy(update={"verdicts": {**pair.verdicts, **verdicts}})


class Empty:
    """The reply or the draft has no words: nothing, or signs and emoji alone."""

    def __call__(self, pair: PreferencePair) -> str | None:
        """See :class:`Filter`."""
        if not words(pair.chosen):
            return "the reply has no words"
        return None if words(pair.rejected) else "the draft has no words"


class Unfinished:
    """Draft or reply was cut at its longest length: what is learnt from it would have an end that nobody wrote."""

    def __call__(self, pair: PreferencePair) -> str | None:
        """See :class:`Filter`."""
        if not pair.rejected_ended:
            return "the draft does not end"
        return None if pair.chosen_ended else "the reply does not end"


class SameAsDraft:
    """The reply is the draft, or nearly: there is no preference to learn.

    Args:
        similarity: from which likeness of the two on; 1 drops only those of equal words.
    """

    def __init__(self, similarity: float) -> None:
        self._similarity = bounded("same_as_draft.similarity", similarity, 0, 1)

    def __call__(self, pair: PreferencePair) -> str | None:
        """See :class:`Filter`."""
        if pair.chosen == pair.rejected:
            return "the reply is the draft"
        found = similarity(words(pair.chosen), words(pair.rejected))
        return f"the reply is like the draft: {found:.2f}" if found >= self._similarity else None


class LeakedAnalysis:
    """The reply talks about the person or about the task, where it should talk to the person.

    Args:
        patterns: regular expressions, one of which matches such a reply. See :func:`esupport.reflection.wording.compiled`.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = compiled("leaked_analysis.patterns", patterns)

    def __call__(self, pair: PreferencePair) -> str | None:
        """See :class:`Filter`."""
        found = first(self._patterns, plain(pair.chosen))
        return f"analysis in the reply: {found}" if found else None


class RecitesProfile:
    """The reply repeats what was inferred word by word.

    That is: a run of ``run`` consecutive words stands in the reply and in the text of a finding, and in no turn of the
    context (what was said in the conversation may be said again). A finding of fewer words is never recited.

    Args:
        run: consecutive words in common.
    """

    def __init__(self, run: int) -> None:
        self._run = bounded("recites_profile.run", run, 1, inf)

    def __call__(self, pair: PreferencePair) -> str | None:
        """See :class:`Filter`."""
        reply = set(ngrams(words(pair.chosen), self._run))
        for turn in pair.context.turns:
            reply.difference_update(ngrams(words(turn.text), self._run))
        for axis, finding in pair.reflection.items():
            if finding.known:
                for common in ngrams(words(finding.text), self._run):
                    if common in reply:
                        return f"recites the {axis}: {quoted(' '.join(common))}"
        return None


class SpeaksForSeeker:
    """The reply writes the seeker's part too, or goes on with the dialogue, or begins as the seeker spoke.

    That is: a name of the seeker's side with a colon begins a line or a sentence; or one of the supporter's side does, past the
    beginning of the reply; or the reply's beginning is like a seeker's turn, of which it has as many words.

    Args:
        seeker: names of the seeker's side.
        supporter: names of the supporter's side.
        similarity: from which likeness of the reply's beginning and a seeker's turn on.
        least_words: turns with fewer words ("Thank you") are not compared.
    """

    def __init__(self, seeker: Sequence[str], supporter: Sequence[str], similarity: float, least_words: int) -> None:
        self._similarity = bounded("speaks_for_seeker.similarity", similarity, 0, 1)
        self._least_words = least_words
        ends = r"[.!?。…*\")\]]"
        anywhere, past_the_beginning = rf"(?:^|{ends})", rf"(?:\n|\w{ends})"
        # bounded repetitions: a text of nothing but signs is searched in linear time
        labels = [
            rf"{place}\W{{0,8}}\b{re.escape(name)}[\s\d*_)\]]{{0,6}}:"
            for place, names in ((anywhere, seeker), (past_the_beginning, supporter))
            for name in names
        ]
        self._labels = compiled("speaks_for_seeker", labels)

    def __call__(self, pair: PreferencePair) -> str | None:
        """See :class:`Filter`."""
        found = first(self._labels, plain(pair.chosen))
        if found:
            return f"goes on with the dialogue: {found}"
        reply = words(pair.chosen)
        for turn in pair.context.turns:
            said = words(turn.text)
            if turn.role == "seeker" and len(said) >= self._least_words:
                likeness = similarity(reply[: len(said)], said)
                if likeness >= self._similarity:
                    return f"begins as the seeker spoke: {likeness:.2f}"
        return None


class RepeatsItself:
    """The reply says the same twice.

    Args:
        share: above which share of its runs of ``n`` words that stood in it before.
        n: words of a run.
        sentence: a sentence of at least so many words may stand in it but once.
    """

    def __init__(self, share: float, n: int, sentence: int) -> None:
        self._share = bounded("repeats_itself.share", share, 0, 1)
        self._n = bounded("repeats_itself.n", n, 1, inf)
        self._sentence = sentence

    def __call__(self, pair: PreferencePair) -> str | None:
        """See :class:`Filter`."""
        counts = Counter(sentence for sentence in sentences(pair.chosen) if len(sentence) >= self._sentence)
        twice = next((sentence for sentence, count in counts.items() if count > 1), None)
        if twice:
            return f"a sentence twice: {quoted(' '.join(twice))}"
        runs = ngrams(words(pair.chosen), self._n)
        repeated = 1 - len(set(runs)) / len(runs) if runs else 0.0
        return f"repeated runs of {self._n} words: {repeated:.2f}" if repeated > self._share else None


class LengthRatio:
    """The reply is much shorter or much longer than the draft, so that length is what would be learnt.

    Args:
        least: least words of the reply for each word of the draft.
        most: most words of the reply for each word of the draft.
    """

    def __init__(self, least: float, most: float) -> None:
        self._least, self._most = bounded("length_ratio.least", least, 0, most), most

    def __call__(self, pair: PreferencePair) -> str | None:
        """See :class:`Filter`."""
        reply, draft = len(words(pair.chosen)), len(words(pair.rejected))
        fits = self._least * draft <= reply <= self._most * draft
        return None if fits else f"{reply} words for the draft's {draft}"


class DuplicateContext:
    """The same context (roles and texts of its turns) was judged before by this filter.

    It remembers what it judged: make a new one for each run, and judge in a fixed order.
    """

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def __call__(self, pair: PreferencePair) -> str | None:
        """See :class:`Filter`."""
        content = content_hash(pair.context.turns)
        if content in self._seen:
            return f"the context of {self._seen[content]}"
        self._seen[content] = pair.context.key
        return None
