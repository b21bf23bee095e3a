"""What others wrote, as data in a prompt: it cannot pass for the prompt's own lines, nor for a model's control tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from esupport.data.conversation import Conversation, Turn

# <|im_end|>, </s>, <start_of_turn>, [/INST]: a chat template would take them for its own; not <3; \uff5c is a wide bar
_CONTROL = re.compile(r"<(?=[/|\uff5cA-Za-z_])|\[(?=/?[A-Z_]+\])")

_SILENCE = "(no words)"


def quoted(text: str) -> str:
    """Each line of ``text`` behind a bar, as ``| text``: a prompt's own lines never begin so. Control tokens are broken."""
    lines = harmless(text).splitlines()  # at every character that any reader takes for a line break
    return "\n".join(f"| {line.strip()}".rstrip() for line in lines) or f"| {_SILENCE}"


def harmless(text: str) -> str:
    """``text`` with its control tokens broken by a space; lone surrogates become ``?``."""
    return _CONTROL.sub(r"\g<0> ", text.encode("utf-8", "replace").decode("utf-8"))


def spoken(turns: Iterable[Turn]) -> str:
    """The turns, quoted, a line each: no turn can pretend to be two."""
    return "\n".join(quoted(f"{turn.role.capitalize()}: {_one_line(turn.text) or _SILENCE}") for turn in turns)


def person(conversation: Conversation | None) -> str:
    """What the data tells of the seeker (profile, emotion, problem, situation), quoted, a line each; empty if nothing."""
    if conversation is None:
        return ""
    stated = {name: getattr(conversation, name) for name in ("emotion", "problem", "situation")}
    return _listed({**conversation.profile, **stated})


def profile(conversation: Conversation) -> str:
    """The profile alone, as :func:`person`: what tells people apart whom the same has happened to."""
    return _listed(conversation.profile)


def _listed(known: Mapping[str, str | None]) -> str:
    return "\n".join(quoted(_one_line(f"{name}: {text}")) for name, text in known.items() if text)


def _one_line(text: str) -> str:
    return " ".join(text.split())
