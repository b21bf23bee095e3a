"""Preference pairs as tree rows: the pairs of a conversation are branches of one trunk.

Of a row's responses, those of even number are chosen, and each is followed by its rejected one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from esupport.data.preference import PreferencePair
from esupport.errors import DataFault
from esupport.rendering.corpus import Corpus
from esupport.rendering.row import tree
from esupport.rendering.template import Renderer, Response


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


def render_pairs(name: str, pairs: Iterable[PreferencePair], renderer: Renderer, on_error: str) -> Corpus:
    """Rows of ``pairs``, those of one conversation together; pairs that do not fit are left out and counted as lost.

    Raises:
        DataFault: a text cannot be used, unless ``on_error`` is ``skip``.
    """
    corpus = Corpus(name)
    responses: dict[str, list[Response]] = {}
    for pair in pairs:
        try:
            both = respond(pair, renderer)
        except DataFault as fault:
            if on_error == "stop":
                raise
            corpus.skipped.append(fault)
            continue
        if max(len(response.ids) for response in both) > renderer.max_tokens:
            corpus.lost_replies += 2
            continue
        responses.setdefault(pair.context.conversation, []).extend(both)
        corpus.turns += len(pair.context.turns)
    for conversation, hung in responses.items():
        # the longest context is the trunk
        order = sorted(range(0, len(hung), 2), key=lambda i: len(hung[i].context))
        corpus.add_rows(tree(conversation, [hung[i + side] for i in order for side in (0, 1)]), len(hung))
    return corpus
