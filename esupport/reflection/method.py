"""What a reflection group says: who is asked what about a context, in which form, and what becomes the chosen reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from esupport.data.preference import Context, Finding
from esupport.generators.protocol import Request, Sampling, seed_of
from esupport.reflection import prompts
from esupport.reflection.wording import regex
from esupport.rendering.template import Message

Speaker = Literal["policy", "base", "teacher"]


@dataclass(frozen=True)
class Axis:
    """One thing that is inferred of the person.

    Args:
        question: what is asked, in words; of form ``json`` too.
        begun: the beginning of the answer, in the form ``axes``.
        pattern: of the answer without ``begun``; its groups ``text`` and, if there is one, ``evidence`` are what is kept.
        from_turn: seeker turns that must have been said before it may be inferred.
    """

    question: str
    begun: str
    pattern: str
    from_turn: int


@dataclass(frozen=True)
class Step:
    """One request to a model.

    Args:
        by: M_t (``policy``), the backbone without its adapter (``base``), or the generator ``teacher``.
        prompt: Jinja2 template of the user message.
        begun: the beginning of the answer; a template too.
        sampling: how the answer is sampled.
        retries: attempts after the first, for an answer that cannot be used.
    """

    by: Speaker
    prompt: str
    begun: str
    sampling: Sampling
    retries: int


def deepest(contexts: Sequence[Context]) -> dict[str, Context]:
    """By its key, the deepest of a round's contexts that goes on from each: what is asked of both begins alike.

    From one of which older turns were cut, only those go on that begin as late.
    """
    told = {context.key: context.transcript() for context in contexts}
    of: dict[str, list[Context]] = {}
    for context in contexts:
        of.setdefault(context.conversation, []).append(context)

    def behind(context: Context) -> list[Context]:
        return [other for other in of[context.conversation] if told[other.key].startswith(told[context.key])]

    return {context.key: max(behind(context), key=lambda other: other.turn) for context in contexts}


@dataclass(frozen=True)
class Method:
    """A reflection group.

    Args:
        chosen: ``refined``, or ``human`` for the reply of the data (an ablation of the paper).
        form: ``axes`` asks for one axis at a time, with the answer begun; ``json`` asks for all at once as an object.
        principles: I of the paper, which stand before every request of both steps, as the system message.
        axes: what is inferred, by name; a null one is left out, and without any the draft is refined straight away.
        reflect: how it is asked for.
        refine: how the draft is refined; not asked where the human reply is chosen.

    Raises:
        UserError: a template or a pattern that cannot be used.
    """

    chosen: Literal["refined", "human"]
    form: Literal["axes", "json"]
    principles: str
    axes: Mapping[str, Axis | None]
    reflect: Step
    refine: Step

    def __post_init__(self) -> None:
        for name, step in self.steps.items():
            prompts.check(f"reflection.{name}.prompt", step.prompt)
            prompts.check(f"reflection.{name}.begun", step.begun)
        for name, axis in self.asked.items():
            regex(f"reflection.axes.{name}.pattern", axis.pattern, group="text")

    @property
    def asked(self) -> dict[str, Axis]:
        """The axes that are asked for."""
        return {name: axis for name, axis in self.axes.items() if axis}

    @property
    def steps(self) -> dict[str, Step]:
        """The steps that are taken beside the draft."""
        return {
            **({"reflect": self.reflect} if self.asked else {}),
            **({"refine": self.refine} if self.chosen == "refined" else {}),
        }

    def axes_of(self, context: Context) -> dict[str, Axis]:
        """The axes that may be inferred of a context of this length."""
        said = sum(turn.role == "seeker" for turn in context.turns)
        return {name: axis for name, axis in self.asked.items() if said >= axis.from_turn}

    def reflect_requests(self, context: Context, after: Context, draft: str, seed: Any, attempt: int) -> dict[str, Request]:
        """What is asked of a context, by axis; in the form ``json`` one request under the empty name.

        ``after`` is the deepest context that goes on from it (:func:`deepest`).
        """
        asked = self.axes_of(context)
        if self.form == "json" and asked:
            variables = {"axes": asked, "draft": draft}
            return {"": self._request("reflect", context, after, "", variables, None, seed, attempt)}
        return {
            name: self._request(
                "reflect", context, after, name, {"axes": {name: axis}, "draft": draft}, axis.begun, seed, attempt
            )
            for name, axis in asked.items()
        }

    def refine_request(
        self, context: Context, after: Context, draft: str, reflection: Mapping[str, Finding], seed: Any, attempt: int
    ) -> Request:
        """The refinement of a draft, given what was inferred; ``after`` as in :meth:`reflect_requests`."""
        known = {name: finding for name, finding in reflection.items() if finding.known and name in self.asked}
        variables = {"axes": self.asked, "draft": draft, "reflection": known}
        return self._request("refine", context, after, "", variables, None, seed, attempt)

    def _request(
        self,
        name: str,
        context: Context,
        after: Context,
        part: str,
        variables: Mapping[str, Any],
        begun: str | None,
        seed: Any,
        attempt: int,
    ) -> Request:
        step = self.steps[name]
        everything = {"form": self.form, "transcript": context.transcript(), "turns": context.turns, **variables}
        prompt = prompts.render(f"reflection.{name}.prompt", step.prompt, everything)
        if begun is None:
            begun = prompts.render(f"reflection.{name}.begun", step.begun, everything)
        return Request(
            id=f"{context.key}/{part}" if part else context.key,
            family=context.conversation,
            messages=prompts.chat(self.principles, prompt),
            begun=begun,
            sampling=step.sampling,
            seed=seed_of(seed, name, context.key, part, attempt),
            trunk=self._trunk(step, after),
        )

    def _trunk(self, step: Step, after: Context) -> tuple[Message, ...]:
        """The beginning of a prompt up to the end of the deepest transcript; none where other variables stand before that."""
        before, transcript, _ = step.prompt.partition("{{ transcript }}")
        if not transcript or "{" in before:
            return ()
        return prompts.chat(self.principles, before.lstrip() + after.transcript())
