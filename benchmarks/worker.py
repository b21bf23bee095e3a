"""A process of a benchmark: reads a job, calls the function that it names, writes what it returns."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.work import Evolving, Peer, Planning, Training, Writing
from esupport.errors import UserError

KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Training, Writing, Planning, Evolving)}


def main(asked: Path, answered: Path) -> None:
    """Do the job in file ``asked``; its result goes to file ``answered``."""
    job = json.loads(asked.read_text(encoding="utf-8"))
    described = {key: tuple(value) if isinstance(value, list) else value for key, value in job["work"].items()}
    work = KINDS[job["kind"]](**described)
    module, _, function = job["target"].partition(":")
    further = [Peer(**job["peer"])] if job["peer"] else []
    result = getattr(importlib.import_module(module), function)(work, *further)
    answered.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except UserError as error:
        sys.exit(f"error: {error}")
