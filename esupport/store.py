"""A content-addressed store of what stages make: the same inputs are never worked on twice, and a killed stage goes on.

    <root>/<stage>/<key>/          finished: its files, and stage.json, which tells what it was made from
    <root>/<stage>/.<key>.partial  being made; what is in it is what a stopped stage goes on from
    <root>/<stage>/.<key>.lock     held by the process that makes it
    <root>/<stage>/.replies/       of servers, one by one (:mod:`esupport.generators.stored`)
    <root>/.digests/               of large files, so that they need not be read at each start

``key`` is a hash of the inputs: the settings that matter, and the keys or contents of what came before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel

from esupport.errors import UserError

_MANIFEST = "stage.json"
_LARGE, _SETTLED = 1 << 20, 2.0  # bytes from which a file's digest is kept, once the file has rested for so many seconds


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        name: of the stage.
        key: hash of its inputs.
        folder: where its files are.
        inputs: what it was made from.
        files: SHA-256 of each file, by its path in the folder.
        seconds: what making it took, in the attempt that ended it.
        reused: whether it was there already.
    """

    name: str
    key: str
    folder: Path
    inputs: dict[str, Any]
    files: dict[str, str]
    seconds: float
    reused: bool


class Store:
    """Stages by name and inputs below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def stage(self, name: str, inputs: dict[str, Any], make: Callable[[Path], None]) -> Stage:
        """The stage ``name`` of ``inputs``, made by ``make`` unless it is there.

        ``make`` gets a folder that holds what an earlier, stopped attempt left in it; when it returns, the folder is
        the stage. Names that begin with a dot are scratch and do not become part of it.

        Raises:
            UserError: a finished stage has lost files or was altered.
        """
        key = key_of(inputs)
        folder, partial = self.root / name / key, self.root / name / f".{key}.partial"
        partial.parent.mkdir(parents=True, exist_ok=True)
        with self._alone(name, key):
            if folder.exists():
                return self._read(name, key, folder)
            partial.mkdir(exist_ok=True)
            (partial / _MANIFEST).unlink(missing_ok=True)  # of an attempt that was killed in its last moment
            started = time.perf_counter()
            make(partial)
            seconds = round(time.perf_counter() - started, 3)
            files = {name: _sha256(partial / name) for name in _lasting(partial)}
            manifest = {"stage": name, "key": key, "inputs": inputs, "files": files, "seconds": seconds}
            write_json(partial / _MANIFEST, manifest)
            partial.rename(folder)
            for name_, sha in files.items():
                self._note(folder / name_, sha)
            # only now: a kill before leaves all that the next attempt goes on from
            for scratch in list(folder.rglob(".*")):
                shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink(missing_ok=True)
        return Stage(name, key, folder, inputs, files, seconds, reused=False)

    def has(self, name: str, inputs: dict[str, Any]) -> bool:
        """Whether the stage ``name`` of ``inputs`` is finished."""
        return (self.root / name / key_of(inputs)).exists()

    def digest(self, path: Path) -> str:
        """SHA-256 of a file; a large one is read once, and again only when it was replaced, or changed in size or time."""
        found = path.stat()
        if found.st_size < _LARGE:
            return _sha256(path)
        kept = self._kept(path)
        if kept.exists():
            return kept.read_text()
        sha = _sha256(path)
        # what was written just now may be written again within one tick of the clock
        if time.time() - found.st_mtime >= _SETTLED:
            self._note(path, sha)
        return sha

    def _kept(self, path: Path) -> Path:
        """Where the digest of a file as it is now is kept."""
        found = path.stat()
        state = f"{path.name}/{found.st_dev}/{found.st_ino}/{found.st_size}/{found.st_mtime_ns}"
        return self.root / ".digests" / hashlib.sha256(state.encode()).hexdigest()[:16]

    def _note(self, path: Path, sha: str) -> None:
        """Keep the digest of a large file."""
        if path.stat().st_size >= _LARGE:
            kept = self._kept(path)
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, sha)

    def _read(self, name: str, key: str, folder: Path) -> Stage:
        try:
            manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            stage = Stage(name, key, folder, manifest["inputs"], manifest["files"], manifest["seconds"], reused=True)
            wrong = [file for file, sha in stage.files.items() if self.digest(folder / file) != sha]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"paths.store: {folder} is damaged ({error}); remove it to have it made anew") from None
        if wrong:
            raise UserError(f"paths.store: {folder} was altered ({wrong[0]}); remove it to have it made anew")
        return stage

    def _alone(self, name: str, key: str) -> FileLock:
        lock = FileLock(self.root / name / f".{key}.lock")
        try:
            lock.acquire(timeout=0)
            lock.release()
        except Timeout:
            print(f"Waiting for another process that makes {name}/{key} ...", flush=True)
        return lock


def key_of(value: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a value as JSON with sorted keys; it may hold records and dataclasses."""

    def plain(item: Any) -> Any:
        return item.model_dump() if isinstance(item, BaseModel) else asdict(item)

    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_atomically(path: Path, text: str) -> None:
    """Write ``text``: a reader, or a process started after a kill, sees all of it or nothing."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value atomically, for people to read."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, records: Iterable[Any]) -> None:
    """Write JSON objects, one a line, atomically."""
    write_atomically(path, "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records))


def read_lines(path: Path) -> list[Any]:
    """JSON objects, one a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _lasting(folder: Path) -> list[str]:
    """The files of a folder that are no scratch: no part of their path begins with a dot."""
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [str(path) for path in found if not any(part.startswith(".") for part in path.parts)]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
