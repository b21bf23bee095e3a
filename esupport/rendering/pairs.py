"""Preference pairs as tree rows: the pairs of a conversation are branches of one trunk.

Of a row's responses, those of even number are chosen, and each is followed by its rejected one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from esupport.data.division import together
from esupport.data.preference import PreferencePair
from esupport.data.sides import Side
from esupport.errors import DataFault
from esupport.rendering.corpus import Corpus, Tally, hold, keep
from esupport.rendering.row import Row, tree
from esupport.rendering.template import Renderer, Response
from esupport.store import Store


def respond(pair: PreferencePair, renderer: Renderer) -> list[Response]:
    """The chosen and the rejected completion of the pair's context; one that was cut has no end-of-turn token.

    Raises:
        DataFault: a text holds a control token.
    """
    turn = len(pair.context.turns)
    responses = []
    for name, text, ended in (("chosen", pair.chosen, pair.chosen_ended), ("rejected", pair.rejected, pair.rejected_ended)):
        conversation = pair.context.answered(text)
        try:
            renderer.refuse_control_tokens(conversation)
        except DataFault as fault:
            at_fault = name if fault.field == f"turns.{turn}.text" else f"context.{fault.field}"
            raise DataFault(pair.context.key, at_fault, fault.reason) from None
        (response,) = renderer.respond(conversation, [(turn, text)])
        responses.append(response if ended else replace(response, completion=response.completion[:-1] or response.completion))
    return responses


def render_pairs(name: str, pairs: Sequence[PreferencePair], renderer: Renderer, on_error: str) -> Corpus:
    """Rows of the few pairs that are made in a run, in memory; pairs that do not fit are left out and counted as lost.

    Raises:
        DataFault: a text cannot be used, unless ``on_error`` is ``skip``.
    """
    ordered = [pairs[i] for i in together([pair.context.conversation for pair in pairs])]
    return hold(name, lambda tally: rendered_pairs(tally, ordered, renderer, on_error))


def render_read_pairs(name: str, side: Side[PreferencePair], renderer: Renderer, on_error: str, store: Store) -> Corpus:
    """The same of pairs that were read from a source, on a shelf."""
    return keep(name, lambda tally: rendered_pairs(tally, side, renderer, on_error), side, renderer, on_error, store)


def rendered_pairs(tally: Tally, pairs: Iterable[PreferencePair], renderer: Renderer, on_error: str) -> Iterator[list[Row]]:
    """The rows of each conversation, whose pairs stand together."""
    for conversation, own in groupby(pairs, key=lambda pair: pair.context.conversation):
        hung: list[Response] = []
        for pair in own:
            try:
                both = respond(pair, renderer)
            except DataFault as fault:
                if on_error == "stop":
                    raise
                tally.skipped.append(fault)
                continue
            if max(len(response.ids) for response in both) > renderer.max_tokens:
                tally.counts["lost_replies"] += 2
                continue
            hung += both
            tally.counts["turns"] += len(pair.context.turns)
        if hung:
            # the longest context is the trunk
            order = sorted(range(0, len(hung), 2), key=lambda i: len(hung[i].context))
            yield tally.add(tree(conversation, [hung[i + side] for i in order for side in (0, 1)]), len(hung))
