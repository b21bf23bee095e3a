"""Types and bounds of the project's own keys. Nodes of other libraries are bound to their signatures in :mod:`binding`.

No default stands here: values come from ``conf/`` alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

Share = Annotated[float, Field(ge=0, le=1)]
Figure = Literal[
    "val/nll_after",
    "val/perplexity_after",
    "val/replay_nll_after",
    "val/replay_perplexity_after",
    "val/preference_loss_after",
]
NucleusShare = Annotated[float, Field(gt=0, le=1)]


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
    """An optimizer; the code adds the parameters. In ``evolve.py``, the rate may be a list with a value a round."""

    lr: PositiveFloat | list[PositiveFloat]


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
    load_in_4bit: bool
    gradient_checkpointing: Literal["none", "selective", "full"]
    instruction_in: Literal["system", "first_user"]
    template_kwargs: dict[str, Any]
    learning_rate: PositiveFloat
    preference_learning_rate: PositiveFloat
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
    pairs: str | None


class Objective(Own):
    """:class:`esupport.objectives.sft.SupervisedFineTuning`."""

    target: str = Field(alias="_target_")
    partial: Literal[True] = Field(alias="_partial_")
    optimizer: Optimizer
    scheduler: Partial | None
    warmup: Share
    gradient_clip: PositiveFloat | None
    seed: NonNegativeInt
    monitor: str


class Loss(Partial):
    """One of :mod:`esupport.objectives.losses`; beta may be a list with a value a round."""

    beta: PositiveFloat | list[PositiveFloat]
    flipped: Annotated[float, Field(ge=0, lt=0.5)] | None = None


class Preference(Objective):
    """:class:`esupport.objectives.dpo.PreferenceOptimization`."""

    loss: Loss
    nll_weight: NonNegativeFloat
    chosen_fall: PositiveFloat | None


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


class Sampling(Own):
    """:class:`esupport.generators.protocol.Sampling`."""

    max_new_tokens: PositiveInt
    temperature: NonNegativeFloat
    top_p: NucleusShare
    one_line: bool


class Samples(Sampling):
    """Replies to held-out contexts."""

    contexts: NonNegativeInt


class Paths(Own):
    """Where things are kept."""

    outputs: str
    store: str
    cache: str


class Common(Own):
    """What all commands take."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    name: str | None
    rendering: Rendering
    paths: Paths
    model: Backbone
    data: Source
    trainer: Trainer
    logger: dict[str, Node | None]


class Trains(Common):
    """What the commands take that train."""

    batching: Batching
    replay: Replay
    samples: Samples
    callbacks: dict[str, Node | None]


class Train(Trains):
    """``conf/train.yaml``."""

    resume: str | None
    optimized_metric: Figure
    objective: Annotated[
        Annotated[Preference, Tag("dpo")] | Annotated[Objective, Tag("sft")],
        Discriminator(lambda node: "dpo" if isinstance(node, dict) and "loss" in node else "sft"),
    ]

    @model_validator(mode="after")
    def _pairs_are_for_preference(self) -> Train:
        if isinstance(self.objective, Preference):
            if self.data.pairs is None:
                raise ValueError("objective=dpo learns from pairs: data.pairs=FILE, or use evolve.py, which makes them")
            if isinstance(self.objective.optimizer.lr, list) or isinstance(self.objective.loss.beta, list):
                raise ValueError("a list with a value a round is for evolve.py")
        elif self.data.pairs is not None:
            raise ValueError("data.pairs is for objective=dpo")
        return self


class StepSampling(Sampling):
    """A node of :class:`esupport.generators.protocol.Sampling`."""

    target: str = Field(alias="_target_")
