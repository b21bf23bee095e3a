"""Conversations as tree rows: each supporter turn is a response to what was said before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from esupport.data.conversation import Conversation
from esupport.data.sides import Side
from esupport.errors import DataFault
from esupport.rendering.corpus import Corpus, Tally, keep
from esupport.rendering.row import Row, tree
from esupport.rendering.template import Renderer
from esupport.store import Store


def render_all(name: str, side: Side[Conversation], renderer: Renderer, on_error: str, store: Store) -> Corpus:
    """Rows of the conversations of ``side``; ``on_error`` is ``stop`` or ``skip``.

    Raises:
        DataFault: a text cannot be used, unless it is to be skipped.
    """
    return keep(name, lambda tally: rendered(tally, side, side.where, renderer, on_error), side, renderer, on_error, store)


def rendered(
    tally: Tally, conversations: Iterable[Conversation], where: Sequence[str], renderer: Renderer, on_error: str
) -> Iterator[list[Row]]:
    """The rows of each of ``conversations``, of which ``where`` tells file and line."""
    for number, conversation in enumerate(conversations):
        try:
            rows = _render(tally, conversation, renderer)
        except DataFault as found:
            fault = DataFault(where[number], found.field, found.reason)
            if on_error == "stop":
                raise fault from None
            tally.skipped.append(fault)
            continue
        if rows:
            tally.kept.append(number)
            yield rows


def _render(tally: Tally, conversation: Conversation, renderer: Renderer) -> list[Row]:
    """The rows of one conversation; none where nothing of it is left to learn."""
    rendered = renderer.render(conversation)
    tally.counts.update(cut_turns=rendered.cut_turns, lost_replies=rendered.lost_replies)
    if not rendered.responses:
        tally.counts["dropped"] += 1
        return []
    opened = conversation.turns[rendered.cut_turns].role == "supporter" and not renderer.keeps_opening
    tally.counts.update(openings=opened, turns=len(conversation.turns) - rendered.cut_turns - opened)
    return tally.add(tree(conversation.id, rendered.responses), len(rendered.responses))
