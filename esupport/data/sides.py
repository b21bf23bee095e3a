"""Records of a source, divided: on one shelf, with the numbers of those on each side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from esupport.data.conversation import Conversation, Record
from esupport.data.division import Numbers
from esupport.data.files import SPLITS
from esupport.data.shelf import Shelf, View
from esupport.errors import DataFault
from esupport.store import Stage, write_atomically, write_json

T = TypeVar("T", bound=Record)

SHELF, CONTENTS = "records.arrow", "contents.npy"
LEARNT_FROM = "learnt_from.txt"  # in a run's folder
SCHEMA = pa.schema([("record", pa.large_string()), ("where", pa.string())])


class Side(View[T]):
    """The records of one side.

    Attributes:
        stage: that keeps them.
        key: tells the records by content.
        where: file and line of each.
    """

    def __init__(self, stage: Stage, name: str, kind: type[T]) -> None:
        numbers, path = np.load(stage.folder / f"{name}.npy", allow_pickle=False), stage.folder / SHELF
        super().__init__(Shelf(path, lambda batch: lambda i: kind.model_validate_json(batch["record"][i].as_py())), numbers)
        self.stage = stage
        self.key = f"{stage.name}/{stage.key}/{name}"
        self.where = View(Shelf(path, lambda batch: lambda i: str(batch["where"][i])), numbers)

    @property
    def contents(self) -> list[str]:
        """:func:`esupport.data.conversation.content_hash` of each conversation; none is read for it."""
        return [
            f"{content:016x}" for content in np.load(self.stage.folder / CONTENTS, allow_pickle=False)[self._numbers].tolist()
        ]


@dataclass(frozen=True)
class Splits(Generic[T]):
    """Records by side; ``skipped`` holds the faults of those left out, ``duplicates`` counts copies left out."""

    train: Side[T]
    valid: Side[T]
    test: Side[T]
    skipped: list[DataFault]
    duplicates: int

    def side(self, name: str) -> Side[T]:
        """The records of side ``name``, one of train, valid and test."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]


def save(
    folder: Path, sides: Mapping[str, Numbers], contents: NDArray[np.uint64] | None, skipped: list[DataFault], duplicates: int
) -> None:
    """Write beside the shelf which of its records stand on which side, conversations' contents, and what was left out."""
    for name in SPLITS:
        np.save(folder / f"{name}.npy", sides[name], allow_pickle=False)
    if contents is not None:
        np.save(folder / CONTENTS, contents, allow_pickle=False)
    left_out = {"skipped": [[fault.where, fault.field, fault.reason] for fault in skipped], "duplicates": duplicates}
    write_json(folder / "left_out.json", left_out)


def write_learnt_from(folder: Path, side: Side[Conversation] | None, *origins: str | None) -> None:
    """Leave in a run's folder the contents of what it learns from, so that none of it is measured as if it were unseen.

    Args:
        folder: the run's.
        side: conversations that it learns from itself; None for none.
        origins: what it goes on from (an adapter, pairs, a checkpoint): what those learnt from is told too.
    """
    own = side.contents if side is not None else ()
    learnt = {*own}.union(*(learnt_around(Path(origin)) for origin in origins if origin))
    write_atomically(folder / LEARNT_FROM, "".join(f"{content}\n" for content in sorted(learnt)))


def learnt_around(path: Path) -> set[str]:
    """Contents that a run learnt from, as told in the folders around a file or folder that it left; empty where nothing is."""
    places = (path.expanduser().absolute(), path.expanduser().resolve())  # where a link stands, and where it leads
    told = {run / LEARNT_FROM for place in places for run in place.parents[:2]}
    return {content for file in told if file.is_file() for content in file.read_text(encoding="utf-8").split()}


def load(stage: Stage, kind: type[T]) -> Splits[T]:
    """What a stage keeps: the shelf, and what :func:`save` wrote."""
    left_out = json.loads((stage.folder / "left_out.json").read_text(encoding="utf-8"))
    sides = {name: Side(stage, name, kind) for name in SPLITS}
    return Splits(**sides, skipped=[DataFault(*fault) for fault in left_out["skipped"]], duplicates=left_out["duplicates"])
