"""Steps 3 and 4 of the method over many contexts: reflect, refine, and ask again where an answer cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from esupport.data.preference import UNKNOWN, Context, Finding, Refused
from esupport.generators.protocol import Reply, Request
from esupport.reflection.method import Method, deepest
from esupport.reflection.parsing import parse_axis, parse_object, parse_reply

Ask = Callable[[Sequence[Request]], list[Reply]]
# what filters find against a refined reply: of a context's key, the reply and whether it came to its end
Judge = Callable[[str, str, bool], dict[str, str]]


@dataclass
class Outcome:
    """What a step gave, by the contexts' keys.

    Attributes:
        values: findings by axis, or refined replies; what never came is not there.
        versions: hash of what was asked, by ``reflect/<axis>`` or ``refine``.
        seeds: of the sampling, likewise, in the attempt that was used or the last one.
        unusable: the reason why a context has no value, or not all of it.
        unended: contexts whose reply was cut at the longest length, in the last attempt too.
        refused: earlier attempts at a refined reply.
        counts: requests ``asked`` (first attempts), ``retried`` and, in the end, ``unparsable``.
    """

    values: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    seeds: dict[str, dict[str, int]] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    unended: set[str] = field(default_factory=set)
    refused: dict[str, list[Refused]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=lambda: Counter(asked=0, retried=0, unparsable=0))

    def note(self, key: str, step: str, request: Request) -> None:
        """Keep what was asked of a context, and with which seed."""
        self.versions.setdefault(key, {})[step] = request.version
        self.seeds.setdefault(key, {})[step] = request.seed


def reflect(method: Method, contexts: Sequence[Context], drafts: Mapping[str, str], seed: Any, ask: Ask) -> Outcome:
    """Findings of each context by axis: step 3. An axis that is asked too early, or never answered, is unknown."""
    outcome = Outcome()
    if not method.asked:
        return outcome
    found: dict[str, dict[str, Finding]] = {context.key: {} for context in contexts}
    waiting, after = {context.key: set(method.axes_of(context)) for context in contexts}, deepest(contexts)
    for attempt in range(method.reflect.retries + 1):
        asked = [
            (context, axis, request)
            for context in contexts
            if waiting[context.key]
            for axis, request in method.reflect_requests(
                context, after[context.key], drafts[context.key], seed, attempt
            ).items()
            if not axis or axis in waiting[context.key]
        ]
        if not asked:
            break
        outcome.counts["retried" if attempt else "asked"] += len(asked)
        replies = ask([request for _, _, request in asked])
        for (context, axis, request), reply in zip(asked, replies, strict=True):
            outcome.note(context.key, f"reflect/{axis}".rstrip("/"), request)
            findings = _findings(method, context, axis, request.begun, reply.text)
            found[context.key].update(findings)
            waiting[context.key] -= set(findings)
    for context in contexts:
        key, unanswered = context.key, waiting[context.key]
        outcome.counts["unparsable"] += len(unanswered) if method.form == "axes" else bool(unanswered)
        if unanswered and len(unanswered) == len(method.axes_of(context)):
            outcome.unusable[key] = "reflect: no answer could be read"
        outcome.values[key] = {name: found[key].get(name, Finding(text=UNKNOWN)) for name in method.asked}
    return outcome


def _findings(method: Method, context: Context, axis: str, begun: str, answer: str) -> dict[str, Finding]:
    axes = method.axes_of(context)
    if method.form == "json":
        return parse_object(begun + answer, axes, context) or {}
    finding = parse_axis(answer, axes[axis].pattern, context)
    return {axis: finding} if finding else {}


def refine(
    method: Method,
    contexts: Sequence[Context],
    drafts: Mapping[str, str],
    findings: Mapping[str, Mapping[str, Finding]],
    seed: Any,
    ask: Ask,
    judge: Judge,
) -> Outcome:
    """The refined reply to each context: step 4. What ``judge`` finds fault with is drawn again; the last attempt counts."""
    outcome, faults = Outcome(), dict[str, dict[str, str]]()
    waiting, after = {context.key: context for context in contexts}, deepest(contexts)
    for attempt in range(method.refine.retries + 1):
        requests = [
            method.refine_request(c, after[k], drafts[k], findings.get(k, {}), seed, attempt) for k, c in waiting.items()
        ]
        if not requests:
            break
        outcome.counts["retried" if attempt else "asked"] += len(requests)
        for request, reply in zip(requests, ask(requests), strict=True):
            key = request.id
            if key in faults:
                refused = Refused(text=outcome.values[key], verdicts=faults[key])
                outcome.refused.setdefault(key, []).append(refused)
            outcome.note(key, "refine", request)
            text = parse_reply(request.begun + reply.text)
            outcome.values[key] = text
            outcome.unusable.pop(key, None)
            outcome.unended.discard(key)
            if not text:
                outcome.unusable[key] = "refine: the reply is empty"
                faults[key] = {"unparsable": outcome.unusable[key]}
                continue
            if not reply.finished:
                outcome.unended.add(key)
            faults[key] = judge(key, text, reply.finished)
            if not faults[key]:
                del waiting[key]
    outcome.counts["unparsable"] = len(outcome.unusable)
    outcome.counts["unended"] = len(outcome.unended)
    return outcome
