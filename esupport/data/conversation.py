"""The one record of the project: a conversation between a seeker and a supporter."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from esupport.store import key_of

Role = Literal["seeker", "supporter"]


class Record(BaseModel):
    """Base of all records on disk: frozen, typed strictly, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Turn(Record):
    """What one side says before the other speaks again.

    ``text`` is stripped; an empty text is a supporter turn still to be written (the PESC test file has them).
    ``strategy`` is the supporter's annotated strategy, ``feedback`` the seeker's rating of the support so far (1 to 5).
    """

    role: Role
    text: str
    strategy: str | None = None
    feedback: int | None = Field(default=None, ge=1, le=5)

    @field_validator("text")
    @classmethod
    def _strip(cls, text: str) -> str:
        return text.strip()

    @model_validator(mode="after")
    def _only_supporter_may_be_blank(self) -> Turn:
        if not self.text and self.role == "seeker":
            raise ValueError("a seeker turn has no text")
        return self


class Conversation(Record):
    """A conversation whose turns alternate (consecutive utterances of one speaker are merged by the readers).

    ``group`` names conversations that share a situation and must stay on one side of a split.
    ``instruction`` is the conversation's own system text; ``None`` means the task instruction P of the run.
    """

    id: str
    turns: tuple[Turn, ...] = Field(strict=False)
    profile: dict[str, str] = Field(default_factory=dict)
    emotion: str | None = None
    problem: str | None = None
    situation: str | None = None
    source: str = ""
    group: str | None = None
    instruction: str | None = None

    @field_validator("turns")
    @classmethod
    def _alternate(cls, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        if not any(turn.role == "supporter" for turn in turns) or not any(turn.role == "seeker" for turn in turns):
            raise ValueError("needs at least one seeker and one supporter turn")
        for index, (one, two) in enumerate(pairwise(turns)):
            if one.role == two.role:
                raise ValueError(f"turns {index} and {index + 1} are both the {one.role}'s")
        return turns

    def supporter_turns(self) -> list[int]:
        """Indices of the supporter turns that have a text and follow a seeker turn: what can be learnt from."""
        return [i for i, turn in enumerate(self.turns) if i > 0 and turn.role == "supporter" and turn.text]


def content_hash(turns: Iterable[Turn]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of roles and texts: equal for copies, whatever their ids and annotations."""
    return key_of([(turn.role, turn.text) for turn in turns])


def merge(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Merge consecutive turns of one speaker: texts joined by a space, differing strategies by ``; ``, last feedback."""
    merged: list[Turn] = []
    for turn in turns:
        if not merged or merged[-1].role != turn.role:
            merged.append(turn)
            continue
        last = merged[-1]
        strategies = dict.fromkeys(s for s in (last.strategy, turn.strategy) if s)
        merged[-1] = Turn(
            role=turn.role,
            text=f"{last.text} {turn.text}",
            strategy="; ".join(strategies) or None,
            feedback=turn.feedback if turn.feedback is not None else last.feedback,
        )
    return tuple(merged)
