"""How a page is made of a folder's files: the files as they are read, the templates' environment, the page as it is written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def environment(templates: Path, none: str) -> Environment:
    """Templates of a folder, over those of this one. Everything is escaped: the texts come from models and people.

    Args:
        templates: the folder of the page's own templates.
        none: stands for a figure that was not measured.
    """
    made = Environment(
        loader=FileSystemLoader([templates, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["figure"] = lambda value: _figure(value, none)
    made.filters["percent"] = lambda share: none if share is None else f"{100 * share:.0f} %"
    return made


def save(html: str, target: Path, control: re.Pattern[str]) -> Path:
    """Write a page; characters that match ``control`` become spaces. The same text gives the same bytes on every system."""
    target.write_text(control.sub(" ", html), encoding="utf-8", errors="replace", newline="\n")
    return target


def missing(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of the names that are not in the folder."""
    return [name for name in names if not (folder / name).exists()]


def read_json(path: Path) -> Any:
    """What a file holds; None if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def texts(path: Path) -> list[str] | None:
    """The lines of a file that are not blank; None if there is no file."""
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()] if path.exists() else None


def read_lines(path: Path) -> list[dict[str, Any]] | None:
    """The objects of a file that has one a line; None if there is no file."""
    found = texts(path)
    return None if found is None else [json.loads(text) for text in found]


def _figure(value: Any, none: str) -> str:
    """A figure for reading: four digits, thousands apart."""
    if value is None or value != value:  # not a number
        return none
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) or value.is_integer() else f"{value:.4g}"
