"""A simulated seeker: a model that plays a person of the data by a role card, and what of its answer the seeker says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from esupport.data.conversation import Conversation, Turn
from esupport.evaluation.judge.quoting import harmless, person, spoken
from esupport.generators.protocol import Request, Sampling, seed_of
from esupport.reflection import prompts
from esupport.reflection.parsing import without_thoughts
from esupport.rendering.template import Renderer

_EDGE = r"[\s|*_>#\"“”-]*"  # of quoting, markdown and quotation marks
_OWN = re.compile(rf"{_EDGE}(?:the\s+)?(?:seeker|user|client)[*_]*\s*(?:\([^)\n]*\))?\s*:[*_]*", re.IGNORECASE)
# a label in the midst of a line counts where it is written as one: "my supporter: nobody" is the seeker's own
_OTHER = re.compile(
    rf"(?:^|\n){_EDGE}(?i:supporter|assistant|therapist|counsell?or|listener|seeker|user|client)[*_]*\s*:"
    r"|[\s|*_\"“”]+(?:Supporter|Assistant|Seeker)[*_]*\s*:"
)
_QUOTED = re.compile(r"[\"“]([^\"“”]*)[\"”]")


@dataclass(frozen=True)
class Seeker:
    """A seeker group.

    Args:
        principles: stand before every request, as the system message.
        prompt: Jinja2 template of the user message. What it sees of the card and of what was said is quoted already.
        begun: the beginning of the answer.
        sampling: how an answer is sampled.
        turns: messages of the seeker, each followed by a reply.
        retries: attempts after the first, for an answer without words of the seeker.
        seed: of the sampling.

    Raises:
        UserError: the prompt is no template.
    """

    principles: str
    prompt: str
    begun: str
    sampling: Sampling
    turns: int
    retries: int
    seed: int

    def __post_init__(self) -> None:
        prompts.check("seeker.prompt", self.prompt)

    def request(self, card: Conversation, said: Sequence[Turn], renderer: Renderer) -> Request | None:
        """The seeker's next message, the oldest exchanges dropped until it fits; None where not even the last one does.

        Of the card only what is known of the person is shown. Systems that said the same get the same request.

        Args:
            card: whom it plays.
            said: turns so far, the seeker's and the supporter's in turn.
            renderer: counts the tokens; request and answer together are bound by its ``max_tokens``.
        """
        id_ = f"{card.id}/{len(said)}"
        for start in range(0, max(len(said), 1), 2):
            seen = {"person": person(card), "transcript": spoken(said[start:])}
            messages = prompts.chat(self.principles, prompts.render("seeker.prompt", self.prompt, seen))
            if len(renderer.prompt(messages, self.begun)) + self.sampling.max_new_tokens <= renderer.max_tokens:
                return Request(id_, card.id, messages, self.begun, self.sampling, seed_of(self.seed, "seeker", id_))
        return None


def message_of(answer: str) -> str:
    """What the seeker says in an answer: without thoughts, its own label and quotation marks, cut where another turn begins.

    Empty where no word is left, as in an answer that is the supporter's from its beginning.
    """
    text = without_thoughts(answer).strip()
    while found := _OWN.match(text):
        text = text[found.end() :].strip()
    text = _OTHER.split(text, maxsplit=1)[0].strip().removeprefix("|").strip()
    quotation = _QUOTED.fullmatch(text)
    text = quotation[1].strip() if quotation else text
    return harmless(text) if re.search(r"\w", text) else ""
