"""Data for a run: read, divide, render, and count, before any weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hydra.utils import instantiate

from esupport.data.conversation import Conversation
from esupport.data.preference import Context
from esupport.data.source import Source, Splits
from esupport.errors import DataFault, UserError
from esupport.models.backbone import Backbone
from esupport.rendering.contexts import middle_contexts
from esupport.rendering.corpus import Corpus, render_all
from esupport.rendering.datamodule import RowDataModule
from esupport.rendering.pairs import render_pairs
from esupport.rendering.template import Renderer


@dataclass(frozen=True)
class Prepared:
    """What a run trains and is measured on.

    Attributes:
        renderer: renders contexts as the rows were rendered.
        corpora: train, valid, replay and replay_valid as rows.
        faults: of records that were skipped.
        duplicates: copies of conversations that were left out.
    """

    renderer: Renderer
    corpora: dict[str, Corpus]
    faults: list[DataFault]
    duplicates: int

    def held_out_contexts(self, count: int) -> list[tuple[Context, Conversation]]:
        """At most ``count`` held-out contexts, with the conversations they come from."""
        return middle_contexts(self.corpora["valid"].kept, count, self.renderer, self.renderer.max_tokens)

    def datamodule(self, plain: dict[str, Any]) -> RowDataModule:
        """The loaders of this data under the run's settings."""
        return RowDataModule(self.corpora, **plain["batching"], replay_ratio=plain["replay"]["ratio"], seed=plain["seed"])


def prepare(plain: dict[str, Any], backbone: Backbone) -> Prepared:
    """Read and render the conversations and the replay examples of a run.

    Raises:
        UserError: data or tokenizer cannot be used, or nothing is left to train on or to hold out.
    """
    renderer = Renderer(
        backbone.tokenizer(),
        instruction_in=backbone.instruction_in,
        template_kwargs=backbone.template_kwargs,
        **plain["rendering"],
    )
    source: Source = instantiate(plain["data"])
    splits = source.read("data")
    for side in ("train", "valid"):
        if not splits.side(side):
            raise UserError(f"data.split: there is nothing on the side {side}; data.split=seed draws it, by data.fractions")
    corpora = {s: render_all(s, splits.side(s), renderer, source.on_error, splits.where) for s in ("train", "valid")}
    faults = list(splits.skipped)
    if source.pairs:  # the conversations are held out only
        learnt, held_out, skipped = source.read_pairs("data")
        corpora["train"] = render_pairs("train", learnt, renderer, source.on_error)
        corpora["pairs_valid"] = render_pairs("pairs_valid", held_out, renderer, source.on_error)
        faults += skipped
    for side in ("train", "valid"):
        if not corpora[side].units:
            raise UserError(f"rendering.max_tokens: no reply of the side {side} fits, or none could be used")
    replayed = _replay(plain["replay"]) if plain["replay"]["ratio"] else Splits()
    for name, examples in (("replay", [] if source.pairs else replayed.train), ("replay_valid", replayed.valid)):
        corpora[name] = render_all(name, examples, renderer, plain["replay"]["source"]["on_error"], replayed.where)
    faults += [*replayed.skipped, *(fault for corpus in corpora.values() for fault in corpus.skipped)]
    return Prepared(renderer, corpora, faults, splits.duplicates)


def _replay(settings: dict[str, Any]) -> Splits:
    """Instruction examples; without a system message of their own they have none, not the task instruction."""
    source: Source = instantiate(settings["source"])
    splits = source.read("replay.source")
    for side in ("train", "valid", "test"):
        examples = splits.side(side)
        examples[:] = [e if e.instruction is not None else e.model_copy(update={"instruction": ""}) for e in examples]
    return splits
