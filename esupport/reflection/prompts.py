"""Prompts: sandboxed Jinja2 templates that see a context, what was inferred of it, and a draft."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from esupport.errors import UserError, first_line
from esupport.rendering.template import Message

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def check(key: str, source: str) -> None:
    """Raises ``UserError`` where ``source`` is no template; ``key`` names it."""
    try:
        _ENVIRONMENT.parse(source)
    except TemplateError as error:
        raise UserError(f"{key}: not a Jinja2 template: {first_line(error)}") from None


def render(key: str, source: str, variables: Mapping[str, Any]) -> str:
    """The template filled in, stripped. Raises ``UserError`` for a variable that is not there."""
    try:
        return str(_compiled(source).render(**variables)).strip()
    except Exception as error:  # a template can fail in any way; all of them are the user's to mend
        raise UserError(f"{key}: {first_line(error)} (there are {', '.join(sorted(variables))})") from None


def chat(principles: str, prompt: str) -> tuple[Message, ...]:
    """The principles I and a prompt as chat messages."""
    system: Sequence[Message] = [{"role": "system", "content": principles.strip()}] if principles.strip() else []
    return (*system, {"role": "user", "content": prompt})


@functools.cache
def _compiled(source: str) -> Any:
    return _ENVIRONMENT.from_string(source)
