"""The ledger of a run: which stages it used, so that a reader can go from M_T back to each pair and file."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from esupport.models.weights import weights_digest
from esupport.store import Stage, Store, write_json

_PACKAGES = ("esupport", "torch", "transformers", "peft", "pytorch-lightning")


class Ledger:
    """Records stages as they are used and writes ``lineage.json``.

    Args:
        store: that holds them.
        folder: the run's directory.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.entries: list[dict[str, Any]] = []

    def given(self, gives: str, adapter: Path) -> None:
        """Record an adapter that no stage of the run made."""
        self.entries.append({"gives": gives, "stage": "given", "round": 0, "key": weights_digest(adapter), "made_from": []})

    def keys(self, *gives: str) -> list[str]:
        """The keys of what gave the run each of ``gives``, retries among them."""
        return [entry["key"] for entry in self.entries if entry["gives"] in gives]

    def add(self, stage: Stage, round_: int, gives: str, made_from: Sequence[str] = ()) -> Stage:
        """Record ``stage`` under what it gives the run (``M1``, ``round-1/draft``); ``made_from`` are keys of stages."""
        self.entries.append(
            {
                "gives": gives,
                "stage": stage.name,
                "round": round_,
                "key": stage.key,
                "made_from": list(made_from),
                "folder": str(stage.folder.relative_to(self.store.root)),
                "inputs": stage.inputs,
                "files": stage.files,
                "seconds": stage.seconds,
                "reused": stage.reused,
            }
        )
        made_with = {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
        lineage = {"store": "paths.store", "made_with": made_with, "stages": self.entries}
        write_json(self.folder / "lineage.json", lineage)
        return stage

    def seconds(self, round_: int) -> dict[str, float]:
        """Seconds that each kind of stage of a round took, when it was made."""
        found: dict[str, float] = {}
        for entry in self.entries:
            if entry["round"] == round_ and "seconds" in entry:
                found[entry["stage"]] = round(found.get(entry["stage"], 0.0) + entry["seconds"], 1)
        return found
