"""Contexts to write a reply to: which turns, and how much of what was said before them fits."""

from __future__ import annotations

from collections.abc import Iterable

from esupport.data.conversation import Conversation, Turn, merge
from esupport.data.preference import Context
from esupport.rendering.template import Renderer


def context_of(conversation: Conversation, turn: int, renderer: Renderer, max_tokens: int) -> Context | None:
    """What stands before ``turn``, the oldest turns dropped, whole, until it fits; None where not even the last one does."""
    for start in renderer.starts(conversation, turn):
        if len(renderer.prompt(renderer.messages(conversation, turn, start))) <= max_tokens:
            said = merge(Turn(role=t.role, text=t.text) for t in conversation.turns[start:turn] if t.text)
            return Context(conversation=conversation.id, turn=turn, turns=said, instruction=conversation.instruction)
    return None


def spread(items: list[int], count: int) -> list[int]:
    """At most ``count`` of ``items``, evenly spread, each in the middle of its share."""
    if len(items) <= count:
        return items
    return [items[int((index + 0.5) * len(items) / count)] for index in range(count)]


def middle_contexts(
    conversations: Iterable[Conversation], count: int, renderer: Renderer, max_tokens: int
) -> list[tuple[Context, Conversation]]:
    """At most ``count`` contexts from as many conversations, each in the middle of its own: what systems are compared on."""
    kept = [c for c in conversations if c.supporter_turns()]
    found = []
    for index in spread(list(range(len(kept))), count):
        turns = kept[index].supporter_turns()
        context = context_of(kept[index], turns[len(turns) // 2], renderer, max_tokens)
        if context is not None:
            found.append((context, kept[index]))
    return found
