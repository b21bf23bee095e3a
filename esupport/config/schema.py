"""Types and bounds of the project's own keys. Nodes of other libraries are bound to their signatures in :mod:`binding`.

No default stands here: values come from ``conf/`` alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Figure = Literal["val/nll_after", "val/perplexity_after", "val/replay_nll_after", "val/replay_perplexity_after"]


class Own(BaseModel):
    """A node whose keys are all the project's: others are refused, and no text passes for a number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Node(BaseModel):
    """A node of another library: any key beside ``_target_``."""

    model_config = ConfigDict(extra="allow", strict=True)
    target: str = Field(alias="_target_")


class Partial(Node):
    """A node that the code completes."""

    partial: Literal[True] = Field(alias="_partial_")


class Optimizer(Partial):
    """An optimizer; the code adds the parameters."""

    lr: PositiveFloat


class Lora(Own):
    """:class:`esupport.models.backbone.Lora`."""

    target: str = Field(alias="_target_")
    r: PositiveInt
    alpha: PositiveFloat
    dropout: Annotated[float, Field(ge=0, lt=1)]
    targets: str | list[str]
    rslora: bool
    dora: bool


class Backbone(Own):
    """:class:`esupport.models.backbone.Backbone`."""

    target: str = Field(alias="_target_")
    name: str
    path: str | None
    revision: str
    builder: Partial | None
    gated: bool
    dtype: Literal["float32", "bfloat16", "float16"]
    attn_implementation: Literal["sdpa", "eager"]
    load_in_4bit: bool
    gradient_checkpointing: bool
    instruction_in: Literal["system", "first_user"]
    template_kwargs: dict[str, Any]
    learning_rate: PositiveFloat
    adapter: str | None
    lora: Lora

    @model_validator(mode="after")
    def _one_origin(self) -> Backbone:
        if self.path is not None and self.builder is not None:
            raise ValueError(f"{self.name} is built on this machine; for another model use model=hub model.path={self.path}")
        if self.path is None and self.builder is None:
            raise ValueError("needs a path: model.path=...")
        return self


class Fractions(Own):
    """Share of the conversations on each side."""

    train: Share
    valid: Share
    test: Share

    @model_validator(mode="after")
    def _at_most_all(self) -> Fractions:
        if self.train + self.valid + self.test > 1 + 1e-9:
            raise ValueError("train, valid and test together are more than 1")
        return self


class Source(Own):
    """:class:`esupport.data.source.Source`."""

    target: str = Field(alias="_target_")
    path: str
    parse: Partial
    split: Literal["auto", "published", "seed"]
    fractions: Fractions
    seed: NonNegativeInt
    on_error: Literal["stop", "skip"]
    limit: PositiveInt | None


class Objective(Own):
    """:class:`esupport.objectives.module.Objective`."""

    target: str = Field(alias="_target_")
    partial: Literal[True] = Field(alias="_partial_")
    optimizer: Optimizer
    scheduler: Partial | None
    warmup: Share
    gradient_clip: PositiveFloat | None
    seed: NonNegativeInt


class Trainer(Node):
    """The keys of pytorch_lightning.Trainer that users set most; the others are bound to its signature."""

    max_epochs: int | None
    max_steps: int
    log_every_n_steps: PositiveInt
    val_check_interval: float | int
    deterministic: bool | Literal["warn"]
    devices: int | str | list[int]
    accelerator: str
    strategy: str | Node


class Rendering(Own):
    """What :class:`esupport.rendering.template.Renderer` takes from the run."""

    instruction: str
    max_tokens: PositiveInt


class Batching(Own):
    """What :class:`esupport.rendering.datamodule.RowDataModule` takes."""

    conversations_per_step: PositiveInt
    tokens_per_batch: PositiveInt


class Replay(Own):
    """Instruction examples that keep general ability."""

    ratio: NonNegativeFloat
    source: Source


class Samples(Own):
    """Replies shown at the end."""

    contexts: NonNegativeInt
    max_new_tokens: PositiveInt
    temperature: NonNegativeFloat
    top_p: Annotated[float, Field(gt=0, le=1)]


class Paths(Own):
    """Where things are kept."""

    outputs: str
    cache: str


class Train(Own):
    """``conf/train.yaml``."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    name: str | None
    resume: str | None
    optimized_metric: Figure
    rendering: Rendering
    batching: Batching
    replay: Replay
    samples: Samples
    paths: Paths
    model: Backbone
    data: Source
    objective: Objective
    trainer: Trainer
    callbacks: dict[str, Node | None]
    logger: dict[str, Node | None]
