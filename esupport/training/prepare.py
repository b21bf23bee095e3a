"""Data for a run: read, divide, render, and count, before any weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hydra.utils import instantiate

from esupport.data.conversation import Conversation
from esupport.data.source import Source, Splits
from esupport.errors import UserError
from esupport.models.backbone import Backbone
from esupport.rendering.corpus import Corpus, render_all
from esupport.rendering.datamodule import RowDataModule
from esupport.rendering.template import Renderer


@dataclass(frozen=True)
class Prepared:
    """What a run trains and is measured on.

    Attributes:
        renderer: renders contexts as the rows were rendered.
        corpora: train, valid, replay and replay_valid as rows.
        valid: the held-out conversations, for sample contexts.
        source: how reading went: faults skipped, copies left out.
    """

    renderer: Renderer
    corpora: dict[str, Corpus]
    valid: list[Conversation]
    source: Splits

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
    splits = source.read()
    corpora = {side: render_all(side, splits.side(side), renderer, source.on_error) for side in ("train", "valid")}
    for side in ("train", "valid"):
        if not corpora[side].units:
            raise UserError(f"data: no conversation is left on the side {side}: see data.fractions and rendering.max_tokens")
    replayed = _replay(plain["replay"]) if plain["replay"]["ratio"] else Splits()
    corpora["replay"] = render_all("replay", replayed.train, renderer, source.on_error)
    corpora["replay_valid"] = render_all("replay_valid", replayed.valid, renderer, source.on_error)
    return Prepared(renderer, corpora, splits.valid, splits)


def _replay(settings: dict[str, Any]) -> Splits:
    """Instruction examples; without a system message of their own they have none, not the task instruction."""
    source: Source = instantiate(settings["source"])
    splits = source.read()
    for side in ("train", "valid", "test"):
        examples = splits.side(side)
        examples[:] = [e if e.instruction is not None else e.model_copy(update={"instruction": ""}) for e in examples]
    return splits
