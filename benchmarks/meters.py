"""What a process measures of itself: seconds and tokens at the end of each optimizer step, and its peak memory."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Meter:
    """Clock and counters of one process.

    Attributes:
        tokens: that went through the model so far, padding counted.
        stamps: seconds and tokens at the start of training and at the end of each step.
    """

    device: str
    tokens: int = 0
    stamps: list[tuple[float, int]] = field(default_factory=list)

    def watch(self, model: Any) -> None:
        """Count the tokens that enter the model's embedding: of every forward, whoever calls it."""

        def count(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            self.tokens += inputs[0].numel()

        model.get_input_embeddings().register_forward_hook(count)

    def now(self) -> tuple[float, int]:
        """Seconds and tokens so far, after the device has done all its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), self.tokens

    def stamp(self) -> None:
        """Training starts, or a step has ended."""
        self.stamps.append(self.now())

    def peak(self) -> int:
        """Most bytes so far: of the process, or of tensors on the GPU."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        # Linux counts kilobytes, macOS bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def held(self) -> int:
        """Bytes now: of the process where the system tells, or of tensors on the GPU."""
        if self.device == "cuda":
            return torch.cuda.memory_allocated()
        statm = Path("/proc/self/statm")
        return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else self.peak()

    def figures(self, warmup: int) -> dict[str, Any]:
        """Of the steps behind the first ``warmup`` ones."""
        steps = [
            (later[0] - earlier[0], later[1] - earlier[1]) for earlier, later in zip(self.stamps, self.stamps[1:], strict=False)
        ]
        counted = steps[warmup:]
        return {
            "seconds": sum(seconds for seconds, _ in counted),
            "step_seconds": [seconds for seconds, _ in steps],
            "forwarded_tokens": sum(tokens for _, tokens in counted),
        }


@torch.no_grad()
def warm_up(model: Any, meter: Meter) -> None:
    """One small forward, not counted, so that no first use is measured."""
    before = meter.tokens
    ids = torch.arange(16, 80, device=model.device)[None].repeat(4, 1)
    model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    meter.tokens = before


def learnt(completions: Iterable[tuple[int, ...]]) -> dict[str, Any]:
    """What an optimizer step learnt: how many completions and tokens, and a hash of them that does not know their order."""
    found = sorted(completions)
    digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]
    return {"completions": len(found), "tokens": sum(map(len, found)), "digest": digest}
