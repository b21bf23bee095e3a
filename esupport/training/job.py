"""The job of ``train.py``: data, model, measure, train, measure, save, show."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from esupport.config.binding import bind
from esupport.config.check import check_resources, check_types
from esupport.config.resolvers import output_dir
from esupport.errors import UserError
from esupport.generators.local import write_replies
from esupport.models.backbone import Backbone
from esupport.objectives.module import Objective
from esupport.rendering.datamodule import RowDataModule
from esupport.training.environment import Costs, make, make_trainer, quiet
from esupport.training.prepare import Prepared, prepare
from esupport.training.report import Sample, show_data, show_results, show_samples
from esupport.training.resume import clear, earlier_run

if TYPE_CHECKING:
    from peft import PeftModel

Job = Callable[[DictConfig], Any]


def told(job: Job) -> Job:
    """Wrap a job: a user's mistake is one line on stderr, the W&B run is always closed, and the exception goes on.

    It must end by exception, never by ``SystemExit``, or one failed job would end a sweep.
    """

    @functools.wraps(job)
    def wrapped(cfg: DictConfig) -> Any:
        exit_code = 1
        try:
            result = job(cfg)
            exit_code = 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise
        finally:
            if "wandb" in sys.modules:
                import wandb

                wandb.finish(exit_code=exit_code)
        return result

    return wrapped


@told
def train_job(cfg: DictConfig) -> Any:
    """Train as ``cfg`` says; returns the figure named by ``optimized_metric``, for a sweep."""
    return train(cfg).get(cfg.optimized_metric)


def train(cfg: DictConfig) -> dict[str, Any]:
    """Fine-tune a backbone's adapter and measure it before and after.

    Writes ``config.yaml``, ``metrics.json``, ``samples.jsonl``, ``adapter/`` and ``checkpoints/`` into the run's directory. A
    run that was stopped goes on; one that had ended is only shown.

    Args:
        cfg: the composed configuration of ``conf/train.yaml``.

    Returns:
        The figures of ``metrics.json``.

    Raises:
        UserError: for anything the user can mend.
    """
    plain = check_types("train", cfg)
    check_resources(plain)
    bind(plain)
    quiet()
    costs, first = Costs(), getattr(rank_zero_only, "rank", 0) == 0
    console, folder = Console(quiet=not first), Path(output_dir())
    checkpoint, ended = earlier_run(plain, folder)
    if ended is not None:
        console.print(f"This run has ended before: {folder}. resume=null starts it anew.", markup=False)
        show_results(console, ended)
        return ended
    folder.mkdir(parents=True, exist_ok=True)
    if first:
        clear(folder, checkpoints=checkpoint is None)
        OmegaConf.save(cfg, folder / "config.yaml")
    pl.seed_everything(plain["seed"], verbose=False)

    backbone: Backbone = make(plain["model"], "model")
    prepared = prepare(plain, backbone)
    show_data(console, prepared)
    data = prepared.datamodule(plain)
    trainer = make_trainer(plain, len(data.sampler))
    policy = backbone.load(plain["seed"])
    module: Objective = make(plain["objective"], "objective")(policy=policy)

    console.print("Measuring the base model on the held-out side ...")
    with policy.disable_adapter():
        before = _measure(trainer, module, data)
    module.measured_at = None  # the adapter has not been measured
    console.print(f"Training {sum(p.numel() for p in policy.parameters() if p.requires_grad):,} weights of the adapter ...")
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    after = _settle(trainer, module, data)
    metrics = {
        **{f"{name}_before": value for name, value in before.items()},
        **{f"{name}_after": value for name, value in after.items()},
        **costs.figures(trainer),
        "seed": plain["seed"],
        "model": backbone.name,
        "adapter_path": str(folder / "adapter"),
    }
    if trainer.is_global_zero:
        backbone.save(policy, folder / "adapter")
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")  # its presence says that training has ended
        policy.to(trainer.strategy.root_device)  # Lightning leaves the model on the CPU
        samples = _samples(plain, prepared, policy)
        lines = (json.dumps(sample.record(), ensure_ascii=False) for sample in samples)
        (folder / "samples.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        show_results(console, metrics)
        show_samples(console, samples)
        _log(trainer, metrics, samples)
    return metrics


def _measure(trainer: pl.Trainer, module: Objective, data: RowDataModule) -> dict[str, float]:
    """``val/...`` figures of the weights as they are."""
    trainer.validate(module, data, verbose=False)
    return _figures(trainer)


def _figures(trainer: pl.Trainer) -> dict[str, float]:
    return {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}


def _settle(trainer: pl.Trainer, module: Objective, data: RowDataModule) -> dict[str, float]:
    """Measure the last adapter, go back to the best one where a callback kept a better, and return that one's figures."""
    after = _figures(trainer) if module.measured_at == trainer.global_step else _measure(trainer, module, data)
    for kept in trainer.checkpoint_callbacks:
        if isinstance(kept, pl.callbacks.ModelCheckpoint) and kept.monitor in after and kept.best_model_score is not None:
            sign = 1 if kept.mode == "min" else -1
            if sign * kept.best_model_score.item() < sign * after[kept.monitor]:
                best = torch.load(kept.best_model_path, map_location="cpu", weights_only=True)
                module.load_state_dict(best["state_dict"], strict=False)
                after = _measure(trainer, module, data)
    return after


def _samples(plain: dict[str, Any], prepared: Prepared, policy: PeftModel) -> list[Sample]:
    """Held-out contexts with the reply before and after."""
    settings = dict(plain["samples"])
    asked = prepared.contexts(settings.pop("contexts"))
    contexts = [response.context for _, response in asked]
    replies = functools.partial(write_replies, policy, prepared.renderer, contexts, **settings, seed=plain["seed"])
    trained = replies()
    with policy.disable_adapter():
        base = replies()
    return [
        Sample(
            conversation=conversation.id,
            turn=response.turn,
            context="\n".join(f"{said.role}: {said.text}" for said in conversation.turns[: response.turn][-3:]),
            base=base[index],
            trained=trained[index],
            human=conversation.turns[response.turn].text,
        )
        for index, (conversation, response) in enumerate(asked)
    ]


def _log(trainer: pl.Trainer, metrics: dict[str, Any], samples: list[Sample]) -> None:
    """Final figures to every logger, and the samples as a table to W&B."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=trainer.global_step)
        if isinstance(logger, pl.loggers.WandbLogger) and samples:
            records = [sample.record() for sample in samples]
            logger.log_table("samples", columns=list(records[0]), data=[list(record.values()) for record in records])
        logger.save()
