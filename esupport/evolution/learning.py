"""Trainings of a run as stages of the store: phase 1, and the preference training of a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.console import Console

from esupport.data.preference import PreferencePair
from esupport.errors import UserError
from esupport.models.slot import Slot
from esupport.models.weights import weights_digest
from esupport.objectives.dpo import PreferenceOptimization
from esupport.objectives.module import Objective
from esupport.objectives.reference import Scorer
from esupport.rendering.corpus import Corpus
from esupport.rendering.datamodule import RowDataModule
from esupport.rendering.pairs import render_pairs
from esupport.store import Stage, Store, write_json, write_lines
from esupport.training.environment import Costs, make, make_trainer
from esupport.training.fit import fit
from esupport.training.prepare import Prepared
from esupport.training.resume import sound

# keys of the trainer that change nothing of what is learnt
_COSMETIC = {"accelerator", "devices", "strategy", "log_every_n_steps", "enable_progress_bar", "enable_model_summary"}
_COSMETIC |= {"default_root_dir", "num_sanity_val_steps", "enable_checkpointing"}
_SHOWING = {"last", "progress_bar"}  # callbacks of which the same holds
_BY_ROUND = ("beta", "lr")  # the keys of the objective that may be a list with a value for each round


@dataclass
class Learner:
    """Trains adapters of one backbone, each once.

    Args:
        plain: the resolved configuration.
        prepared: conversations, rendered.
        slot: the model.
        store: where adapters are kept.
        scorer: measures the reference.
        loggers: of the run; each training logs under a prefix of its own.
        console: for messages.
    """

    plain: dict[str, Any]
    prepared: Prepared
    slot: Slot
    store: Store
    scorer: Scorer
    loggers: list[Any]
    console: Console

    def phase_1(self) -> Stage:
        """M_0: supervised fine-tuning. Its stage holds ``adapter/`` and ``metrics.json``."""
        settings = self.plain["sft"]["objective"]
        epochs = self.plain["trainer"]["max_epochs"]
        data = self.prepared.datamodule(self.plain)
        inputs = self._inputs(settings, epochs, self.prepared.corpora) | {
            "lora": self.plain["model"]["lora"],
            "start": None,
            "callbacks": _nowhere(self._monitoring()),
            "replay_ratio": self.plain["replay"]["ratio"],
        }

        def train(folder: Path) -> None:
            costs = Costs()
            module: Objective = make(settings, "sft.objective")(policy=self.slot.load(None))
            # the held-out side is there to choose by; the one adapter of a single validation is measured as M_0 anyway
            interval = self.plain["trainer"]["val_check_interval"]
            once = epochs == 1 and isinstance(interval, float) and interval == 1.0  # as an integer it counts steps
            watched = bool(data.held_out_names()) and not once
            trainer = self._trainer("sft", folder, epochs, data, watched)
            after = fit(trainer, module, data, _checkpoint(folder))
            self._keep(module, folder, {**after, **costs.figures(trainer)})

        return self.store.stage("sft", inputs, train)

    def render(self, pairs: Sequence[PreferencePair]) -> Corpus:
        """The pairs as tree rows. Raises ``UserError`` where none fits."""
        corpus = render_pairs("train", pairs, self.prepared.renderer, "skip")
        if not corpus.units:
            raise UserError("filters: no pair is left to train on; dropped.jsonl has the reasons (filters=minimal drops less)")
        for slow in corpus.slow_paths(self.plain["batching"]["tokens_per_batch"]):
            self.console.print(slow, markup=False, highlight=False)
        return corpus

    def prefer(self, round_: int, corpus: Corpus, start: Path, reference: Path | None) -> tuple[Stage, Stage]:
        """M_{t+1}: preference training on ``corpus`` from ``start`` against ``reference`` (None: the backbone alone).

        Returns:
            The stage, with ``adapter/``, ``metrics.json`` and ``curve.jsonl``, and the stage of the reference's scores.
        """
        settings = of_round(self.plain["objective"], round_)
        epochs = of_round(self.plain["evolution"]["epochs"], round_)
        scores, scored = self.scorer.scores(corpus.rows, reference)
        start_digest = weights_digest(start)
        inputs = self._inputs(settings, epochs, {"train": corpus}) | {"start": start_digest, "reference": scored.key}

        def train(folder: Path) -> None:
            costs = Costs()
            learnt = {"train": corpus.scored(scores)}
            data = RowDataModule(learnt, **self.plain["batching"], replay_ratio=0.0, seed=self.plain["seed"])
            is_start = reference is not None and weights_digest(reference) == start_digest
            policy = self.slot.load(start)
            module: PreferenceOptimization = make(settings, "objective")(policy=policy, reference_is_start=is_start)
            trainer = self._trainer(f"round-{round_}", folder, epochs, data, watched=False)
            fit(trainer, module, data, _checkpoint(folder))
            write_lines(folder / "curve.jsonl", module.curve)
            module.policy.to(self.slot.device)  # Lightning leaves the model on the CPU
            self._keep(module, folder, {**module.measure_pairs(), **costs.figures(trainer)})

        return self.store.stage("dpo", inputs, train), scored

    def _inputs(self, objective: dict[str, Any], epochs: int, corpora: dict[str, Corpus]) -> dict[str, Any]:
        trainer = {k: v for k, v in self.plain["trainer"].items() if k not in _COSMETIC}
        objective = {k: v for k, v in objective.items() if k != "monitor"}
        rows = {name: corpus.rows.digest for name, corpus in corpora.items() if corpus.units}
        batching = dict(self.plain["batching"])
        if not self.plain["model"]["lora"]["dropout"]:  # what is dropped is drawn over a whole batch
            del batching["tokens_per_batch"]
        others = {n: node for n, node in self._callbacks().items() if n not in _SHOWING and "monitor" not in node}
        return {
            **({"other_callbacks": _nowhere(others)} if others else {}),
            "objective": objective,
            "rows": rows,
            "trainer": {**trainer, "max_epochs": epochs},
            **batching,
            "seed": self.plain["seed"],
            **self.slot.backbone.identity(),
        }

    def _callbacks(self) -> dict[str, Any]:
        return {name: node for name, node in self.plain["callbacks"].items() if node}

    def _monitoring(self) -> dict[str, Any]:
        """The callbacks that watch phase 1: best adapter, early stopping. Those of the objective's figure take phase 1's."""
        figures = {self.plain["objective"]["monitor"]: self.plain["sft"]["objective"]["monitor"]}
        watching = {name: node for name, node in self._callbacks().items() if "monitor" in node}
        return {n: {**node, "monitor": figures.get(node["monitor"], node["monitor"])} for n, node in watching.items()}

    def _trainer(self, prefix: str, folder: Path, epochs: int, data: RowDataModule, watched: bool) -> pl.Trainer:
        pl.seed_everything(self.plain["seed"], verbose=False)
        for logger in self.loggers:
            logger._prefix = prefix
        checkpoints = str(folder / ".checkpoints")
        callbacks = {name: node for name, node in self._callbacks().items() if "monitor" not in node}
        if watched:
            callbacks |= self._monitoring()
        callbacks = {n: {**node, "dirpath": checkpoints} if "dirpath" in node else node for n, node in callbacks.items()}
        node = {**self.plain["trainer"], "max_epochs": epochs, "default_root_dir": str(folder)}
        if not watched:
            node |= {"limit_val_batches": 0, "val_check_interval": 1.0}
        return make_trainer(node, callbacks, self.loggers, len(data.sampler))

    def _keep(self, module: Objective, folder: Path, metrics: dict[str, Any]) -> None:
        self.slot.backbone.save(module.policy, folder / "adapter")
        timeless = {name: value for name, value in metrics.items() if not isinstance(value, str)}
        write_json(folder / "metrics.json", timeless)


def _nowhere(callbacks: dict[str, Any]) -> dict[str, Any]:
    """Callbacks without the folder that they write to."""
    return {name: {**node, "dirpath": None} if "dirpath" in node else node for name, node in callbacks.items()}


def _checkpoint(folder: Path) -> str | None:
    last = folder / ".checkpoints" / "last.ckpt"
    return str(last) if sound(last) else None


def of_round(node: Any, round_: int) -> Any:
    """``node`` with the value of ``round_`` (from 1) in place of each list of values by round."""
    if isinstance(node, list):
        return node[round_ - 1]
    if not isinstance(node, dict):
        return node
    return {
        key: of_round(value, round_) if key in _BY_ROUND or isinstance(value, dict) else value for key, value in node.items()
    }
