"""The job of ``train.py``: data, model, measure, train, measure, save, show."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from esupport.config.binding import bind
from esupport.config.check import check_resources, check_types
from esupport.config.resolvers import output_dir
from esupport.data.conversation import Conversation
from esupport.errors import UserError
from esupport.generators.local import write_replies
from esupport.models.backbone import Backbone
from esupport.objectives.module import Objective
from esupport.training.prepare import Prepared, prepare
from esupport.training.report import Sample, show_data, show_results, show_samples
from esupport.training.throughput import Throughput

if TYPE_CHECKING:
    from peft import PeftModel

Job = Callable[[DictConfig], Any]


def told(job: Job) -> Job:
    """Wrap a job: a user's mistake is one line on stderr, the W&B run is always closed, and the exception goes on.

    It must end by exception, never by ``SystemExit``, or one failed job would end a sweep.
    """

    @functools.wraps(job)
    def wrapped(cfg: DictConfig) -> Any:
        try:
            return job(cfg)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise
        finally:
            if "wandb" in sys.modules:
                import wandb

                wandb.finish()

    return wrapped


@told
def train_job(cfg: DictConfig) -> Any:
    """Train as ``cfg`` says; returns the figure named by ``optimized_metric``, for a sweep."""
    metrics = train(cfg)
    if cfg.optimized_metric not in metrics:
        raise UserError(f"optimized_metric: no figure {cfg.optimized_metric}; there are {', '.join(metrics)}")
    return metrics[cfg.optimized_metric]


def train(cfg: DictConfig) -> dict[str, Any]:
    """Fine-tune a backbone's adapter and measure it before and after.

    Writes ``config.yaml``, ``metrics.json``, ``samples.jsonl``, ``adapter/`` and ``checkpoints/`` into the run's directory.

    Args:
        cfg: the composed configuration of ``conf/train.yaml``.

    Returns:
        The figures of ``metrics.json``.

    Raises:
        UserError: for anything the user can mend.
    """
    started = time.perf_counter()
    plain = check_types("train", cfg)
    check_resources(plain)
    bind(plain)
    _quiet()
    first = getattr(rank_zero_only, "rank", 0) == 0
    console, folder = Console(quiet=not first), Path(output_dir())
    folder.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(plain["seed"], verbose=False)

    if first:
        OmegaConf.save(cfg, folder / "config.yaml")
    backbone: Backbone = instantiate(plain["model"])
    prepared = prepare(plain, backbone)
    show_data(console, prepared)
    policy = backbone.load(plain["seed"])
    module: Objective = instantiate(plain["objective"])(policy=policy)
    trainer = _trainer(cfg, plain)
    data = prepared.datamodule(plain)

    console.print("Measuring the base model on the held-out side ...")
    with policy.disable_adapter():
        trainer.validate(module, data, verbose=False)
    before = {name: value.item() for name, value in trainer.callback_metrics.items()}
    console.print(f"Training {sum(p.numel() for p in policy.parameters() if p.requires_grad):,} weights of the adapter ...")
    trainer.fit(module, data, ckpt_path=_checkpoint(plain["resume"], folder), weights_only=True)
    after = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    if _take_best(trainer, module) or not after:
        console.print("Measuring the trained model on the held-out side ...")
        trainer.validate(module, data, verbose=False)
        after = {name: value.item() for name, value in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        backbone.save(policy, folder / "adapter")

    metrics = {
        **{f"{name}_before": value for name, value in before.items()},
        **{f"{name}_after": value for name, value in after.items()},
        **_costs(trainer, started),
        "seed": plain["seed"],
        "model": backbone.path,
        "adapter_path": str(folder / "adapter"),
    }
    samples = _samples(plain, prepared, policy)
    if trainer.is_global_zero:
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        lines = (json.dumps(sample.record(), ensure_ascii=False) for sample in samples)
        (folder / "samples.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        show_results(console, metrics)
        show_samples(console, samples)
        _log(trainer, metrics, samples)
    return metrics


def _quiet() -> None:
    """Silence what tells the user nothing: progress of loading, notes on choices that were made on purpose."""
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*no pre-optimization state was saved.*",  # the state after the step is the one to go on from
        ".*is_gradient_checkpointing.*",  # PEFT asks for it under its old name
    ):
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning\.utilities\._pytree")  # calls what torch deprecates


def _trainer(cfg: DictConfig, plain: dict[str, Any]) -> pl.Trainer:
    if plain["trainer"].get("precision") in ("16", "16-mixed", 16):
        raise UserError("trainer.precision: float16 with loss scaling is not supported; use bf16-mixed or 32-true")
    callbacks = [instantiate(node) for node in plain["callbacks"].values() if node]
    loggers = [instantiate(node) for node in plain["logger"].values() if node]
    trainer: pl.Trainer = instantiate(plain["trainer"], callbacks=callbacks, logger=loggers)
    settings = OmegaConf.to_container(cfg, resolve=False)  # unresolved, so that no path of this machine is logged
    for logger in trainer.loggers:
        logger.log_hyperparams(settings)  # type: ignore[arg-type]
    return trainer


def _checkpoint(resume: str | None, folder: Path) -> str | None:
    if resume != "auto":
        return resume
    last = folder / "checkpoints" / "last.ckpt"
    return str(last) if last.exists() else None


def _take_best(trainer: pl.Trainer, module: Objective) -> bool:
    """Go back to the adapter with the least held-out loss, where a callback kept it; whether that changed the adapter."""
    kept = [c for c in trainer.checkpoint_callbacks if isinstance(c, pl.callbacks.ModelCheckpoint) and c.monitor]
    if not kept or not kept[0].best_model_path:
        return False
    best = torch.load(kept[0].best_model_path, map_location="cpu", weights_only=True)
    module.load_state_dict(best["state_dict"], strict=False)
    return bool(best["global_step"] != trainer.global_step)


def _costs(trainer: pl.Trainer, started: float) -> dict[str, Any]:
    """Steps, tokens, time and peak memory of the run so far."""
    clock = next((c for c in trainer.callbacks if isinstance(c, Throughput)), Throughput())  # type: ignore[attr-defined]
    cuda = torch.cuda.is_available()
    # Linux counts kilobytes, macOS bytes
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "train/steps": trainer.global_step,
        "train/supervised_tokens": clock.tokens,
        "train/supervised_tokens_per_s": clock.rate,
        "train/seconds": clock.seconds,
        "seconds": time.perf_counter() - started,
        "peak_memory_gb": (torch.cuda.max_memory_allocated() if cuda else resident) / 1e9,
        "peak_memory_of": "GPU" if cuda else "process",
    }


def _samples(plain: dict[str, Any], prepared: Prepared, policy: PeftModel) -> list[Sample]:
    """Held-out contexts, spread over the conversations, each at a middle turn, with the reply before and after."""
    settings = dict(plain["samples"])
    chosen = _spread(prepared.valid, settings.pop("contexts"))
    asked: list[tuple[Conversation, int]] = []
    for conversation in chosen:
        turns = conversation.supporter_turns()
        asked.append((conversation, turns[len(turns) // 2]))
    contexts = [prepared.renderer.respond(c, [(turn, c.turns[turn].text)])[0].context for c, turn in asked]
    replies = functools.partial(write_replies, policy, prepared.renderer, contexts, **settings, seed=plain["seed"])
    trained = replies()
    with policy.disable_adapter():
        base = replies()
    return [
        Sample(
            conversation=conversation.id,
            turn=turn,
            context="\n".join(f"{said.role}: {said.text}" for said in conversation.turns[max(0, turn - 3) : turn]),
            base=base[index],
            trained=trained[index],
            human=conversation.turns[turn].text,
        )
        for index, (conversation, turn) in enumerate(asked)
    ]


def _spread(conversations: list[Conversation], count: int) -> list[Conversation]:
    """At most ``count`` conversations, evenly spread."""
    step = max(1.0, len(conversations) / max(1, count))
    return [conversations[math.floor(i * step)] for i in range(min(count, len(conversations)))]


def _log(trainer: pl.Trainer, metrics: dict[str, Any], samples: list[Sample]) -> None:
    """Final figures to every logger, and the samples as a table to W&B."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=trainer.global_step)
        if isinstance(logger, pl.loggers.WandbLogger) and samples:
            records = [sample.record() for sample in samples]
            logger.log_table("samples", columns=list(records[0]), data=[list(record.values()) for record in records])
