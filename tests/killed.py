"""Runs the method over and over, killing it (SIGKILL) at random points, until it has been killed often enough.

    python tests/killed.py FOLDER SEED KILLS

An episode is one run from nothing to its end; each attempt in it is a process of its own that is killed after a random time.
Prints one JSON object: kills, episodes, and whether each episode ended in the bytes of the run that was left alone.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process must not share a pool of threads

from conftest import SMOKE, config_of

from esupport.evolution.job import evolve

OVERRIDES = [
    *SMOKE,
    "callbacks.last.every_n_train_steps=1",
    "evolution.epochs=2",
    "generator.rows=4",
    "contexts.per_round=6",
    "samples.contexts=2",
]


def attempt(folder: Path, alive: float | None) -> bool:
    """Run in a process of its own, killed after ``alive`` seconds; whether it came to its end."""
    child = os.fork()
    if child == 0:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        try:
            evolve(config_of("evolve", [*OVERRIDES, f"paths.store={folder}/store"], folder / "run"))
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    if alive is not None:
        time.sleep(alive)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        raise RuntimeError("a resumed run failed")
    return True


def outcome(folder: Path) -> dict[str, bytes]:
    """What must be equal: adapters, pairs, drops."""
    files = [p for p in sorted((folder / "run").rglob("*")) if p.suffix in (".safetensors", ".jsonl")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def main(root: Path, seed: int, wanted: int) -> None:
    draw = random.Random(seed)
    started = time.perf_counter()
    attempt(root / "alone", None)
    whole = time.perf_counter() - started
    expected = outcome(root / "alone")
    kills, episodes, equal = 0, 0, []
    while kills < wanted:
        folder = root / f"episode-{episodes}"
        # a share of the whole run: several kills an episode, and starting takes a part of each
        while not attempt(folder, draw.uniform(0.05, 0.6) * whole if kills < wanted else None):
            kills += 1
        equal.append(outcome(folder) == expected)
        episodes += 1
        shutil.rmtree(folder)
    print(json.dumps({"kills": kills, "episodes": episodes, "equal": equal, "files": len(expected)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
