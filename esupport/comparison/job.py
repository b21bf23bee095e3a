"""The job of ``evaluate.py``: systems reply to the same contexts and are measured, judged and tried."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from esupport.comparison.evaluation import Evaluation
from esupport.comparison.output import write_output
from esupport.comparison.replying import Manner, Replying
from esupport.comparison.systems import System, refuse_learnt, systems_of
from esupport.config.resolvers import output_dir
from esupport.data.source import Source
from esupport.errors import UserError
from esupport.generators.protocol import Generator, Sampling
from esupport.models.backbone import Backbone
from esupport.models.slot import Slot
from esupport.rendering.contexts import spread_contexts
from esupport.rendering.conversations import render_all
from esupport.training.environment import (
    begin,
    device_of,
    make,
    make_generator,
    make_loggers,
    pathless,
    scorer_of,
    store_of,
    told,
)
from esupport.training.prepare import renderer_of


@told
def evaluate_job(cfg: DictConfig) -> None:
    """Evaluate as ``cfg`` says."""
    evaluate(cfg)


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Replies of all systems, figures, judges, safety, tables and the page; whatever was written or scored before is reused.

    Args:
        cfg: the composed configuration of ``conf/evaluate.yaml``.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        UserError: for anything the user can mend.
    """
    plain = begin("evaluate", cfg)
    console, folder = Console(), Path(output_dir())
    if (folder / "lineage.json").exists() or (folder / "adapter").exists():
        raise UserError(f"name: {folder.name} is the folder of a training; give the evaluation a name of its own")
    store = store_of(plain)
    backbone: Backbone = make(plain["model"], "model")
    renderer = renderer_of(plain, backbone)
    slot = Slot(backbone, plain["seed"], device_of(plain["trainer"]))
    generator: Generator = make_generator(plain["generator"], "generator", slot, renderer)
    server = make_generator(plain["server"], "server", slot, renderer) if plain["server"] else None
    systems = systems_of(plain, generator, server)
    _baseline(plain, systems)

    source: Source = make(plain["data"], "data")
    splits = source.read("data", store)
    side = splits.side(plain["split"])
    refuse_learnt(systems, side.contents, plain["split"])
    corpus = render_all(plain["split"], side, renderer, source.on_error, store)
    chosen = plain["contexts"]
    contexts = spread_contexts(corpus.kept, chosen["conversations"], chosen["per_conversation"], renderer, chosen["max_tokens"])
    if not contexts:
        raise UserError(f"split: nothing to reply to on the side {plain['split']}, or contexts.max_tokens is too small")
    manner = Manner(renderer, Sampling(**plain["sampling"]), plain["seed"], chosen["max_tokens"])
    replying = Replying(contexts, chosen["history"], manner, store, console)
    scorer = scorer_of(plain, slot, store)
    loggers = make_loggers(plain)
    evaluation = Evaluation(plain, systems, corpus, side, slot, scorer, replying)
    found = evaluation.run()
    folder.mkdir(parents=True, exist_ok=True)
    write_output(folder, found, OmegaConf.to_yaml(OmegaConf.create(pathless(OmegaConf.to_container(cfg)))), loggers, console)
    return found.metrics


def _baseline(plain: dict[str, Any], systems: Sequence[System]) -> None:
    """Settle with which system the others are compared."""
    names = [system.name for system in systems]
    first = next((system.name for system in systems if system.round == 0), None)
    plain["baseline"] = plain["baseline"] or first or names[0]
    if plain["baseline"] not in names:
        raise UserError(f"baseline: there is no system {plain['baseline']} (there are {', '.join(names)})")
