"""Records of one Arrow file: written as they come, read one by one, so that no more than a few are ever in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

T = TypeVar("T", covariant=True)

RECORDS = 32  # in a batch, which is what a read brings into memory


class Lazy(Sequence[T], ABC):
    """A sequence whose items are made when they are asked for; a slice is a list."""

    @abstractmethod
    def at(self, index: int) -> T:
        """The item ``index``, from 0 to the length."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        found = range(len(self))[index]  # counts from the end, and refuses what lies beyond it
        return self.at(found) if isinstance(found, int) else [self.at(i) for i in found]


class Shelf(Lazy[T]):
    """The records of a file that :func:`write` wrote.

    The file is read, not mapped: pages of a map that were read once would count as the process's memory.

    Args:
        path: of the file.
        reader: makes of a batch what makes the batch's i-th record.
    """

    def __init__(self, path: Path, reader: Callable[[pa.RecordBatch], Callable[[int], T]]) -> None:
        self._file, self._reader = pa.ipc.open_file(pa.OSFile(str(path))), reader
        last = self._file.num_record_batches - 1
        self._length = RECORDS * last + self._file.get_batch(last).num_rows if last >= 0 else 0
        self._open: tuple[int, Callable[[int], T]] | None = None  # neighbours are mostly read together

    def __len__(self) -> int:
        return self._length

    def at(self, index: int) -> T:
        """The record ``index``."""
        number, within = divmod(index, RECORDS)
        if self._open is None or self._open[0] != number:
            self._open = number, self._reader(self._file.get_batch(number))
        return self._open[1](within)


class View(Lazy[T]):
    """Some of ``items``, by their ``numbers``, (n,) int64."""

    def __init__(self, items: Sequence[T], numbers: NDArray[np.int64]) -> None:
        self._items, self._numbers = items, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def at(self, index: int) -> T:
        """The item whose number stands at ``index``."""
        return self._items[int(self._numbers[index])]


def write(path: Path, schema: pa.Schema, records: Iterable[Mapping[str, Any]]) -> None:
    """Write ``records``, a batch at a time, with the columns of ``schema``."""
    left = iter(records)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as out:
        while some := list(islice(left, RECORDS)):
            out.write_batch(pa.RecordBatch.from_pylist(some, schema))
