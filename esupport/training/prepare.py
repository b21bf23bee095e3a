"""Data for a run: read, divide, render, and count, before any weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from esupport.data.conversation import Conversation
from esupport.data.sides import Side
from esupport.data.source import Source
from esupport.errors import DataFault, UserError
from esupport.models.backbone import Backbone
from esupport.rendering.conversations import render_all
from esupport.rendering.corpus import Corpus
from esupport.rendering.datamodule import RowDataModule
from esupport.rendering.pairs import render_read_pairs
from esupport.rendering.template import Renderer
from esupport.training.environment import make, store_of


@dataclass(frozen=True)
class Prepared:
    """What a run trains and is measured on.

    Attributes:
        renderer: renders contexts as the rows were rendered.
        corpora: train, valid, replay and replay_valid as rows.
        faults: of records that were skipped.
        duplicates: copies of conversations that were left out.
        learnt: the conversations that are learnt from; None where given pairs are.
        replayed: the instruction examples that are learnt from beside them, if any are.
    """

    renderer: Renderer
    corpora: dict[str, Corpus]
    faults: list[DataFault]
    duplicates: int
    learnt: Side[Conversation] | None
    replayed: Side[Conversation] | None

    def datamodule(self, plain: dict[str, Any]) -> RowDataModule:
        """The loaders of this data under the run's settings."""
        return RowDataModule(self.corpora, **plain["batching"], replay_ratio=plain["replay"]["ratio"], seed=plain["seed"])


def renderer_of(plain: dict[str, Any], backbone: Backbone) -> Renderer:
    """The backbone's chat template under the run's settings."""
    return Renderer(
        backbone.tokenizer(),
        instruction_in=backbone.instruction_in,
        template_kwargs=backbone.template_kwargs,
        **plain["rendering"],
    )


def prepare(plain: dict[str, Any], backbone: Backbone) -> Prepared:
    """Read and render the conversations and the replay examples of a run.

    Raises:
        UserError: data or tokenizer cannot be used, or nothing is left to train on or to hold out.
    """
    renderer = renderer_of(plain, backbone)
    store = store_of(plain)
    source: Source = make(plain["data"], "data")
    splits = source.read("data", store)
    for side in ("train", "valid"):
        if not splits.side(side):
            raise UserError(f"data.split: there is nothing on the side {side}; data.split=seed draws it, by data.fractions")
    corpora = {s: render_all(s, splits.side(s), renderer, source.on_error, store) for s in ("train", "valid")}
    faults = list(splits.skipped)
    if source.pairs:  # the conversations are held out only
        pairs = source.read_pairs("data", store)
        for name, learnt in (("train", pairs.train), ("pairs_valid", pairs.valid)):
            corpora[name] = render_read_pairs(name, learnt, renderer, source.on_error, store)
        faults += pairs.skipped
    for side in ("train", "valid"):
        if not corpora[side].units:
            raise UserError(f"rendering.max_tokens: no reply of the side {side} fits, or none could be used")
    replayed = None
    if plain["replay"]["ratio"]:
        replay: Source = make(plain["replay"]["source"], "replay.source")
        # examples without a system message of their own have none, not the task instruction
        examples_of = replay.read("replay.source", store, instruction="")
        for name, examples in (("replay", examples_of.train), ("replay_valid", examples_of.valid)):
            if name == "replay_valid" or not source.pairs:
                corpora[name] = render_all(name, examples, renderer, replay.on_error, store)
        faults += examples_of.skipped
        replayed = None if source.pairs else examples_of.train
    faults += [fault for corpus in corpora.values() for fault in corpus.skipped]
    return Prepared(renderer, corpora, faults, splits.duplicates, None if source.pairs else splits.train, replayed)
