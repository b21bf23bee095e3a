"""The project's own form: one :class:`esupport.data.conversation.Conversation` a line, as the shipped conversations are."""

from __future__ import annotations

from typing import Any

from esupport.data.conversation import Conversation


def parse(raw: Any, key: str | None = None) -> Conversation:
    """Read one conversation. Raises ``ValidationError`` where it does not fit."""
    return Conversation.model_validate(raw)
