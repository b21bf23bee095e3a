"""ESConv (Liu et al., ACL 2021) in its GitHub form and in its Hugging Face form, and the negative set FailedESConv.

GitHub: ``dialog: [{speaker: seeker|supporter, annotation: {strategy, feedback}, content}]``; FailedESConv says
``speaker|listener``. Hugging Face: ``dialog: [{text, speaker: usr|sys, strategy}]``, each row that JSON in column ``text``.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import AliasChoices, BaseModel, Field

from esupport.data.conversation import Conversation, Role, Turn, content_hash, merge

ROLES: dict[str, Role] = {
    "seeker": "seeker",
    "supporter": "supporter",
    "usr": "seeker",
    "sys": "supporter",
    "speaker": "seeker",
    "listener": "supporter",
}


class _Annotation(BaseModel):
    strategy: str | None = None
    feedback: int | None = Field(default=None, ge=1, le=5)


class _Utterance(BaseModel):
    speaker: str
    text: str = Field(validation_alias=AliasChoices("text", "content"))
    strategy: str | None = None
    annotation: _Annotation = _Annotation()

    def turn(self) -> Turn:
        strategy = self.strategy or self.annotation.strategy
        return Turn(role=ROLES[self.speaker], text=self.text, strategy=strategy, feedback=self.annotation.feedback)


class _Raw(BaseModel):
    dialog: list[_Utterance] = Field(min_length=2)
    emotion_type: str | None = None
    problem_type: str | None = None
    situation: str | None = None


def parse(raw: Any, key: str | None = None) -> Conversation:
    """Read one ESConv record. Raises ``ValidationError`` or ``ValueError`` where it does not fit."""
    if isinstance(raw, dict) and isinstance(raw.get("text"), str) and "dialog" not in raw:
        raw = json.loads(raw["text"])
    record = _Raw.model_validate(raw)
    for index, utterance in enumerate(record.dialog):
        if utterance.speaker not in ROLES:
            known = ", ".join(ROLES)
            raise ValueError(f"dialog.{index}.speaker: {utterance.speaker!r} is none of {known}")
    turns = merge(turn for turn in (utterance.turn() for utterance in record.dialog if utterance.text.strip()))
    return Conversation(
        id=key or f"esconv-{content_hash(turns)}",
        turns=turns,
        emotion=record.emotion_type,
        problem=record.problem_type,
        situation=record.situation,
        source="esconv",
    )
