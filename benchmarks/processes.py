"""Processes of a benchmark: one at a time, each fresh, the sides in turn, so that what drifts drifts for all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.work import Peer, Work
from esupport.config.command_line import LARGE_PAGES
from esupport.errors import UserError

ROOT = Path(__file__).parents[1]
Result = dict[str, Any]

# what both sides would otherwise say, send or start
_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "WANDB_MODE": "disabled",
}

_PATH = re.compile(r"(?<=[\s\"'(])/[^\s:]*/")  # of files of this machine, which a report does not name


@dataclass(frozen=True)
class Job:
    """What a process does: ``target`` is ``module:function``, called with the work and, if given, the peer's settings."""

    target: str
    work: Work
    peer: Peer | None = None

    def message(self) -> str:
        """The job as JSON, for :mod:`benchmarks.worker`."""
        peer = asdict(self.peer) if self.peer else None
        return json.dumps({"target": self.target, "kind": type(self.work).__name__, "work": asdict(self.work), "peer": peer})


def run(job: Job) -> Result:
    """The result of one job in a process of its own.

    Raises:
        UserError: it failed; the message is what it last said.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "job.json", Path(folder) / "result.json"
        asked.write_text(job.message(), encoding="utf-8")
        started = time.perf_counter()
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "benchmarks.worker", str(asked), str(answered)],
            cwd=ROOT,
            env={**LARGE_PAGES, **os.environ, **_ENVIRONMENT},  # this project's commands have them; a peer may have them too
            capture_output=True,
            text=True,
        )
        if done.returncode or not answered.exists():
            said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            if not said[-1].startswith("error: "):  # no mistake of the user's: where it happened is worth telling
                print(done.stderr, file=sys.stderr)
            raise UserError(f"{job.target} failed: {said[-1].removeprefix('error: ')}")
        result: Result = json.loads(answered.read_text(encoding="utf-8"))
        return {**result, "process_seconds": time.perf_counter() - started}


def alternate(jobs: Mapping[str, Job], repeats: int, console: Console) -> dict[str, list[Result]]:
    """Each job ``repeats`` times, in turn: the first of all, the second of all, ..."""
    results: dict[str, list[Result]] = {name: [] for name in jobs}
    for number in range(repeats):
        for name, job in jobs.items():
            result = run(job)
            results[name].append(result)
            _tell(console, f"{number + 1} of {repeats}", name, result)
    return results


def tune(name: str, jobs: Sequence[Job], console: Console, tolerance: float = 1e-3) -> tuple[Job, list[dict[str, Any]]]:
    """The fastest of ``jobs``, which do the same work under other settings of the peer, and what was tried.

    One that fails, or whose first loss is not that of the first job, is left out and said to be.

    Raises:
        UserError: none ran.
    """
    tried: list[dict[str, Any]] = []
    best: tuple[float, Job] | None = None
    first: float | None = None
    for job in jobs:
        setting = job.peer.name if job.peer else ""
        try:
            result = run(job)
        except UserError as error:
            tried.append({"setting": setting, "left_out": _PATH.sub("", str(error).splitlines()[-1])})
            _tell(console, "tuning", f"{name}, {setting}", {"left_out": tried[-1]["left_out"]})
            continue
        _tell(console, "tuning", f"{name}, {setting}", result)
        loss = result["losses"][0] if result.get("losses") else None
        first = loss if first is None else first
        if loss is not None and first is not None and not abs(loss - first) <= tolerance:
            tried.append({"setting": setting, "left_out": f"its loss is {loss:.4f}, not {first:.4f}"})
            continue
        tried.append({"setting": setting, "seconds": result["seconds"]})
        if best is None or result["seconds"] < best[0]:
            best = result["seconds"], job
    if best is None:
        raise UserError(f"{name} ran under none of its settings: {tried[-1]['left_out'] if tried else 'there is none'}")
    return best[1], tried


def _tell(console: Console, when: str, name: str, result: Result) -> None:
    said = result.get("left_out") or f"{result['seconds']:.2f} s counted, {result['process_seconds']:.0f} s in all"
    console.print(f"{when}: {name}: {said}", markup=False, highlight=False)
