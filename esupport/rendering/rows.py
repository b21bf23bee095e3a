"""Many rows: in memory or on a shelf, with what is known of all of them without reading one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from esupport.data.shelf import Lazy
from esupport.rendering.row import Floats, Row

Part = TypeVar("Part")
WINDOW = 256  # rows that are in memory at once where all are gone through

_ARRAYS = ("ids", "positions", "branch", "sees", "targets", "parents", "response")
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        *((name, pa.list_(pa.int32())) for name in _ARRAYS),
        ("responses", pa.int32()),
        ("branches", pa.int32()),
    ]
)


class Rows(Lazy[Row]):
    """Rows in order.

    Args:
        rows: the rows themselves.
        responses: (rows,) how many responses each has.
        digest: of all rows, as :func:`rows_digest` tells it.
        reference: (responses,) for each row, the log-probabilities that take the place of its own; None leaves them.
    """

    def __init__(
        self, rows: Sequence[Row], responses: NDArray[np.int64], digest: str, reference: Sequence[Floats] | None = None
    ) -> None:
        self._rows, self.responses, self.digest, self._reference = rows, responses, digest, reference

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Rows:
        """Rows that are in memory."""
        return cls(rows, np.array([row.responses for row in rows], dtype=np.int64), rows_digest(rows))

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, index: int) -> Row:
        """The row ``index``."""
        row = self._rows[index]
        return row if self._reference is None else replace(row, reference=self._reference[index])

    def scored(self, scores: Sequence[Floats]) -> Rows:
        """The same rows with their reference's scores, (responses,) for each row."""
        return Rows(self._rows, self.responses, self.digest, scores)


class Parts(Lazy[Part]):
    """``items`` in parts, as the rows of each conversation: ``starts`` tells where each begins and, last, how many."""

    def __init__(self, items: Any, starts: NDArray[np.int64]) -> None:
        self._items, self._starts = items, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def at(self, index: int) -> Part:
        """The part ``index``: a slice of the items."""
        first, end = self._starts[index : index + 2].tolist()
        part: Part = self._items[first:end]
        return part


def content(row: Row) -> bytes:
    """What is read of a row, and what of it is scored."""
    return b"".join(getattr(row, name).tobytes() + b"|" for name in _ARRAYS)


def rows_digest(rows: Iterable[Row]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the token rows: what is read, and what of it is scored."""
    whole = hashlib.sha256()
    for row in rows:
        whole.update(content(row))
    return whole.hexdigest()[:16]


def record(row: Row) -> dict[str, Any]:
    """A row as the columns of :data:`SCHEMA`; its reference is not kept."""
    return {name: getattr(row, name) for name in SCHEMA.names}


def reader(batch: pa.RecordBatch) -> Callable[[int], Row]:
    """Makes the rows of a batch, whose arrays are views of it."""
    names = batch.column("name")
    numbers = [batch.column(name).to_numpy() for name in ("responses", "branches")]
    arrays = {name: (batch.column(name).values.to_numpy(), batch.column(name).offsets.to_numpy()) for name in _ARRAYS}

    def read(index: int) -> Row:
        cut = {name: values[ends[index] : ends[index + 1]] for name, (values, ends) in arrays.items()}
        responses, branches = (int(values[index]) for values in numbers)
        unknown = np.full(responses, np.nan, dtype=np.float32)
        return Row(name=names[index].as_py(), **cut, responses=responses, branches=branches, reference=unknown)

    return read
