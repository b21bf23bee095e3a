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
SystemFigure = Literal["nll", "perplexity", "reply_tokens", "distinct_2", "repetition", "unfinished", "kl_start", "kl_sft"]
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
    gradient_checkpointing: bool
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
    """What both commands take."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    name: str | None
    rendering: Rendering
    batching: Batching
    replay: Replay
    samples: Samples
    paths: Paths
    model: Backbone
    data: Source
    trainer: Trainer
    callbacks: dict[str, Node | None]
    logger: dict[str, Node | None]


class Train(Common):
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


class Axis(Own):
    """:class:`esupport.reflection.method.Axis`."""

    target: str = Field(alias="_target_")
    question: str
    begun: str
    pattern: str
    from_turn: NonNegativeInt


class StepSampling(Sampling):
    """A node of :class:`esupport.generators.protocol.Sampling`."""

    target: str = Field(alias="_target_")


class Step(Own):
    """:class:`esupport.reflection.method.Step`."""

    target: str = Field(alias="_target_")
    by: Literal["policy", "base", "teacher"]
    prompt: str
    begun: str
    sampling: StepSampling
    retries: NonNegativeInt


class Reflection(Own):
    """:class:`esupport.reflection.method.Method`."""

    target: str = Field(alias="_target_")
    convert: Literal["object"] = Field(alias="_convert_")
    chosen: Literal["refined", "human"]
    form: Literal["axes", "json"]
    principles: str
    axes: dict[str, Axis | None]
    reflect: Step
    refine: Step


class Contexts(Own):
    """:class:`esupport.evolution.contexts.Choice`."""

    target: str = Field(alias="_target_")
    per_round: PositiveInt | None
    per_conversation: PositiveInt
    turns: Literal["spread", "first", "last", "random"]
    first_turn: PositiveInt
    max_tokens: PositiveInt
    over_rounds: Literal["same", "disjoint"]
    seed: NonNegativeInt


class Drift(Own):
    """:class:`esupport.evolution.exam.Drift`."""

    length_ratio: PositiveFloat | None
    repetition: Share | None
    kl: PositiveFloat | None
    unfinished: Share | None
    stop: bool


class Evolution(Own):
    """The loop: :class:`esupport.evolution.rounds.Settings`, and what is drafted, shown and warned of."""

    rounds: NonNegativeInt
    start: Literal["previous", "sft"]
    reference: Literal["round_start", "sft", "base"]
    pairs: Literal["current", "cumulative"]
    epochs: PositiveInt | list[PositiveInt]
    seed: NonNegativeInt
    samples: NonNegativeInt
    draft: Sampling
    drift: Drift


class Phase1(Own):
    """Phase 1."""

    objective: Objective


class Evolve(Common):
    """``conf/evolve.yaml``."""

    optimized_metric: SystemFigure
    sft: Phase1
    evolution: Evolution
    contexts: Contexts
    objective: Preference
    reflection: Reflection
    generator: Node
    teacher: Node | None
    filters: dict[str, Node | None]

    @model_validator(mode="after")
    def _makes_its_own_pairs(self) -> Evolve:
        if self.data.pairs is not None:
            raise ValueError("evolve.py makes its own pairs; data.pairs is for train.py objective=dpo")
        return self

    @model_validator(mode="after")
    def _a_value_a_round(self) -> Evolve:
        for key, value in (
            ("evolution.epochs", self.evolution.epochs),
            ("objective.optimizer.lr", self.objective.optimizer.lr),
            ("objective.loss.beta", self.objective.loss.beta),
        ):
            if isinstance(value, list) and len(value) != self.evolution.rounds:
                raise ValueError(f"{key} has {len(value)} values for {self.evolution.rounds} rounds")
        return self
