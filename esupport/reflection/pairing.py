"""Steps 5 and 6 of the method up to training: drafts and refined replies into judged preference pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from esupport.data.preference import Context, PreferencePair
from esupport.errors import DataFault
from esupport.generators.protocol import Reply, Request
from esupport.reflection.filters import DuplicateContext, Empty, Filter, Unfinished, judge
from esupport.reflection.steps import Judge, Outcome
from esupport.reflection.wording import words
from esupport.rendering.pairs import respond
from esupport.rendering.template import Renderer


def pair_up(
    contexts: Sequence[Context],
    drafts: Mapping[str, tuple[Request, Reply]],
    reflected: Outcome,
    refined: Outcome | None,
    human: Mapping[str, str],
    writers: Mapping[str, str],
    round_: int,
) -> list[PreferencePair]:
    """A pair of each context, judged for what could not be read, and by no filter yet.

    Args:
        contexts: of the round.
        drafts: what was asked and written, by the contexts' keys.
        reflected: the findings.
        refined: the refined replies; None where the ``human`` ones are chosen.
        human: the replies of the data, by key; read only where ``refined`` is None.
        writers: the generator of each step.
        round_: of the run.
    """
    pairs = []
    for context in contexts:
        key = context.key
        request, draft = drafts[key]
        reasons = [reflected.unusable.get(key, ""), refined.unusable.get(key, "") if refined else ""]
        outcomes = [reflected, *([refined] if refined else [])]
        pairs.append(
            PreferencePair(
                context=context,
                chosen=refined.values.get(key, "") if refined else human[key],
                rejected=draft.text,
                chosen_ended=key not in refined.unended if refined else True,
                rejected_ended=draft.finished,
                chosen_from="refined" if refined else "human",
                round=round_,
                reflection=reflected.values.get(key, {}),
                verdicts={"unparsable": "; ".join(reason for reason in reasons if reason)},
                generators=dict(writers),
                prompts={"draft": request.version, **_of(key, *(outcome.versions for outcome in outcomes))},
                seeds={"draft": request.seed, **_of(key, *(outcome.seeds for outcome in outcomes))},
                refused=tuple(refined.refused.get(key, ())) if refined else (),
            )
        )
    return pairs


def _of(key: str, *by_context: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for one in by_context for name, value in one.get(key, {}).items()}


def judging(
    contexts: Sequence[Context], drafts: Mapping[str, tuple[Request, Reply]], reflected: Outcome, filters: Mapping[str, Filter]
) -> Judge:
    """What ``filters`` find against a refined reply; nothing where context or draft is at fault: no other reply mends that."""
    by_key = {context.key: context for context in contexts}
    filters = {name: one for name, one in filters.items() if not isinstance(one, DuplicateContext)}
    kinds = {type(one) for one in filters.values()}

    def found(key: str, text: str, ended: bool) -> dict[str, str]:
        draft, findings = drafts[key][1], reflected.values.get(key, {})
        cut, wordless = Unfinished in kinds and not draft.finished, Empty in kinds and not words(draft.text)
        if key in reflected.unusable or cut or wordless:
            return {}
        pair = PreferencePair(
            context=by_key[key],
            chosen=text,
            rejected=draft.text,
            chosen_ended=ended,
            rejected_ended=draft.finished,
            reflection=findings,
        )
        return judge(pair, filters).dropped

    return found


def sift(pairs: Sequence[PreferencePair], filters: Mapping[str, Filter]) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """The pairs that all filters pass, and the dropped ones with the reasons; every filter judges every readable pair."""
    kept: list[PreferencePair] = []
    dropped: list[PreferencePair] = []
    for pair in pairs:
        judged = pair
        if not pair.dropped:
            judged = judge(pair, filters)
        (dropped if judged.dropped else kept).append(judged)
    return kept, dropped


def fits(renderer: Renderer, pair: PreferencePair) -> str | None:
    """The last filter of every run: the pair can be rendered as the rows of training are, within the bound on tokens."""
    try:
        longest = max(len(response.ids) for response in respond(pair, renderer))
    except DataFault as fault:
        return f"{fault.field}: {fault.reason}"
    return f"{longest} tokens" if longest > renderer.max_tokens else None


def filter_counts(dropped: Sequence[PreferencePair], filters: Iterable[str]) -> dict[str, int]:
    """How many pairs each filter, and what stands before the filters, dropped; a pair may be dropped by several."""
    counts = Counter(name for pair in dropped for name in pair.dropped)
    return {name: counts[name] for name in ("unparsable", *filters)}
