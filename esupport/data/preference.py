"""Preference pairs: a context, the chosen and the rejected completion, and where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from esupport.data.conversation import Conversation, Record, Turn
from esupport.store import read_lines

UNKNOWN = "unknown"


class Context(Record):
    """What stands before a reply: the only thing that the policy sees (P, C_n of the paper).

    ``turn`` is the reply's index in its conversation; ``turns`` are what was said before it, the oldest dropped where they did
    not fit, and end on the seeker. ``instruction`` is the conversation's own; ``None`` means the task instruction P of the run.
    """

    conversation: str
    turn: int = Field(ge=0)
    turns: tuple[Turn, ...] = Field(strict=False, min_length=1)
    instruction: str | None = None

    @field_validator("turns")
    @classmethod
    def _ends_on_seeker(cls, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        if turns[-1].role != "seeker":
            raise ValueError("a context ends on the seeker")
        return turns

    @property
    def key(self) -> str:
        """Conversation and turn: unique in a run."""
        return f"{self.conversation}/{self.turn}"

    def transcript(self) -> str:
        """The turns as plain text, a line each."""
        return "\n".join(f"{turn.role.capitalize()}: {turn.text}" for turn in self.turns)

    def answered(self, reply: str) -> Conversation:
        """The context with ``reply`` as its last turn."""
        turns = (*self.turns, Turn(role="supporter", text=reply))
        return Conversation(id=self.conversation, turns=turns, instruction=self.instruction)


class Finding(Record):
    """What was inferred on one axis: a short text, or ``unknown``, and the seeker's words that show it, if they were quoted."""

    text: str
    evidence: str = ""

    @property
    def known(self) -> bool:
        """Whether anything was inferred."""
        return self.text != UNKNOWN


class Refused(Record):
    """A refined reply that another attempt took the place of, and what was found against it, by filter."""

    text: str
    verdicts: dict[str, str]


class PreferencePair(Record):
    """A chosen and a rejected completion of one context.

    In a run of the method, ``rejected`` is the draft and ``chosen`` the refined reply; ``..._ended`` tells whether it came to
    an end of its own, or was cut at the longest length. ``reflection`` holds what was inferred,
    by axis. ``verdicts`` has an entry for each filter that judged the pair: empty where it passed, else the reason why it
    was dropped. ``generators`` and ``prompts`` name, by step (draft, reflect/<axis>, refine), who wrote and the hash of
    what was asked; ``seeds`` are those of the sampling. ``refused`` are earlier attempts at the refined reply.
    """

    context: Context
    chosen: str
    rejected: str
    chosen_ended: bool = True
    rejected_ended: bool = True
    chosen_from: Literal["refined", "human", "given"] = "given"
    round: int | None = None
    reflection: dict[str, Finding] = Field(default_factory=dict)
    verdicts: dict[str, str] = Field(default_factory=dict)
    generators: dict[str, str] = Field(default_factory=dict)
    prompts: dict[str, str] = Field(default_factory=dict)
    seeds: dict[str, int] = Field(default_factory=dict)
    refused: tuple[Refused, ...] = Field((), strict=False)

    @property
    def dropped(self) -> dict[str, str]:
        """The filters that dropped it, with their reasons; empty for a pair that is kept."""
        return {name: reason for name, reason in self.verdicts.items() if reason}


def read_pairs(path: Path) -> list[PreferencePair]:
    """The pairs of a file that a round wrote."""
    return [PreferencePair.model_validate(line) for line in read_lines(path)]
