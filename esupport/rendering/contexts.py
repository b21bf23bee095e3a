"""Contexts to write a reply to: which turns, and how much of what was said before them fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from esupport.data.conversation import Conversation, Turn, merge
from esupport.data.preference import Context
from esupport.rendering.row import Row, grow
from esupport.rendering.template import Renderer


def context_of(conversation: Conversation, turn: int, renderer: Renderer, max_tokens: int) -> Context | None:
    """What stands before ``turn``, the oldest turns dropped, whole, until it fits; None where not even the last one does."""
    for start in renderer.starts(conversation, turn):
        if len(renderer.prompt(renderer.messages(conversation, turn, start))) <= max_tokens:
            said = merge(Turn(role=t.role, text=t.text) for t in conversation.turns[start:turn] if t.text)
            return Context(conversation=conversation.id, turn=turn, turns=said, instruction=conversation.instruction)
    return None


def reply_row(context: Context, text: str, renderer: Renderer) -> Row:
    """``text`` as the reply to ``context``: a row whose targets are the reply's tokens, the end of its turn among them."""
    (response,) = renderer.respond(context.answered(text), [(len(context.turns), text)])
    return grow(context.key, response.ids, [response])


def spread(items: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of ``items``, evenly spread, each in the middle of its share."""
    if len(items) <= count:
        return list(items)
    return [items[int((index + 0.5) * len(items) / count)] for index in range(count)]


def spread_contexts(
    conversations: Sequence[Conversation], count: int | None, per_conversation: int | None, renderer: Renderer, max_tokens: int
) -> list[tuple[Context, Conversation]]:
    """Contexts of ``count`` conversations (None for all), evenly spread, ``per_conversation`` of each likewise: what systems
    are compared on. One of each is the one in its middle.

    Only these are read. Each of ``conversations`` has a reply to learn from.
    """
    asked = spread_turns(conversations, count, per_conversation)
    found = ((context_of(conversation, turn, renderer, max_tokens), conversation) for conversation, turn in asked)
    return [(context, conversation) for context, conversation in found if context]


def spread_turns(
    conversations: Sequence[Conversation], count: int | None, per_conversation: int | None
) -> Iterator[tuple[Conversation, int]]:
    """The conversations and turns that :func:`spread_contexts` would take, whether they fit or not."""
    for index in spread(range(len(conversations)), len(conversations) if count is None else count):
        turns = conversations[index].supporter_turns()
        for turn in spread(turns, len(turns) if per_conversation is None else per_conversation):
            yield conversations[index], turn
