"""What a scripted teacher answers in tests."""

from __future__ import annotations

import json
import re

from esupport.generators.protocol import Request


def reflect_and_refine(request: Request) -> str:
    """A finding for a question; for a refinement, a reply that depends on the draft, so that each pair is its own."""
    prompt = request.messages[-1]["content"]
    draft = re.search(r'wants to reply: "(.*)"', prompt)
    if draft is None:
        return "tired of the rain."
    return f"That sounds hard. Tell me more about it, would you? {len(draft[1])}"


def in_json(request: Request) -> str:
    """All findings at once, as a capable model gives them."""
    if "wants to reply" in request.messages[-1]["content"]:
        return reflect_and_refine(request)
    axes = {
        axis: {"text": f"{axis} of the rain", "evidence": "never said"} for axis in ("profile", "emotion", "situation", "need")
    }
    return f"Here it is: {json.dumps(axes)}"


def moody(request: Request) -> str:
    """Cannot be read in the first attempt (an even seed), can be in a later one, for half of the requests."""
    return "..." if request.seed % 2 else reflect_and_refine(request)


def leaking(request: Request) -> str:
    """Talks about the person in the first attempt, for half of the refinements."""
    reply = reflect_and_refine(request)
    return f"The seeker is sad. {reply}" if request.seed % 2 and request.begun == "Supporter:" else reply


_REFINED: set[tuple[str, int]] = set()


def falling_silent(request: Request) -> str:
    """Refines the first reply to a context, and none that is asked for in a later round."""
    draft = request.begun == "Supporter:"
    earlier = draft and any(id_ == request.id and seed != request.seed for id_, seed in _REFINED)
    _REFINED.add((request.id, request.seed))
    return "..." if earlier else reflect_and_refine(request)


def never(request: Request) -> str:
    """Never to be read."""
    return "..."


def first(request: Request) -> str:
    """A judge that always prefers what is shown first."""
    return "none" if "error" in request.begun else "1"
