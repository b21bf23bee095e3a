"""What a system replied to a context of the data, and what the human replied there: what all figures are counted on."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from esupport.data.preference import Context


class Answered(BaseModel):
    """A reply, one line of ``replies.jsonl``.

    Attributes:
        system: whose reply it is, as ``M1`` or ``human``.
        context: what was said before.
        reply: the system's reply; empty where it gave none.
        human: what the supporter of the data said there.
        tokens: of the reply; None where they are not known.
        finished: whether the reply came to its end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    context: Context
    reply: str
    human: str
    tokens: int | None = None
    finished: bool = True
