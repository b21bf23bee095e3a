"""A source of conversations: read, check, and divide into train, valid and test by conversation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from pydantic import ValidationError

from esupport.data.conversation import Conversation, content_hash
from esupport.data.files import SPLITS, Raw, read_splits
from esupport.data.preference import PreferencePair
from esupport.data.readers import preference
from esupport.errors import DataFault, UserError

Parse = Callable[..., Conversation]
T = TypeVar("T")


@dataclass
class Splits:
    """Conversations by side.

    ``skipped`` holds the faults of records left out, ``duplicates`` counts copies left out,
    ``where`` tells file and line by conversation id.
    """

    train: list[Conversation] = field(default_factory=list)
    valid: list[Conversation] = field(default_factory=list)
    test: list[Conversation] = field(default_factory=list)
    skipped: list[DataFault] = field(default_factory=list)
    duplicates: int = 0
    where: dict[str, str] = field(default_factory=dict)

    def side(self, name: str) -> list[Conversation]:
        """The conversations of side ``name``, one of train, valid and test."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]


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

    def read_pairs(self, key: str) -> tuple[list[PreferencePair], list[PreferencePair], list[DataFault]]:
        """Preference pairs to train on and held out, and the faults of those left out.

        Published sides are taken as they come; else the share ``fractions['valid']`` is held out, by conversation.
        """
        sides: dict[str, list[PreferencePair]] = {name: [] for name in (*SPLITS, "all")}
        skipped: list[DataFault] = []
        for side, raws in read_splits(str(self.pairs), f"{key}.pairs").items():
            for raw in raws:
                try:
                    sides[side].append(_checked(preference.parse, raw))
                except DataFault as fault:
                    if self.on_error == "stop":
                        raise
                    skipped.append(fault)
        train, valid = sides["train"], sides["valid"] or sides["test"]
        rest = sides["all"] if not train else []
        names = sorted({pair.context.conversation for pair in rest}, key=lambda name: _rank(self.seed, name))
        share = self.fractions.get("valid", 0.0) * len(names)
        held_out = set(names[: max(round(share), min(1, len(names) - 1)) if share else 0])
        train = train + [pair for pair in rest if pair.context.conversation not in held_out]
        valid = valid + [pair for pair in rest if pair.context.conversation in held_out]
        if not train:
            raise UserError(f"{key}.pairs: no pair could be read from {self.pairs}")
        return train[: self.limit], valid[: self.limit], skipped

    def read(self, key: str) -> Splits:
        """All conversations, divided; ``key`` names the source in messages.

        Raises ``DataFault`` at the first fault unless faults are skipped.
        """
        published = read_splits(self.path, f"{key}.path")
        if self.split == "published" and "all" in published:
            raise UserError(f"{key}.split: {self.path} has no published split; use {key}.split=seed")
        splits = Splits()
        found = {name: list(self._conversations(raws, splits)) for name, raws in published.items()}
        if self.split == "seed" or "all" in found:
            found = draw([c for side in found.values() for c in side], self.fractions, self.seed)
        # test first: of two copies the one that is kept is the one held out
        seen: set[str] = set()
        for side in reversed(SPLITS):
            kept = splits.side(side)
            for conversation in found.get(side, []):
                content = content_hash(conversation.turns)
                if content in seen:
                    splits.duplicates += 1
                elif self.limit is None or len(kept) < self.limit:
                    seen.add(content)
                    kept.append(conversation)
        _refuse_straddling_groups(splits, key)
        if not splits.train and not splits.valid and not splits.test:
            raise UserError(f"{key}.path: no conversation could be read from {self.path}")
        return splits

    def _conversations(self, raws: Iterator[Raw], splits: Splits) -> Iterator[Conversation]:
        for raw in raws:
            try:
                conversation = _checked(self.parse, raw)
                splits.where[conversation.id] = raw.where
                yield conversation
            except DataFault as fault:
                if self.on_error == "stop":
                    raise
                splits.skipped.append(fault)


def _checked(parse: Callable[..., T], raw: Raw) -> T:
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


def draw(conversations: list[Conversation], fractions: Mapping[str, float], seed: int) -> dict[str, list[Conversation]]:
    """Divide by ``fractions``, a pure function of the seed and of what was said: the order of the file does not matter.

    Conversations of one group, and copies of one conversation, go to one side together.
    """
    units: dict[str, list[Conversation]] = {}
    for conversation in conversations:
        units.setdefault(conversation.group or content_hash(conversation.turns), []).append(conversation)

    drawn: dict[str, list[Conversation]] = {side: [] for side in SPLITS}
    placed, total, bound = 0, len(conversations), 0.0
    queue = sorted(units, key=lambda unit: _rank(seed, unit))
    for side in SPLITS:
        bound += fractions.get(side, 0.0)
        # a unit goes to a side while the side's share is not reached at its middle
        while queue and placed + len(units[queue[0]]) / 2 <= round(bound * total):
            unit = units[queue.pop(0)]
            drawn[side].extend(unit)
            placed += len(unit)
    return drawn


def _rank(seed: int, unit: str) -> bytes:
    return hashlib.sha256(f"{seed}/{unit}".encode()).digest()


def _refuse_straddling_groups(splits: Splits, key: str) -> None:
    sides: dict[str, str] = {}
    for side in SPLITS:
        for conversation in splits.side(side):
            if conversation.group and sides.setdefault(conversation.group, side) != side:
                raise UserError(f"{key}: group {conversation.group} is on two sides: {sides[conversation.group]} and {side}")
