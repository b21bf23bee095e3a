"""A whole run of ``evolve.py`` in one process, with a clock around its forwards, its backwards and its decoding."""

from __future__ import annotations

import importlib
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.work import Evolving

ROOT = Path(__file__).parents[1]

# part: what is timed, each as module:function; what one calls of another counts for the outer one
PARTS = {
    "forward": ["esupport.objectives.logprobs:target_logprobs", "esupport.models.trunk:Trunk.__init__"],
    "backward": ["torch:Tensor.backward"],
    "decoding": ["esupport.generators.decoding:decode"],
    "loading": ["esupport.models.backbone:Backbone.load"],
}


@dataclass
class Clock:
    """Seconds by part."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    running: bool = False

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts for ``name``, unless another part is running."""
        if self.running:
            yield
            return
        self.running, started = True, time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started
            self.running = False

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return timed


def run(work: Evolving) -> dict[str, Any]:
    """Seconds of a run, by part, and what of it lies outside of all; imports are not counted."""
    importlib.import_module("esupport.evolution.job")
    clock = Clock()
    for name, targets in PARTS.items():
        for target in targets:
            _watch(clock, name, target)
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["evolve.py", f"paths.outputs={folder}", "name=run", *work.settings()]
        started = time.perf_counter()
        runpy.run_path(str(ROOT / "evolve.py"), run_name="__main__")
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "parts": clock.seconds}


def _watch(clock: Clock, part: str, target: str) -> None:
    """Put the clock around a function wherever a module has its name."""
    module, _, path = target.partition(":")
    *outer, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for step in outer:
        owner = getattr(owner, step)
    function = getattr(owner, name)
    timed = clock.around(part, function)
    setattr(owner, name, timed)
    for other in [m for m in sys.modules.values() if getattr(m, "__name__", "").startswith("esupport.")]:
        if vars(other).get(name) is function:
            setattr(other, name, timed)
