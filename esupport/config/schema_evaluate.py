"""Types and bounds of the keys that only ``evaluate.py`` takes: see :mod:`schema`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from esupport.config.schema import Backbone, Common, Node, Own, Sampling, StepSampling


class EvaluatedContexts(Own):
    """What systems reply to: :func:`esupport.rendering.contexts.spread_contexts`."""

    conversations: PositiveInt | None
    per_conversation: PositiveInt | None
    max_tokens: PositiveInt
    history: Literal["human", "own"]


class Metrics(Own):
    """What automatic metrics need: :func:`esupport.evaluation.metrics.prepared.prepare`."""

    word_vectors: str | None
    bertscore: str | None
    breakdown_from: Annotated[int, Field(ge=2)]


class Scoring(Own):
    """Batches of likelihoods."""

    tokens_per_batch: PositiveInt


class Question(Own):
    """:class:`esupport.evaluation.judge.method.Question`."""

    target: str = Field(alias="_target_")
    prompt: str
    begun: str
    pattern: str


class Judge(Own):
    """:class:`esupport.evaluation.judge.method.Judge`."""

    target: str = Field(alias="_target_")
    generator: Node
    model: Backbone | None
    form: Literal["json", "one"]
    seed: NonNegativeInt
    retries: NonNegativeInt
    retry_temperature: NonNegativeFloat
    sampling: StepSampling
    refusal: str
    principles: str
    axes: dict[str, str | None]
    unhelpful: Annotated[int, Field(ge=0, le=5)]
    errors: dict[str, str] | None
    g_score: Question | None
    pairwise: Question
    rating: Question
    error: Question
    swap: Question
    dialogue: Question


class Seeker(Own):
    """:class:`esupport.comparison.seeker.Seeker`."""

    target: str = Field(alias="_target_")
    turns: PositiveInt
    seed: NonNegativeInt
    retries: NonNegativeInt
    sampling: StepSampling
    principles: str
    prompt: str
    begun: str


class Evaluate(Common):
    """``conf/evaluate.yaml``."""

    run: str | None
    systems: dict[str, str | None]
    baseline: str | None
    split: Literal["train", "valid", "test"]
    generator: Node
    server: Node | None
    judge: Judge | None
    judge_limit: PositiveInt
    agreement_with: list[str]
    safety: Node | None
    seeker: Seeker | None
    seeker_speaker: Node | None
    contexts: EvaluatedContexts
    sampling: Sampling
    metrics: Metrics
    batching: Scoring

    @model_validator(mode="after")
    def _what_a_judge_is_needed_for(self) -> Evaluate:
        if self.agreement_with and self.judge is None:
            raise ValueError("agreement_with: there is no judge to agree with; name one, judge=openai")
        if self.model.adapter is not None or self.data.pairs is not None:
            raise ValueError("model.adapter and data.pairs are for the other commands; an adapter is +systems.NAME=FOLDER here")
        return self
