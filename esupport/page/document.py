"""How a page is made of a folder's files: the files as they are read, the templates' environment, the page as it is written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from esupport import store
from esupport.errors import UserError

NONE = "n/a"  # stands for a figure that was not measured
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a model wrote must not steer a terminal, and is no part of a page


def environment(templates: Path) -> Environment:
    """Templates of a folder, over those of this one. Everything is escaped: the texts come from models and people."""
    made = Environment(
        loader=FileSystemLoader([templates, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["figure"] = _figure
    made.filters["percent"] = lambda share: NONE if share is None else f"{100 * share:.0f} %"
    return made


def save(html: str, target: Path) -> Path:
    """Write a page; control characters become spaces. The same text gives the same bytes on every system."""
    target.write_text(CONTROL.sub(" ", html), encoding="utf-8", errors="replace", newline="\n")
    return target


def missing(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of the names that are not in the folder."""
    return [name for name in names if not (folder / name).exists()]


def metrics_of(folder: Path) -> Any:
    """What a folder's ``metrics.json`` holds. Raises ``UserError`` where there is none."""
    found = read_json(folder / "metrics.json")
    if found is None:
        raise UserError(f"{folder}: no metrics.json, so there is nothing to report")
    return found


def settings_of(folder: Path) -> str | None:
    """A folder's ``config.yaml`` as it is, unresolved: nothing of this machine is in it; None if there is no file."""
    path = folder / "config.yaml"
    return path.read_text(encoding="utf-8") if path.exists() else None


def read_json(path: Path) -> Any:
    """What a file holds; None if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def read_lines(path: Path) -> list[dict[str, Any]] | None:
    """The objects of a file that has one a line; None if there is no file."""
    return store.read_lines(path) if path.exists() else None


def _figure(value: Any) -> str:
    """A figure for reading: four digits, thousands apart."""
    if value is None or value != value:  # not a number
        return NONE
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) or value.is_integer() else f"{value:.4g}"
