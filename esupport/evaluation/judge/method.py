"""What a judge group says: who judges, by which rubric, in which words, and in which form the answer is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from esupport.errors import UserError
from esupport.evaluation.judge.answers import Read
from esupport.generators.protocol import Generator, Request, Sampling, seed_of
from esupport.models.backbone import Backbone
from esupport.models.slot import Slot
from esupport.reflection import prompts
from esupport.reflection.wording import regex
from esupport.rendering.template import Renderer
from esupport.store import key_of


@dataclass(frozen=True)
class Question:
    """One thing that is asked.

    Args:
        prompt: Jinja2 template of the user message. What it sees of people and replies is quoted already.
        begun: the beginning of the answer, in the form ``one``.
        pattern: of the answer behind it, in the form ``one``; its group ``answer`` is what is read.
    """

    prompt: str
    begun: str
    pattern: str


@dataclass(frozen=True)
class Asked:
    """A request, and how its answer is read."""

    request: Request
    read: Read


@dataclass(frozen=True)
class Judge:
    """A judge group.

    Args:
        generator: who judges; one in this process still lacks the model and its template.
        model: the judge's own model for such a generator; None for the run's backbone, without an adapter.
        form: ``json`` asks for all at once as an object; ``one`` for one thing at a time, with the answer begun.
        principles: stand before every request, as the system message.
        axes: what a reply is rated on from 1 to 5, by name; null leaves one out.
        errors: why a reply may be unhelpful, by name; None does not ask.
        unhelpful: replies are unhelpful up to this rating of the axis ``helpfulness``.
        refusal: pattern of an answer that refuses to judge; counted apart from one that cannot be read.
        g_score: a rating with the human reply shown, as NLPCC 2025 shared task 8 has it; None does not ask.
        pairwise, rating, error, dialogue, swap: the questions; ``error`` is asked in the form ``one``, else within
            ``rating``; ``dialogue`` is a rating of a whole conversation.
        sampling: how an answer is sampled.
        retries: attempts after the first, for an answer that cannot be used.
        retry_temperature: of those attempts, each with another seed.
        seed: of the sampling.

    Raises:
        UserError: a template or a pattern that cannot be used.
    """

    generator: Generator | Callable[..., Generator]
    model: Backbone | None
    form: Literal["json", "one"]
    principles: str
    axes: Mapping[str, str | None]
    errors: Mapping[str, str] | None
    unhelpful: int
    refusal: str
    g_score: Question | None
    pairwise: Question
    rating: Question
    error: Question
    dialogue: Question
    swap: Question
    sampling: Sampling
    retries: int
    retry_temperature: float
    seed: int

    def __post_init__(self) -> None:
        regex("judge.refusal", self.refusal)
        for name in ("g_score", "pairwise", "rating", "error", "dialogue", "swap"):
            question = getattr(self, name)
            if question is None:
                continue
            prompts.check(f"judge.{name}.prompt", question.prompt)
            regex(f"judge.{name}.pattern", question.pattern, group="answer")
        if self.errors and "helpfulness" not in self.asked_axes:
            raise UserError("judge.axes.helpfulness: tells which replies are unhelpful; without it, set judge.errors=null")

    @property
    def asked_axes(self) -> dict[str, str]:
        """The axes that are asked for, with their questions."""
        return {name: question for name, question in self.axes.items() if question}

    @property
    def speaker(self) -> Generator:
        """Who judges. Raises ``UserError`` where it lacks its model: see :meth:`speaking`."""
        if not hasattr(self.generator, "write"):
            raise UserError("judge.generator: judges in this process and was given no model")
        return cast(Generator, self.generator)

    def speaking(self, slot: Slot, renderer: Renderer) -> Judge:
        """The judge with a generator that is complete: one in this process gets its own model, or else ``slot``'s."""
        if hasattr(self.generator, "write"):
            return self
        if self.model is not None:
            own = self.model
            renderer = Renderer(own.tokenizer(), "", own.instruction_in, own.template_kwargs, renderer.max_tokens)
            slot = Slot(own, self.seed, slot.device)
        return replace(self, generator=cast(Any, self.generator)(slot=slot, renderer=renderer))

    def request(self, name: str, subject: str, family: str, variables: Mapping[str, Any]) -> Request:
        """The question ``name`` about ``subject``, which is told apart from others by its content: no system's name is in it.

        Args:
            name: of the question.
            subject: the context's key, or what stands for it.
            family: the conversation.
            variables: what the template sees beside form, axes and errors.
        """
        question: Question = getattr(self, name)
        seen = {"form": self.form, "axes": self.asked_axes, "errors": self.errors or {}, **variables}
        messages = prompts.chat(self.principles, prompts.render(f"judge.{name}.prompt", question.prompt, seen))
        begun = question.begun if self.form == "one" else ""
        id_ = f"{subject}/{name}/{key_of([messages, begun])}"
        return Request(id_, family, messages, begun, self.sampling, seed_of(self.seed, id_))

    def again(self, request: Request, attempt: int) -> Request:
        """The request of a later attempt: warmer, and with another seed; the first as it is."""
        if not attempt:
            return request
        warmer = replace(self.sampling, temperature=self.retry_temperature)
        return replace(request, sampling=warmer, seed=seed_of(request.seed, attempt))
