"""This project's side of the training benchmarks: rows, reference, module and trainer as ``train.py`` uses them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from benchmarks.flops import Flops
from benchmarks.material import Material, prepare
from benchmarks.meters import Meter, learnt, warm_up
from benchmarks.shapes import backbone_of
from benchmarks.work import Training
from esupport.models.slot import Slot
from esupport.objectives.reference import Scorer
from esupport.rendering.corpus import Corpus
from esupport.rendering.datamodule import RowDataModule
from esupport.rendering.packing import Batch
from esupport.store import Store
from esupport.training.environment import make, quiet, scorer_of


class Stamps(pl.Callback):
    """Stamps each step's end, and keeps what each step learnt and its loss."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.batches: list[list[Batch]] = []
        self.checked_from = meter.now()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Before the module compares policy and reference."""
        self.checked_from = self.meter.now()

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Training starts."""
        self.meter.stamp()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: list[Batch], index: int
    ) -> None:
        """A step has ended."""
        self.meter.stamp()
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.norms.append(float(trainer.callback_metrics["train/gradient_norm"]))
        self.batches.append(batch)


def train(work: Training) -> dict[str, Any]:
    """Train, and measure; see :func:`benchmarks.peers.train` for the peer's side."""
    quiet()
    meter = Meter(work.device)
    plain = work.plain()
    backbone = backbone_of(plain, work)
    material = prepare(plain, work, backbone)
    slot = Slot(backbone, plain["seed"], "cuda:0" if work.device == "cuda" else "cpu")
    policy = slot.load(None)
    meter.watch(policy)
    warm_up(policy, meter)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        scorer = scorer_of(plain, slot, store)
        before = _held_out(scorer, material, None)
        corpus, reference = _reference(scorer, material.corpus, meter) if work.task == "dpo" else (material.corpus, {})
        loaded = meter.held()
        stamps = _fit(work, plain, slot, corpus, meter, folder)
        peak, flops = meter.peak(), _flops(work, policy, material)
        if work.task == "dpo":
            started, checked = stamps.checked_from, meter.stamps[0]
            reference |= {"check_seconds": checked[0] - started[0], "check_tokens": checked[1] - started[1]}
            reference |= _reference(scorer, material.corpus, meter, "second_")[1]  # as a second run asks for it
        backbone.save(policy, Path(folder) / "adapter")
        after = _held_out(scorer, material, Path(folder) / "adapter")
    return {
        **meter.figures(work.warmup),
        **reference,
        "losses": stamps.losses,
        "gradient_norms": stamps.norms,
        "learnt": [learnt(_completions(batches)) for batches in stamps.batches],
        "loaded_bytes": loaded,
        "peak_bytes": peak,
        "held_out_before": before,
        "held_out_after": after,
        **flops.figures(work, meter),
    }


def _reference(scorer: Scorer, corpus: Corpus, meter: Meter, which: str = "") -> tuple[Corpus, dict[str, Any]]:
    """The pairs with their scores under the reference, and what these took, in the run that ``which`` names."""
    seconds, tokens = meter.now()
    scores, _ = scorer.scores(corpus.rows, None)
    later = meter.now()
    took = {f"{which}reference_seconds": later[0] - seconds, f"{which}reference_tokens": later[1] - tokens}
    return corpus.scored(scores), took


def _fit(work: Training, plain: dict[str, Any], slot: Slot, corpus: Corpus, meter: Meter, folder: str) -> Stamps:
    data = RowDataModule({"train": corpus}, **plain["batching"], replay_ratio=0.0, seed=plain["seed"])
    known = {"reference_is_start": True} if work.task == "dpo" else {}
    module = make(plain["objective"], "objective")(policy=slot.load(None), **known)
    stamps = Stamps(meter)
    node = {**plain["trainer"], "max_steps": work.warmup + work.steps, "default_root_dir": folder}
    quiet_node = {"limit_val_batches": 0, "enable_checkpointing": False, "enable_progress_bar": False, "logger": False}
    trainer: pl.Trainer = make({**node, **quiet_node}, "trainer", callbacks=[stamps])
    trainer.fit(module, data)
    return stamps


def _completions(batches: list[Batch]) -> list[tuple[int, ...]]:
    """The target tokens of each response, as the batches held them."""
    return [
        tuple(batch.targets[batch.response == response].tolist()) for batch in batches for response in range(len(batch.names))
    ]


def _held_out(scorer: Scorer, material: Material, adapter: Path | None) -> list[float]:
    """Log-probability a token of each held-out completion."""
    rows = material.held_out.rows
    if not rows:
        return []
    scores, _ = scorer.scores(rows, adapter)
    lengths = [len(response.completion) for unit in material.held_out_units for response in unit]
    sums = [float(value) for of_row in scores for value in of_row]
    return [value / length for value, length in zip(sums, lengths, strict=True)]


def _flops(work: Training, policy: Any, material: Material) -> Flops:
    """What the counted steps take at least, by the tree rows' own tokens."""
    flops = Flops(policy)
    for step in material.steps[work.warmup :]:
        for row in (row for number in step for row in material.corpus.units[number]):
            flops.add(len(row), int(row.positions.sum()) + len(row), len(row.targets))
    return flops
