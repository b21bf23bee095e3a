"""A source of conversations: read, check, and divide into train, valid and test by conversation."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from esupport.data.conversation import Conversation, Record
from esupport.data.division import Entries, Pairs, draw
from esupport.data.files import Part, Raw, read_splits
from esupport.data.preference import PreferencePair
from esupport.data.readers import preference
from esupport.data.shelf import write
from esupport.data.sides import SCHEMA, SHELF, Splits, load, save
from esupport.errors import DataFault, UserError
from esupport.store import Store

Parse = Callable[..., Conversation]
T = TypeVar("T", bound=Record)

_FORMAT = 3  # of what is kept: another number has all sources read anew


@dataclass(frozen=True)
class Source:
    """Where conversations come from and how they are divided.

    Args:
        path: a file, a folder with train, valid and test files, ``pkg://package/folder``, or the id of a data set on the hub.
        parse: the reader of the source's form (:mod:`esupport.data.readers`).
        split: ``published`` takes the sides as they come, ``seed`` draws them, ``auto`` takes published ones if there are.
        fractions: share of the conversations on each side when drawn; what is left of 1 goes unused.
        seed: seed of the draw.
        on_error: ``stop`` at the first fault, or ``skip`` and count.
        limit: at most so many conversations a side, for a quick look.
        pairs: where preference pairs come from, in the same ways as ``path``; None where there are none.
    """

    path: str
    parse: Parse
    split: Literal["auto", "published", "seed"]
    fractions: Mapping[str, float]
    seed: int
    on_error: Literal["stop", "skip"]
    limit: int | None
    pairs: str | None

    def read(self, key: str, store: Store, instruction: str | None = None) -> Splits[Conversation]:
        """All conversations, divided; a stage of ``store``, so that what was read once is not parsed again.

        Args:
            key: names the source in messages.
            store: where they are kept.
            instruction: for conversations that have none of their own; None leaves them to the task instruction P.

        Raises:
            DataFault: at the first fault, unless faults are skipped.
            UserError: there is nothing to read, or it cannot be divided as asked.
        """
        published = read_splits(self.path, f"{key}.path")
        if self.split == "published" and "all" in published:
            raise UserError(f"{key}.split: {self.path} has no published split; use {key}.split=seed")

        def parse(raw: Any, name: str | None) -> Conversation:
            read = self.parse(raw, name)
            own = read.instruction is not None or instruction is None
            return read if own else read.model_copy(update={"instruction": instruction})

        def make(folder: Path) -> None:
            entries, skipped = Entries(), list[DataFault]()
            write(folder / SHELF, SCHEMA, self._records(published, parse, entries.add, skipped))
            found: Mapping[str, Sequence[int]] = entries.published
            if self.split == "seed" or "all" in found:
                found = draw(entries.units(), self.fractions, self.seed)
            sides, duplicates = entries.kept(found, self.limit)
            entries.refuse_straddling_groups(sides, key)
            if not any(map(len, sides.values())):
                raise UserError(f"{key}.path: no conversation could be read from {self.path}")
            save(folder, sides, entries.contents, skipped, duplicates)

        inputs = {"parse": _told(self.parse), "split": self.split, "instruction": instruction}
        return load(store.stage("conversations", inputs | self._inputs(published, store), make), Conversation)

    def read_pairs(self, key: str, store: Store) -> Splits[PreferencePair]:
        """Preference pairs to train on and held out (``valid``), those of one conversation together; kept in ``store``.

        Published sides are taken as they come; else the share ``fractions['valid']`` is held out, by conversation.
        """
        published = read_splits(str(self.pairs), f"{key}.pairs")

        def make(folder: Path) -> None:
            pairs, skipped = Pairs(), list[DataFault]()
            write(folder / SHELF, SCHEMA, self._records(published, preference.parse, pairs.add, skipped))
            sides = pairs.divided(self.fractions.get("valid", 0.0), self.seed, self.limit)
            if not len(sides["train"]):
                raise UserError(f"{key}.pairs: no pair could be read from {self.pairs}")
            save(folder, sides, None, skipped, 0)

        return load(store.stage("preferences", self._inputs(published, store), make), PreferencePair)

    def _inputs(self, published: Mapping[str, Part], store: Store) -> dict[str, Any]:
        """What decides the records and their sides, besides the reader."""
        return {
            "format": _FORMAT,
            "parts": {side: [part.name, part.digest(store)] for side, part in published.items()},
            "fractions": dict(self.fractions),
            "seed": self.seed,
            "on_error": self.on_error,
            "limit": self.limit,
        }

    def _records(
        self, published: Mapping[str, Part], parse: Callable[..., T], note: Callable[[str, T], None], skipped: list[DataFault]
    ) -> Iterator[dict[str, str]]:
        """What goes on the shelf; ``note`` is told each record and the side that it was read from."""
        for side, part in published.items():
            for raw in part:
                try:
                    record = checked(parse, raw)
                except DataFault as fault:
                    if self.on_error == "stop":
                        raise
                    skipped.append(fault)
                    continue
                note(side, record)
                yield {"record": record.model_dump_json(exclude_defaults=True), "where": raw.where}


def checked(parse: Callable[..., T], raw: Raw) -> T:
    """What ``parse`` makes of a raw record; what it refuses is a ``DataFault`` that names file, line and field."""
    if isinstance(raw.value, DataFault):
        raise raw.value
    try:
        return parse(raw.value, raw.key)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataFault(raw.where, ".".join(map(str, first["loc"])), first["msg"]) from None
    except json.JSONDecodeError as error:
        raise DataFault(raw.where, "text", f"not JSON: {error.msg}") from None
    except ValueError as error:
        raise DataFault(raw.where, "", str(error)) from None


def _told(parse: Parse) -> dict[str, Any]:
    """What decides how a reader reads: its name, its settings, and the file it is written in, which a user may edit."""
    function = getattr(parse, "func", parse)  # of a partial
    written = inspect.getsourcefile(function)
    return {
        "name": f"{function.__module__}.{function.__qualname__}",
        "settings": getattr(parse, "keywords", {}),
        "source": hashlib.sha256(Path(written).read_bytes()).hexdigest()[:16] if written else None,
    }
