"""The job of ``evolve.py``: phase 1, then rounds of self-reflection and preference training."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from esupport.config.resolvers import output_dir
from esupport.config.schema_evolve import Evolve
from esupport.data.sides import write_learnt_from
from esupport.evolution.contexts import choose
from esupport.evolution.exam import Exam
from esupport.evolution.learning import Learner
from esupport.evolution.ledger import Ledger
from esupport.evolution.output import Output
from esupport.evolution.rounds import Evolution
from esupport.evolution.writing import Writer
from esupport.generators.protocol import Generator, Sampling
from esupport.models.backbone import Backbone
from esupport.models.slot import Slot
from esupport.reflection.method import Method, Speaker
from esupport.rendering.contexts import spread_contexts
from esupport.store import write_atomically
from esupport.training.environment import begin, device_of, make, make_generator, make_loggers, scorer_of, store_of, told
from esupport.training.prepare import prepare
from esupport.training.report import show_data
from esupport.training.resume import refuse_other_settings


@told
def evolve_job(cfg: DictConfig) -> Any:
    """Run the method as ``cfg`` says; returns the last system's figure named by ``optimized_metric``, for a sweep."""
    return evolve(cfg)[-1].get(cfg.optimized_metric)


def evolve(cfg: DictConfig) -> list[dict[str, Any]]:
    """Phase 1 and all rounds; every stage is made once and kept in the store, so that a stopped run goes on.

    Args:
        cfg: the composed configuration of ``conf/evolve.yaml``.

    Returns:
        The figures of ``metrics.json``: a list of systems M0, M1, ...

    Raises:
        UserError: for anything the user can mend.
    """
    plain = begin("evolve", cfg)
    console, folder = Console(), Path(output_dir())
    refuse_other_settings(plain, folder)
    folder.mkdir(parents=True, exist_ok=True)

    store = store_of(plain)
    ledger = Ledger(store, folder)
    backbone: Backbone = make(plain["model"], "model")
    method: Method = make(plain["reflection"], "reflection")
    prepared = prepare(plain, backbone)
    show_data(console, prepared, plain["batching"]["tokens_per_batch"])
    slot = Slot(backbone, plain["seed"], device_of(plain["trainer"]))
    scorer = scorer_of(plain, slot, store)
    writer = Writer(store, ledger, _speakers(plain, slot, prepared.renderer), console)
    for by in ("policy", *(step.by for step in method.steps.values())):
        writer.speaker(by)
    for name, node in plain["filters"].items():
        if node:
            make(node, f"filters.{name}")  # a setting that cannot be is told before anything runs
    write_atomically(folder / "config.yaml", OmegaConf.to_yaml(cfg))
    for gives, side in (("data", prepared.learnt), ("replay", prepared.replayed)):
        if side is not None:
            ledger.add(side.stage, 0, gives)
    trains = plain["evolution"]["rounds"] > 0 or not backbone.adapter
    write_learnt_from(folder, prepared.learnt if trains else None, backbone.adapter)
    loggers = make_loggers(plain, lambda: _one_wandb_run(folder))
    learner = Learner(plain, prepared, slot, store, scorer, loggers, console)
    output = Output(folder, console, loggers, ledger, plain["evolution"]["samples"])

    if backbone.adapter:
        first = Path(backbone.adapter).expanduser()
        console.print("Phase 1 is skipped: model.adapter is M0.", markup=False)
        ledger.given("M0", first)
    else:
        console.rule("Phase 1: supervised fine-tuning, to M0")
        trained = ledger.add(learner.phase_1(), 0, "M0", ledger.keys("data", "replay"))
        if trained.reused:
            console.print("M0 was there already.")
        first = trained.folder / "adapter"
    output.adapter(first, "sft/adapter")

    typed = Evolve.model_validate(plain)
    sampling = dict(plain["samples"])
    count = sampling.pop("contexts")
    held_out = spread_contexts(prepared.corpora["valid"].kept, count, 1, prepared.renderer, typed.contexts.max_tokens)
    exam = Exam(
        held_out=prepared.corpora["valid"],
        contexts=held_out,
        sampling=Sampling(**sampling),
        seed=plain["seed"],
        renderer=prepared.renderer,
        writer=writer,
        scorer=scorer,
        drift=typed.evolution.drift,
    )
    contexts, human = choose(prepared.corpora["train"].kept, typed.contexts, typed.evolution.rounds, prepared.renderer)
    systems = Evolution(typed.evolution, method, contexts, human, writer, learner, exam, output).run(first)
    output.end(systems)
    return systems


def _speakers(plain: dict[str, Any], slot: Slot, renderer: Any) -> dict[Speaker, Generator]:
    """Who speaks as M_t, as the backbone without an adapter, and as the teacher."""
    generator: Generator = make_generator(plain["generator"], "generator", slot, renderer)
    speakers: dict[Speaker, Generator] = {"policy": generator, "base": generator}
    if plain["teacher"]:
        speakers["teacher"] = make_generator(plain["teacher"], "teacher", slot, renderer)
    return speakers


def _one_wandb_run(folder: Path) -> dict[str, Any]:
    """The id that all interruptions of this run share."""
    kept = folder / ".wandb_id"
    if not kept.exists():
        write_atomically(kept, secrets.token_hex(4))
    return {"id": kept.read_text(), "resume": "allow"}
