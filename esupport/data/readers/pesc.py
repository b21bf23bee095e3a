"""PESC, the NLPCC 2025 shared task 8: an object of id to a dialogue and the seeker's character.

``{whole_dialog: ["seeker: ...", "supporter: ...", ...], character: {Name, Sex, Age, ..., emotion_type, problem_type,
situation}}``. The test file has empty supporter turns to fill in; they are kept, as turns without a text.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from esupport.data.conversation import Conversation, Turn, content_hash, merge


class _Raw(BaseModel):
    whole_dialog: list[str] = Field(min_length=2)
    character: dict[str, str | int | float | None] = Field(default_factory=dict)


def _turn(index: int, line: str) -> Turn:
    speaker, colon, text = line.partition(":")
    role = speaker.strip().lower()
    if not colon or role not in ("seeker", "supporter"):
        raise ValueError(f"whole_dialog.{index}: begins with neither 'seeker:' nor 'supporter:'")
    if role == "seeker" and not text.strip():
        raise ValueError(f"whole_dialog.{index}: the seeker says nothing")
    side: Literal["seeker", "supporter"] = "seeker" if role == "seeker" else "supporter"
    return Turn(role=side, text=text)


def parse(raw: Any, key: str | None = None) -> Conversation:
    """Read one PESC record. Raises ``ValidationError`` or ``ValueError`` where it does not fit."""
    record = _Raw.model_validate(raw)
    turns = merge(_turn(index, line) for index, line in enumerate(record.whole_dialog))
    character = {name: str(value) for name, value in record.character.items() if value not in (None, "")}
    return Conversation(
        id=key or f"pesc-{content_hash(turns)}",
        turns=turns,
        emotion=character.pop("emotion_type", None),
        problem=character.pop("problem_type", None),
        situation=character.pop("situation", None),
        profile=character,
        source="pesc",
    )
