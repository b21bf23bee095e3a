"""Supervised tokens per second of training, and the time that is left."""

from __future__ import annotations

import time
from typing import Any, cast

import pytorch_lightning as pl

from esupport.objectives.module import Objective
from esupport.rendering.packing import Batch

Metrics = dict[str, int | str | float | dict[str, float]]


class Throughput(pl.Callback):
    """Logs ``train/supervised_tokens_per_s`` and ``train/minutes_left``, and keeps the totals.

    Time is the time inside training steps: validation and checkpoints do not count. Tokens are supervised ones, over
    all ranks.

    Attributes:
        tokens: supervised tokens learnt from, over all ranks and resumptions.
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
        module.log("train/supervised_tokens_per_s", self.rate, prog_bar=True)
        module.log("train/minutes_left", steps_left * self.seconds / trainer.global_step / 60, prog_bar=True)

    def state_dict(self) -> dict[str, float]:
        """The totals, for the checkpoint: a resumed run reports the whole run."""
        return {"tokens": self.tokens, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.tokens, self.seconds = int(state_dict["tokens"]), float(state_dict["seconds"])

    @property
    def rate(self) -> float:
        """Supervised tokens per second."""
        return self.tokens / self.seconds if self.seconds else 0.0


class ProgressBar(pl.callbacks.TQDMProgressBar):
    """The bar with loss, supervised tokens per second and the time left of the whole run, short enough for 80 columns."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Metrics:
        """What stands behind the bar."""
        logged = trainer.progress_bar_metrics
        shown: Metrics = {}
        if "train/loss" in logged:
            shown["loss"] = f"{logged['train/loss']:.2f}"
        if "train/minutes_left" in logged:
            seconds = round(60 * float(logged["train/minutes_left"]))
            shown["left"] = f"{seconds // 60}:{seconds % 60:02d}"
            shown["tok/s"] = f"{logged['train/supervised_tokens_per_s']:.0f}"
        return shown
