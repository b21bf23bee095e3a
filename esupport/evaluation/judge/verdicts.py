"""What a judge is asked of replies, and what follows from its answers: both orders, the rubric, the swap test."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

from esupport.data.conversation import Conversation
from esupport.data.preference import Context
from esupport.evaluation.answered import Answered
from esupport.evaluation.judge.answers import NONE, choice, error_of, read_object, read_one, score
from esupport.evaluation.judge.asking import Given, Item
from esupport.evaluation.judge.method import Asked, Judge
from esupport.evaluation.judge.quoting import person, profile, quoted, spoken
from esupport.evaluation.judge.records import UNUSABLE, Comparison, Outcome, Rating

_AGREED: dict[str, Outcome] = {"a": "win", "b": "loss", "tie": "tie"}
_SCORES = {"a": 1.0, "b": 0.0, "tie": 0.5}


def compare(
    judge: Judge, pairs: Sequence[tuple[Answered, Answered]], people: Mapping[str, Conversation]
) -> list[Item[Comparison]]:
    """Which of two replies to a context supports the seeker better; equal replies are a tie and are not asked.

    Args:
        judge: whose questions are asked.
        pairs: replies of two systems to the same contexts.
        people: conversations by id, for what the data tells of the seeker; those that are not there are judged without.

    Raises:
        ValueError: the replies of a pair are to different contexts.
    """
    items = []
    for a, b in pairs:
        if a.context != b.context:
            raise ValueError(f"replies to different contexts: {a.context.key} and {b.context.key}")
        shown = {"person": person(people.get(a.context.conversation)), "transcript": spoken(a.context.turns)}
        asked = (
            () if a.reply == b.reply else _both_orders(judge, "pairwise", a.context, quoted(a.reply), quoted(b.reply), shown)
        )
        items.append(Item(asked, partial(_compared, a.system, b.system, a.context, len(a.reply) - len(b.reply))))
    return items


def swap(judge: Judge, answered: Sequence[Answered], people: Mapping[str, Conversation]) -> list[Item[Comparison]]:
    """Whom of two people in one situation a reply fits better: the one it was written to, or the other.

    The judge sees the profiles of both and the reply. It sees neither what was said nor how each put situation and feeling:
    else a reply that echoes the topic would give the person away. It chooses, because two ratings from 1 to 5 are mostly
    equal. Chance is one half.

    Args:
        judge: whose questions are asked.
        answered: replies; those to a person without a profile, or without another one in the ``group``, are left out, and so
            are pairs of people with equal profiles.
        people: conversations by id, the others of the groups among them.
    """
    items = []
    for one in answered:
        own = people.get(one.context.conversation)
        if own is None or own.group is None or not own.profile:
            continue
        for other in sorted(people.values(), key=lambda c: c.id):
            if other.group == own.group and other.profile and profile(other) != profile(own):
                cards = profile(own), profile(other)
                asked = _both_orders(judge, "swap", one.context, *cards, {"reply": quoted(one.reply)})
                items.append(Item(asked, partial(_compared, own.id, other.id, one.context, 0)))
    return items


def rate(judge: Judge, answered: Sequence[Answered], people: Mapping[str, Conversation]) -> list[Item[Rating]]:
    """Replies on the rubric; arguments as in :func:`compare`."""
    items = []
    for one in answered:
        context = one.context
        shown = {
            "person": person(people.get(context.conversation)),
            "transcript": spoken(context.turns),
            "reply": quoted(one.reply),
        }
        items.append(on_rubric(judge, "rating", one.system, context.conversation, context.turn, shown, judge.errors or {}))
    return items


def grade(judge: Judge, answered: Sequence[Answered]) -> list[Item[Rating]]:
    """One rating of each reply, the axis ``g_score``, with the human reply shown: NLPCC 2025 shared task 8.

    Nothing is asked without ``judge.g_score``, nor of the human replies themselves.
    """
    items = list[Item[Rating]]()
    if judge.g_score is None or all(one.reply == one.human for one in answered):
        return items
    for one in answered:
        context, shown = one.context, {"reference": one.human, "reply": one.reply}
        quotes = {name: quoted(text) for name, text in {**shown, "said": context.turns[-1].text}.items()}
        request = judge.request("g_score", context.key, context.conversation, quotes)
        asked = Asked(request, partial(read_one, "g_score", score, judge.g_score.pattern))
        items.append(Item((asked,), partial(_rated, one.system, context.conversation, context.turn, judge.unhelpful)))
    return items


def on_rubric(
    judge: Judge, name: str, system: str, conversation: str, turn: int, shown: Mapping[str, str], errors: Collection[str]
) -> Item[Rating]:
    """One thing rated on all axes.

    Args:
        judge: whose axes these are.
        name: of the question: ``rating`` or ``dialogue``.
        system, conversation, turn: of the rating.
        shown: what the question's template sees, quoted.
        errors: names of the errors that may be found; without any, none is asked for.
    """
    axes, error, question = judge.asked_axes, error_of(errors), getattr(judge, name)
    about = f"{conversation}/{turn}", conversation
    if judge.form == "json":
        readers = {**dict.fromkeys(axes, score), **({"error": error} if errors else {})}
        asked = [Asked(judge.request(name, *about, shown), partial(read_object, readers))]
    else:
        asked = [
            Asked(
                judge.request(name, *about, {**shown, "axes": {axis: axes[axis]}}),
                partial(read_one, axis, score, question.pattern),
            )
            for axis in axes
        ]
        if errors:
            read = partial(read_one, "error", error, judge.error.pattern)
            asked.append(Asked(judge.request("error", *about, shown), read))
    return Item(tuple(asked), partial(_rated, system, conversation, turn, judge.unhelpful))


def _both_orders(judge: Judge, name: str, context: Context, a: str, b: str, shown: Mapping[str, str]) -> tuple[Asked, Asked]:
    question = getattr(judge, name)
    read = (
        partial(read_object, {"better": choice})
        if judge.form == "json"
        else partial(read_one, "better", choice, question.pattern)
    )
    orders = [{**shown, "first": first, "second": second} for first, second in ((a, b), (b, a))]
    one, other = (Asked(judge.request(name, context.key, context.conversation, order), read) for order in orders)
    return one, other


def _compared(a: str, b: str, context: Context, longer: int, given: Sequence[Given]) -> Comparison:
    one, other = given or [Given("answered", {"better": "tie"})] * 2  # nothing is asked of equal replies
    verdicts = _side(one, "a", "b"), _side(other, "b", "a")
    missing = next((status for status in UNUSABLE if status in verdicts), None)
    return Comparison(
        a=a,
        b=b,
        conversation=context.conversation,
        turn=context.turn,
        verdicts=verdicts,
        reasons=(str(one.values.get("reason", "")), str(other.values.get("reason", ""))),
        outcome=missing or (_AGREED[verdicts[0]] if verdicts[0] == verdicts[1] else "inconsistent"),
        score=None if missing else sum(_SCORES[verdict] for verdict in verdicts) / 2,
        longer=longer,
    )


def _side(given: Given, first: str, second: str) -> str:
    """The side that an order's verdict is for, or why there is none."""
    return {"first": first, "second": second, "tie": "tie"}[str(given.values["better"])] if given.values else given.status


def _rated(system: str, conversation: str, turn: int, unhelpful: int, given: Sequence[Given]) -> Rating:
    values = {key: value for one in given for key, value in one.values.items()}
    statuses = {one.status for one in given}
    scores = {key: value for key, value in values.items() if isinstance(value, int)}
    error = values.get("error", NONE)
    return Rating(
        system=system,
        conversation=conversation,
        turn=turn,
        status=next((status for status in UNUSABLE if status in statuses), "rated"),
        scores=scores,
        error=str(error) if error != NONE and scores.get("helpfulness", unhelpful + 1) <= unhelpful else None,
        reason=str(values.get("reason", "")),
    )
