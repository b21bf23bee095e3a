"""The job of ``train.py``: data, model, measure, train, measure, save, show."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from esupport.config.resolvers import output_dir
from esupport.data.sides import write_learnt_from
from esupport.errors import UserError
from esupport.generators.local import Transformers
from esupport.generators.protocol import Sampling, reply_request, write_all
from esupport.models.backbone import Backbone
from esupport.models.slot import Slot
from esupport.objectives.module import Objective
from esupport.rendering.contexts import spread_contexts
from esupport.store import write_json, write_lines
from esupport.training.environment import Costs, begin, make, make_loggers, make_trainer, scorer_of, store_of, told
from esupport.training.fit import fit, measure_base
from esupport.training.prepare import Prepared, prepare
from esupport.training.report import Sample, show_data, show_results, show_samples
from esupport.training.resume import clear, earlier_run


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
    plain = begin("train", cfg)
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

    backbone: Backbone = make(plain["model"], "model")
    prepared = prepare(plain, backbone)
    if first:
        write_learnt_from(folder, prepared.learnt, backbone.adapter, plain["data"]["pairs"], checkpoint)
    show_data(console, prepared, plain["batching"]["tokens_per_batch"])
    data = prepared.datamodule(plain)
    trainer = make_trainer(plain["trainer"], plain["callbacks"], make_loggers(plain), len(data.sampler))
    slot = Slot(backbone, plain["seed"], str(trainer.strategy.root_device))
    given = _reference(plain, prepared, slot) if plain["data"]["pairs"] else {}
    module: Objective = make(plain["objective"], "objective")(policy=slot.load(None), **given)

    console.print("Measuring the base model on the held-out side ...")
    before = measure_base(trainer, module, data)
    console.print(
        f"Training {sum(p.numel() for p in module.policy.parameters() if p.requires_grad):,} weights of the adapter ..."
    )
    after = fit(trainer, module, data, checkpoint)
    metrics = {
        **{f"{name}_before": value for name, value in before.items()},
        **{f"{name}_after": value for name, value in after.items()},
        **costs.figures(trainer),
        "seed": plain["seed"],
        "model": backbone.name,
        "adapter_path": str(folder / "adapter"),
    }
    if trainer.is_global_zero:
        backbone.save(module.policy, folder / "adapter")
        # its presence says that training has ended
        write_json(folder / "metrics.json", metrics)
        samples = _samples(plain, prepared, Transformers(slot, prepared.renderer, rows=8, trunk_cache_gb=0), folder / "adapter")
        write_lines(folder / "samples.jsonl", map(asdict, samples))
        show_results(console, metrics)
        show_samples(console, samples)
        _log(trainer, metrics, samples)
    return metrics


def _reference(plain: dict[str, Any], prepared: Prepared, slot: Slot) -> dict[str, Any]:
    """Give the pairs the scores of the reference: what training starts from. What the objective must be told."""
    scorer = scorer_of(plain, slot, store_of(plain))
    adapter = Path(slot.backbone.adapter).expanduser() if slot.backbone.adapter else None
    for name in ("train", "pairs_valid"):
        corpus = prepared.corpora[name]
        if corpus.units:
            prepared.corpora[name] = corpus.scored(scorer.scores(corpus.rows, adapter)[0])
    if not prepared.corpora["pairs_valid"].units:
        for name, node in plain["callbacks"].items():
            if node and node.get("monitor") == plain["objective"]["monitor"]:
                raise UserError(f"callbacks.{name}: no pair is held out to tell the best adapter by; use '~callbacks.{name}'")
    return {"reference_is_start": True}


def _samples(plain: dict[str, Any], prepared: Prepared, generator: Transformers, adapter: Path) -> list[Sample]:
    """Held-out contexts with the reply before and after."""
    settings = dict(plain["samples"])
    renderer, held_out = prepared.renderer, prepared.corpora["valid"].kept
    asked = spread_contexts(held_out, settings.pop("contexts"), 1, renderer, renderer.max_tokens)
    requests = [reply_request(context, renderer, Sampling(**settings), plain["seed"], "samples") for context, _ in asked]
    base, trained = (write_all(generator, requests, which) for which in (None, adapter))
    return [
        Sample(
            conversation=conversation.id,
            turn=context.turn,
            context="\n".join(f"{said.role}: {said.text}" for said in context.turns[-3:]),
            base=base[index].text,
            trained=trained[index].text,
            human=conversation.turns[context.turn].text,
        )
        for index, (context, conversation) in enumerate(asked)
    ]


def _log(trainer: pl.Trainer, metrics: dict[str, Any], samples: list[Sample]) -> None:
    """Final figures to every logger, and the samples as a table to W&B."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=trainer.global_step)
        if isinstance(logger, pl.loggers.WandbLogger) and samples:
            records = [asdict(sample) for sample in samples]
            logger.log_table("samples", columns=list(records[0]), data=[list(record.values()) for record in records])
        logger.save()
