"""Train an objective and measure what is kept of it."""

from __future__ import annotations

import pytorch_lightning as pl
import torch

from esupport.objectives.module import Objective
from esupport.rendering.datamodule import RowDataModule


def measure(trainer: pl.Trainer, module: Objective, data: RowDataModule) -> dict[str, float]:
    """``val/...`` figures of the weights as they are."""
    trainer.validate(module, data, verbose=False)
    return _figures(trainer)


def measure_base(trainer: pl.Trainer, module: Objective, data: RowDataModule) -> dict[str, float]:
    """``val/...`` figures of the backbone without the adapter."""
    with module.policy.disable_adapter():
        before = measure(trainer, module, data)
    module.measured_at = None  # the adapter has not been measured
    return before


def fit(trainer: pl.Trainer, module: Objective, data: RowDataModule, checkpoint: str | None) -> dict[str, float]:
    """Train, or go on from ``checkpoint``; the ``val/...`` figures of the adapter that is kept, if the trainer validates."""
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return _settle(trainer, module, data) if trainer.limit_val_batches else {}


def _figures(trainer: pl.Trainer) -> dict[str, float]:
    return {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}


def _settle(trainer: pl.Trainer, module: Objective, data: RowDataModule) -> dict[str, float]:
    """Measure the last adapter, go back to the best one where a callback kept a better, and return that one's figures."""
    after = _figures(trainer) if module.measured_at == trainer.global_step else measure(trainer, module, data)
    for kept in trainer.checkpoint_callbacks:
        if isinstance(kept, pl.callbacks.ModelCheckpoint) and kept.monitor in after and kept.best_model_score is not None:
            sign = 1 if kept.mode == "min" else -1
            if sign * kept.best_model_score.item() < sign * after[kept.monitor]:
                best = torch.load(kept.best_model_path, map_location="cpu", weights_only=True)
                module.load_state_dict(best["state_dict"], strict=False)
                after = measure(trainer, module, data)
    return after
