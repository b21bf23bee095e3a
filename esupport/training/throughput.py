"""Supervised tokens per second of training, and the time that is left."""

from __future__ import annotations

import time
from typing import Any, cast

import pytorch_lightning as pl

from esupport.objectives.module import Objective
from esupport.rendering.packing import Batch


class Throughput(pl.Callback):
    """Logs ``train/tokens_per_s`` and ``train/minutes_left``, and keeps the totals.

    Time is the time inside training steps: validation and checkpoints do not count. Tokens are supervised ones, over
    all ranks.

    Attributes:
        tokens: supervised tokens learnt from in this process's run.
        seconds: seconds spent in training steps.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.seconds = 0.0
        self._started = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: list[Batch], index: int) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: list[Batch], index: int
    ) -> None:
        """Add the step, and log."""
        self.seconds += time.perf_counter() - self._started
        self.tokens += batch[0].step_targets
        steps_left = cast("Objective", module).planned_steps - trainer.global_step
        done = max(1, self._steps(trainer))
        module.log("train/tokens_per_s", self.rate, prog_bar=True)
        module.log("train/minutes_left", steps_left * self.seconds / done / 60, prog_bar=True)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Remember where a resumed run goes on."""
        self._first = trainer.global_step

    def _steps(self, trainer: pl.Trainer) -> int:
        return trainer.global_step - self._first

    @property
    def rate(self) -> float:
        """Supervised tokens per second."""
        return self.tokens / self.seconds if self.seconds else 0.0
