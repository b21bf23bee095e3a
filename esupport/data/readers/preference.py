"""Preference pairs: the project's own record, and the forms that preference sets on the hub have.

``{prompt, chosen, rejected}`` with texts or with chat messages; where the prompt is not told apart, it is what the two
conversations share.
"""

from __future__ import annotations

from typing import Any

from esupport.data.conversation import Turn, content_hash, merge
from esupport.data.preference import Context, PreferencePair

_ROLES = {"user": "seeker", "human": "seeker", "assistant": "supporter", "gpt": "supporter"}


def parse(raw: Any, key: str | None) -> PreferencePair:
    """One pair. Raises ``ValueError`` (or pydantic's) for what is none."""
    if not isinstance(raw, dict):
        raise ValueError("not an object")
    if "context" in raw:
        return PreferencePair.model_validate(raw)
    for field in ("chosen", "rejected"):
        if field not in raw:
            raise ValueError(f"{field}: is missing; a pair has prompt, chosen and rejected, or context, chosen and rejected")
    chosen, rejected = _messages(raw["chosen"], "assistant"), _messages(raw["rejected"], "assistant")
    prompt = _messages(raw["prompt"], "user") if raw.get("prompt") else []
    if not prompt or len(chosen) > 1:
        shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), len(chosen) - 1)
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if len(chosen) != 1 or len(rejected) != 1:
        raise ValueError("chosen and rejected are to differ in one last reply")
    system = [content for role, content in prompt if role == "system"]
    turns = merge(Turn.model_validate({"role": _role(role), "text": text}) for role, text in prompt if role != "system")
    context = Context(
        conversation=content_hash(turns), turn=len(turns), turns=turns, instruction=" ".join(system) if system else ""
    )
    return PreferencePair(context=context, chosen=chosen[0][1].strip(), rejected=rejected[0][1].strip())


def _messages(said: Any, role: str) -> list[tuple[str, str]]:
    if isinstance(said, str):
        return [(role, said)]
    try:
        return [(str(message["role"]), str(message["content"])) for message in said]
    except (TypeError, KeyError):
        raise ValueError("neither a text nor a list of messages with role and content") from None


def _role(role: str) -> str:
    if role not in _ROLES:
        raise ValueError(f"role {role!r} is none of {', '.join(_ROLES)}")
    return _ROLES[role]
