"""Records of a source, divided: on one shelf, with the numbers of those on each side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa

from esupport.data.conversation import Record
from esupport.data.division import Numbers
from esupport.data.files import SPLITS
from esupport.data.shelf import Shelf, View
from esupport.errors import DataFault
from esupport.store import Stage, write_atomically

T = TypeVar("T", bound=Record)

SHELF = "records.arrow"
SCHEMA = pa.schema([("record", pa.large_string()), ("where", pa.string())])


class Side(View[T]):
    """The records of one side.

    Attributes:
        key: tells the records by content.
        where: file and line of each.
    """

    def __init__(self, stage: Stage, name: str, kind: type[T]) -> None:
        numbers, path = np.load(stage.folder / f"{name}.npy", allow_pickle=False), stage.folder / SHELF
        super().__init__(Shelf(path, lambda batch: lambda i: kind.model_validate_json(batch["record"][i].as_py())), numbers)
        self.key = f"{stage.name}/{stage.key}/{name}"
        self.where = View(Shelf(path, lambda batch: lambda i: str(batch["where"][i])), numbers)


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


def save(folder: Path, sides: Mapping[str, Numbers], skipped: list[DataFault], duplicates: int) -> None:
    """Write beside the shelf which of its records stand on which side, and what was left out."""
    for name in SPLITS:
        np.save(folder / f"{name}.npy", sides[name], allow_pickle=False)
    left_out = {"skipped": [[fault.where, fault.field, fault.reason] for fault in skipped], "duplicates": duplicates}
    write_atomically(folder / "left_out.json", json.dumps(left_out, ensure_ascii=False) + "\n")


def load(stage: Stage, kind: type[T]) -> Splits[T]:
    """What a stage keeps: the shelf, and what :func:`save` wrote."""
    left_out = json.loads((stage.folder / "left_out.json").read_text(encoding="utf-8"))
    sides = {name: Side(stage, name, kind) for name in SPLITS}
    return Splits(**sides, skipped=[DataFault(*fault) for fault in left_out["skipped"]], duplicates=left_out["duplicates"])
