"""The data path without a model: what one process of the scaling benchmark does, and the conversations that it is given."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.work import Planning
from esupport.data.files import SPLITS, read_splits
from esupport.models.backbone import Backbone

_TURNS = (10, 26)  # of a conversation: ESConv's have 22 on average, merged
_WORDS = (4, 32)  # of a turn
_SHIPPED = "pkg://esupport.data/shipped"


def write_synthetic(path: Path, conversations: int) -> None:
    """``conversations`` records, one a line, of random words of the shipped ones: the same for the same number, and unlike."""
    shipped = read_splits(_SHIPPED, "data.path")
    texts = [turn["text"] for split in SPLITS for raw in shipped[split] for turn in raw.value["turns"]]
    words = sorted({word for text in texts for word in text.split()})
    with path.open("w", encoding="utf-8") as file:
        for number in range(conversations):
            file.write(json.dumps({"id": f"synthetic-{number}", "turns": list(_turns(number, words))}) + "\n")


def _turns(number: int, words: list[str]) -> Iterator[dict[str, str]]:
    draw = np.random.default_rng(number)
    for turn in range(int(draw.integers(*_TURNS))):
        said = draw.integers(len(words), size=int(draw.integers(*_WORDS)))
        yield {"role": ("seeker", "supporter")[turn % 2], "text": " ".join(words[index] for index in said)}


def plan(work: Planning) -> dict[str, Any]:
    """Read, check, divide and render the file, and plan and pack every step of an epoch; then start once more."""
    from benchmarks.meters import Meter
    from esupport.rendering.packing import Batch
    from esupport.training.environment import make, quiet
    from esupport.training.prepare import prepare

    quiet()
    with tempfile.TemporaryDirectory() as folder:
        plain = work.plain()
        plain["paths"]["store"] = folder
        backbone: Backbone = make(plain["model"], "model")
        backbone.tokenizer()  # what making a model's folder takes, once on a machine, is not counted
        meter = Meter("cpu")
        loaded, started = meter.held(), time.perf_counter()

        def steps() -> Iterator[list[Batch]]:
            yield from prepare(plain, backbone).datamodule(plain).train_dataloader()

        first, count, tokens = 0.0, 0, 0
        for batches in steps():
            first = first or time.perf_counter() - started
            count += 1
            tokens += batches[0].step_targets
        ended = time.perf_counter()
        next(steps())
        again = time.perf_counter() - ended
    return {
        "seconds": ended - started,
        "start_seconds": first,
        "second_start_seconds": again,
        "steps": count,
        "target_tokens": tokens,
        "loaded_bytes": loaded,
        "peak_bytes": meter.peak(),
    }
