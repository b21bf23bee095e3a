"""What the processes of a benchmark work on: one description, handed to this project and to its peer alike.

Nothing is set here that ``conf/`` sets: a field that is None leaves the project's default alone. This module imports no
torch, so that the process that only waits for the others stays small.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from esupport.config import command_line
from esupport.config.check import check_types

Layout = Literal["pair", "turn", "conversation"]
_BATCHES = {"cpu": (1, 2, 4), "cuda": (1, 2, 4, 8, 16)}


@dataclass(frozen=True)
class Peer:
    """The peer's own settings: they may change time and memory, never what is learnt.

    Args:
        layout: what one row of it holds: a preference pair, a supporter turn with all before it, or a whole conversation.
        batch: its rows in one forward; for generation, its requests in one batch.
        padding_free: its rows behind each other in place of padding.
        merged: for generation, the adapter added into the weights before it writes.
        targets_only: its fused head scores targets alone on a CPU too, where it scores every position: a setting that TRL
            does not have, to tell what of a ratio is owed to that.
        further: more keys of its configuration.
    """

    layout: Layout = "turn"
    batch: int = 1
    padding_free: bool = False
    merged: bool = False
    targets_only: bool = False
    further: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The settings in words."""
        said = [f"batch {self.batch}"]
        said += ["padding-free"] if self.padding_free else []
        said += ["adapter merged"] if self.merged else []
        said += ["head on targets only"] if self.targets_only else []
        return ", ".join(said + [f"{key}={value}" for key, value in self.further.items()])


_ALIKE = ("model.lora.dropout=0", "replay.ratio=0")  # what one side drops or replays the other does not


@dataclass(frozen=True)
class Work:
    """A model, data, and how they are computed with.

    Args:
        model: a file of ``conf/model``.
        data: a file of conversations; None for the shipped ones.
        form: the file's reader, a file of ``conf/data``.
        overrides: further Hydra overrides of this project's settings.
        device: ``cpu`` or ``cuda``.
        bf16: frozen weights and arithmetic in bfloat16, the adapter in float32; else all in float32.
        checkpointing: recompute whole layers in the backward pass, on both sides; else each side's own default.
        shape: the model's weights are drawn in these shapes (keys of a Llama configuration) and not read.
    """

    model: str
    data: str | None = None
    form: str = "esconv"
    overrides: tuple[str, ...] = ()
    device: Literal["cpu", "cuda"] = "cpu"
    bf16: bool = False
    checkpointing: bool = False
    shape: dict[str, Any] | None = None

    @property
    def batches(self) -> tuple[int, ...]:
        """Rows in a forward of the peer's among which it is tuned."""
        return _BATCHES[self.device]

    def _settings(self) -> list[str]:
        """Overrides that every benchmark has."""
        read = [f"data={self.form}", f"data.path={json.dumps(self.data)}"] if self.data else []
        return [
            f"model={self.model}",
            *read,
            "logger=none",
            f"trainer={'gpu' if self.device == 'cuda' else 'cpu'}",
            f"trainer.precision={'bf16-mixed' if self.bf16 else '32-true'}",
            f"model.dtype={'bfloat16' if self.bf16 else 'float32'}",
            *(["model.gradient_checkpointing=full"] if self.checkpointing else []),
        ]


@dataclass(frozen=True)
class Training(Work):
    """Some optimizer steps of training.

    Args:
        task: ``dpo`` or ``sft``.
        steps: optimizer steps that are counted.
        warmup: optimizer steps before them, which are not.
        per_step: conversations in an optimizer step; None for the project's default.
        turns: supporter turns of each conversation; None for the median of the data.
        held_out: conversations whose replies both sides score before and after.
        length: tokens of a drawn conversation, in place of data; see :func:`benchmarks.material.drawn`.
        chosen: of a pair: ``other``, another conversation's reply, as the rejected one is (refined replies and drafts are in
            no conversation), or ``human``, which a tree row has on its trunk already.
    """

    task: Literal["dpo", "sft"] = "dpo"
    steps: int = 2
    warmup: int = 1
    per_step: int | None = None
    turns: int | None = None
    held_out: int = 2
    length: int | None = None
    chosen: Literal["other", "human"] = "other"

    def plain(self) -> dict[str, Any]:
        """The project's settings for this work, resolved."""
        steady = ["objective.scheduler=null"]  # both sides keep the learning rate
        # the peer's mean over chosen tokens is another figure than ours, so the loss stands alone
        loss = ["objective.nll_weight=0"] if self.task == "dpo" else []
        step = [f"batching.conversations_per_step={self.per_step}"] if self.per_step else []
        config = "evolve" if self.task == "dpo" else "train"  # each trains where its command trains it
        return composed(config, [*self._settings(), *_ALIKE, f"objective={self.task}", *steady, *loss, *step, *self.overrides])


@dataclass(frozen=True)
class Writing(Work):
    """Drafts, reflections and refinements of all supporter turns of some conversations.

    Args:
        conversations: how many.
        sampled: as the method samples; else the likeliest token each time, so that texts can be compared.
    """

    conversations: int = 4
    sampled: bool = False

    def plain(self) -> dict[str, Any]:
        """The project's settings for this work, resolved."""
        contexts = [
            "contexts.per_round=null",
            "contexts.per_conversation=1000",  # all of them
            "contexts.max_tokens=${rendering.max_tokens}",
            "contexts.over_rounds=same",
            f"data.limit={self.conversations}",
        ]
        return composed("evolve", [*self._settings(), *_ALIKE, *contexts, *self.overrides])


@dataclass(frozen=True)
class Planning(Work):
    """An epoch of data without a model: read, rendered, planned into steps and batches. ``data`` is a file of records."""

    def plain(self) -> dict[str, Any]:
        """The project's settings for this work, resolved."""
        return composed("train", [*self._settings(), *_ALIKE, "data.split=seed", *self.overrides])


@dataclass(frozen=True)
class Evolving(Work):
    """A whole run of ``evolve.py``, as it is unless overridden."""

    def settings(self) -> list[str]:
        """Overrides of ``conf/evolve.yaml``."""
        return [*self._settings(), *self.overrides]

    def plain(self) -> dict[str, Any]:
        """The project's settings for this work, resolved."""
        return composed("evolve", self.settings())


def composed(config: str, overrides: list[str]) -> dict[str, Any]:
    """``conf/CONFIG.yaml`` with overrides, checked and resolved. Raises ``UserError`` for what it does not know."""
    return check_types(config, command_line.composed(config, overrides))
