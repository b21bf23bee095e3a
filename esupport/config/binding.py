"""Nodes of other libraries are bound to the signature of what they name, after import and before any weights load."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

from hydra.utils import get_object
from pydantic import ConfigDict, TypeAdapter, ValidationError

from esupport.config.check import nearest
from esupport.errors import UserError, first_line

_HYDRA = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}


def bind(plain: Any, key: str = "") -> None:
    """Check every ``_target_`` node below ``plain``: the object exists and takes the node's keys with such values.

    Raises:
        UserError: with the node's key, and the nearest parameter for an unknown one.
    """
    if isinstance(plain, list):
        for index, item in enumerate(plain):
            bind(item, f"{key}.{index}")
    if not isinstance(plain, dict):
        return
    if "_target_" in plain:
        _bind_one(plain, key)
    for name, value in plain.items():
        bind(value, f"{key}.{name}".lstrip("."))


def _bind_one(node: dict[str, Any], key: str) -> None:
    try:
        target = get_object(node["_target_"])
    except Exception as error:  # an import can fail in any way; all of them mean that the node cannot be made
        reason = first_line(error.__cause__ or error)
        raise UserError(f"{key}._target_: cannot import {node['_target_']}: {reason}") from None
    parameters = _parameters(target)
    given = {name: value for name, value in node.items() if name not in _HYDRA}
    if parameters is None:
        return
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, value in given.items():
        if name in parameters:
            _check_type(target, name, value, f"{key}.{name}")
        elif not takes_any:
            raise UserError(f"{key}.{name}: {node['_target_']} takes no such key{nearest(name, list(parameters))}")
    needed = [n for n, p in parameters.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    lacking = [name for name in needed if name not in given]
    if lacking and not node.get("_partial_") and not node.get("_args_"):
        raise UserError(f"{key}.{lacking[0]}: {node['_target_']} needs this key")


def _parameters(target: Any) -> dict[str, inspect.Parameter] | None:
    """Parameters by name; of a pydantic model its fields; None where they cannot be told."""
    try:
        return dict(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return None


def _check_type(target: Any, name: str, value: Any, key: str) -> None:
    """Check a plain value against the parameter's annotation, where pydantic understands it."""
    if isinstance(value, dict | list):
        return
    try:
        function = target.__init__ if inspect.isclass(target) else target
        hint = get_type_hints(inspect.unwrap(function)).get(name, Any)
        adapter: TypeAdapter[Any] = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except Exception:  # an annotation that cannot be evaluated says nothing about the value
        return
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise UserError(f"{key}: {message[0].lower()}{message[1:]} (given: {value!r})") from None
