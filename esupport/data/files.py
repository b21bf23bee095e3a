"""Raw records from a local file, a folder of splits or a data set on the hub, each with the place it stands at."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from esupport.errors import DataFault, UserError, first_line
from esupport.store import Store

SPLITS = ("train", "valid", "test")
_ALIASES = {  # what published splits are called; of preference sets that hold others beside, ..._prefs
    "train": ("train_prefs", "train"),
    "valid": ("valid", "validation", "dev", "val"),
    "test": ("test_prefs", "test"),
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PACKAGE = "pkg://"
_BEFORE_ITEM = re.compile(r"[\s,]*")
_BEFORE_VALUE = re.compile(r'[\s,]*("(?:[^"\\]|\\.)*")\s*:\s*')


class Raw(NamedTuple):
    """A raw record: ``where`` names file and line, ``key`` is its name where the file is an object, ``value`` its JSON."""

    where: str
    key: str | None
    value: Any


@dataclass(frozen=True)
class Part:
    """The raw records of one split, read anew, one by one, whenever they are iterated over.

    Attributes:
        name: of the file, or of the split of a data set, as it stands in the records' places.
        digest: tells the content without reading the records.
        read: reads them.
    """

    name: str
    digest: Callable[[Store], str]
    read: Callable[[], Iterator[Raw]]

    def __iter__(self) -> Iterator[Raw]:
        return self.read()


def locate(path: str, key: str) -> Path | None:
    """The local file or folder that ``path`` names, or None where it is an id on the hub. ``pkg://`` is inside a package.

    Raises ``UserError``, which names ``key``, where it is neither.
    """
    if path.startswith(_PACKAGE):
        package, _, rest = path.removeprefix(_PACKAGE).partition("/")
        try:
            found = Path(str(files(package) / rest))
        except ModuleNotFoundError:
            raise UserError(f"{key}: no such package: {package}") from None
        if not found.exists():
            raise UserError(f"{key}: no such file or folder in package {package}: {rest}")
        return found
    local = Path(path).expanduser()
    if local.exists():
        return local
    if _HUB_ID.fullmatch(path) and local.suffix not in (".json", ".jsonl"):
        return None
    raise UserError(f"{key}: no such file or folder: {path}")


def read_splits(path: str, key: str) -> dict[str, Part]:
    """Raw records by published split; a single file is the one split ``all``. ``key`` names the source in messages."""
    local = locate(path, key)
    if local is None:
        return _hub_splits(path, key)
    if local.is_file():
        return {"all": _file(local)}
    found = {
        split: _file(candidate)
        for split in SPLITS
        for alias in _ALIASES[split]
        for candidate in (local / f"{alias}.jsonl", local / f"{alias}.json")
        if candidate.is_file()
    }
    if not found:
        raise UserError(f"{key}: {path} holds none of train, valid, test with .jsonl or .json")
    return found


def _file(path: Path) -> Part:
    return Part(path.name, lambda store: store.digest(path), partial(read_file, path))


def read_file(path: Path) -> Iterator[Raw]:
    """Records of a JSONL file, a line at a time, or of a JSON file that is one array or one object of id to record."""
    if path.suffix == ".json":
        yield from _read_json(path.name, "".join(_lines(path)))
        return
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            where = f"{path.name}:{number}"
            try:
                yield Raw(where, None, json.loads(line.removesuffix("\n")))
            except json.JSONDecodeError as error:
                yield Raw(where, None, DataFault(where, "", f"not JSON: {error.msg} at column {error.colno}"))


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file, which may end in any of the three ways; each ends with a line feed here."""
    read = 0
    with path.open("rb") as file:
        for line in file:
            try:
                yield from io.StringIO(line.decode("utf-8"), newline=None)
            except UnicodeDecodeError as error:
                raise DataFault(path.name, "", f"not UTF-8 at byte {read + error.start}") from None
            read += len(line)


def _read_json(name: str, text: str) -> Iterator[Raw]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataFault(f"{name}:{error.lineno}", "", f"not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(document, list | dict):
        raise DataFault(name, "", "neither an array of records nor an object of id to record")
    gap = _BEFORE_VALUE if isinstance(document, dict) else _BEFORE_ITEM
    position = 1 + len(text) - len(text.lstrip())  # behind the opening bracket
    line = 1 + text.count("\n", 0, position)
    decoder = json.JSONDecoder()
    while (before := gap.match(text, position)) and text[before.end()] not in "]}":
        line += text.count("\n", position, before.end())
        value, position = decoder.raw_decode(text, before.end())
        yield Raw(f"{name}:{line}", json.loads(before[1]) if before.groups() else None, value)
        line += text.count("\n", before.end(), position)


def _hub_splits(name: str, key: str) -> dict[str, Part]:
    from datasets import load_dataset

    try:
        loaded = load_dataset(name)
    except Exception as error:  # the hub client raises many kinds; all mean that the data cannot be had
        raise UserError(f"{key}: cannot load {name} from the hub: {first_line(error)}") from error

    def rows(split: str) -> Iterator[Raw]:
        for index, row in enumerate(loaded[split]):
            yield Raw(f"{name}/{split}:{index}", None, row)

    def part(split: str) -> Part:
        return Part(f"{name}/{split}", lambda _: str(loaded[split]._fingerprint), partial(rows, split))

    found = {split: part(alias) for split in SPLITS for alias in _ALIASES[split] if alias in loaded}
    if not found:
        raise UserError(f"{key}: {name} has none of the splits train, validation, test")
    return found if len(found) > 1 else {"all": next(iter(found.values()))}
