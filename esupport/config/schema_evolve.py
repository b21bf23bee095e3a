"""Types and bounds of the keys that only ``evolve.py`` takes: see :mod:`schema`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from esupport.config.schema import Node, Objective, Own, Preference, Sampling, Share, StepSampling, Trains

SystemFigure = Literal["nll", "perplexity", "reply_tokens", "distinct_2", "repetition", "unfinished", "kl_start", "kl_sft"]


class Axis(Own):
    """:class:`esupport.reflection.method.Axis`."""

    target: str = Field(alias="_target_")
    question: str
    begun: str
    pattern: str
    from_turn: NonNegativeInt


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
    chosen: Literal["refined", "human"]
    form: Literal["axes", "json"]
    principles: str
    axes: dict[str, Axis | None]
    reflect: Step
    refine: Step


class Contexts(Own):
    """Which contexts a round works on."""

    per_round: PositiveInt | None
    per_conversation: PositiveInt
    turns: Literal["spread", "first", "last", "random"]
    first_turn: PositiveInt
    max_tokens: PositiveInt
    over_rounds: Literal["same", "disjoint"]
    seed: NonNegativeInt


class Drift(Own):
    """Bounds beyond which replies are said to drift; None for no bound."""

    length_ratio: PositiveFloat | None
    repetition: Share | None
    kl: PositiveFloat | None
    unfinished: Share | None
    stop: bool


class Evolution(Own):
    """The loop, and what is drafted, shown and warned of."""

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


class Evolve(Trains):
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
