"""Any chat JSONL: ``{"messages": [{"role": "system" | "user" | "assistant", "content": text}]}``.

A leading system message becomes the conversation's own instruction, in place of the task instruction P.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from esupport.data.conversation import Conversation, Turn, content_hash, merge


class _Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class _Raw(BaseModel):
    messages: list[_Message] = Field(min_length=2)
    id: str | None = None


def parse(raw: Any, key: str | None = None) -> Conversation:
    """Read one chat. Raises ``ValidationError`` or ``ValueError`` where it does not fit."""
    record = _Raw.model_validate(raw)
    system = record.messages[0].content.strip() if record.messages[0].role == "system" else None
    said = record.messages[1:] if system is not None else record.messages
    for index, message in enumerate(said, start=len(record.messages) - len(said)):
        if message.role == "system":
            raise ValueError(f"messages.{index}.role: a system message may only come first")
        if not message.content.strip():
            raise ValueError(f"messages.{index}.content: empty")
    turns = merge(Turn(role="seeker" if m.role == "user" else "supporter", text=m.content) for m in said)
    return Conversation(id=record.id or key or f"chat-{content_hash(turns)}", turns=turns, instruction=system, source="chat")
