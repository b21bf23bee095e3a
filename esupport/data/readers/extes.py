"""ExTES (Zheng et al., 2023): ``{scene, description, content: [{"User": text}, {"AI Strategy": name, "AI": text}]}``."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from esupport.data.conversation import Conversation, Turn, content_hash, merge


class _Utterance(BaseModel):
    seeker: str | None = Field(default=None, validation_alias="User")
    supporter: str | None = Field(default=None, validation_alias="AI")
    strategy: str | None = Field(default=None, validation_alias="AI Strategy")


class _Raw(BaseModel):
    content: list[_Utterance] = Field(min_length=2)
    scene: str | None = None
    description: str | None = None


def _turns(content: list[_Utterance]) -> list[Turn]:
    turns = []
    for index, said in enumerate(content):
        if said.seeker is None and said.supporter is None:
            raise ValueError(f'content.{index}: neither "User" nor "AI" is there')
        if said.seeker and said.seeker.strip():
            turns.append(Turn(role="seeker", text=said.seeker))
        if said.supporter and said.supporter.strip():
            turns.append(Turn(role="supporter", text=said.supporter, strategy=said.strategy or None))
    return turns


def parse(raw: Any, key: str | None = None) -> Conversation:
    """Read one ExTES record. Raises ``ValidationError`` or ``ValueError`` where it does not fit."""
    record = _Raw.model_validate(raw)
    turns = merge(_turns(record.content))
    return Conversation(
        id=key or f"extes-{content_hash(turns)}",
        turns=turns,
        problem=record.scene,
        situation=record.description,
        source="extes",
    )
