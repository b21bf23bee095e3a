"""A conversation rendered by a chat template into what the model reads (context) and what it must say (completion).

Right by construction: a context is tokenised as inference tokenises it, a completion is exactly the ids that follow
it, and only completions are ever scored. No mask is searched for in the finished text.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from esupport.data.conversation import Conversation
from esupport.data.preference import Context
from esupport.errors import DataFault, UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
_PROBE = "Xylophone"  # a reply no template contains


@dataclass(frozen=True)
class Response:
    """One response to score.

    Attributes:
        context: token ids of everything before the reply, the generation prompt included.
        completion: token ids of the reply and its end-of-turn token; all of them are targets.
        turn: index of the turn in its conversation.
    """

    context: tuple[int, ...]
    completion: tuple[int, ...]
    turn: int

    @property
    def ids(self) -> tuple[int, ...]:
        """Context and completion."""
        return self.context + self.completion


@dataclass(frozen=True)
class Rendered:
    """The responses of a conversation, and what did not fit.

    Attributes:
        responses: the supporter's turns, in order; empty where not even one fits.
        cut_turns: turns lost at the conversation's beginning.
        lost_replies: supporter turns that can no longer be learnt, because they or what they answer were cut.
    """

    responses: tuple[Response, ...]
    cut_turns: int = 0
    lost_replies: int = 0


class Renderer:
    """Renders conversations with a tokenizer's own chat template.

    Args:
        tokenizer: any tokenizer with a chat template.
        instruction: the task instruction P; a conversation's own instruction takes its place.
        instruction_in: ``system``, or ``first_user`` for templates without a system role, or that move it.
        template_kwargs: passed to the template, as ``enable_thinking: false``.
        max_tokens: bound on context and completion together.

    Raises:
        UserError: the template cannot be used: it alters replies, writes text before them, or does not end them
            with a special token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        instruction: str,
        instruction_in: Literal["system", "first_user"],
        template_kwargs: Mapping[str, Any],
        max_tokens: int,
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise UserError("model: the tokenizer has no chat template; use an instruct model")
        self.tokenizer, self.instruction, self.instruction_in = tokenizer, instruction, instruction_in
        self.template_kwargs, self.max_tokens = dict(template_kwargs), max_tokens
        self._control = _control_tokens(tokenizer)
        # the shortest first would match inside the longest: "<s>" in "<s>x"
        longest_first = sorted(self._control, key=len, reverse=True)
        self._smuggled = re.compile("|".join(re.escape(token) for token in longest_first) or r"(?!)")
        if self._smuggled.search(instruction):
            raise UserError("rendering.instruction: contains a control token of the model")
        refusal = self._refusal("system", "user") if instruction_in == "system" else None
        if refusal:
            raise UserError(f"model.instruction_in: the chat template takes no system message ({refusal}); use first_user")
        self._lead, self._end, self.end_of_turn = self._probe()
        self.keeps_opening = self._refusal("assistant", "user") is None  # those that insist on turns refuse

    def identity(self) -> dict[str, Any]:
        """What, besides the tokenizer's files, decides how messages are rendered."""
        return {"instruction_in": self.instruction_in, "template_kwargs": self.template_kwargs}

    @cached_property
    def contents(self) -> dict[str, Any]:
        """All that decides the token ids of a conversation, the tokenizer by content."""
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}
        return {**self.identity(), "instruction": self.instruction, "max_tokens": self.max_tokens, "tokenizer": files}

    def _probe(self) -> tuple[str, str, int]:
        """What the template writes before and after a reply, and the id of the token that ends the turn."""
        asked = [{"role": "user", "content": "Hello"}]
        before = self.text(asked)
        whole = self.text([*asked, {"role": "assistant", "content": _PROBE}], generate=False)
        lead, reply, end = whole.removeprefix(before).partition(_PROBE)
        if not whole.startswith(before) or not reply:
            raise UserError("model: the chat template does not put a reply where its generation prompt ends")
        if lead.strip():
            raise UserError(f"model.template_kwargs: the chat template writes {lead!r} before each reply")
        ids = self._tokenise([end])[0]
        if not ids or ids[0] not in self._control.values():
            raise UserError(f"model: the chat template ends a reply with {end!r}, which is no special token")
        return lead, end, ids[0]

    def _refusal(self, *roles: str) -> str | None:
        """Why the template takes no conversation of these roles, in its own words; None where it does."""
        try:
            self.text([{"role": role, "content": "Hello"} for role in roles])
        except Exception as error:
            return first_line(error)
        return None

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    def text(self, messages: list[Message], generate: bool = True) -> str:
        """The rendered context of ``messages``, with the generation prompt or without."""
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generate, **self.template_kwargs
        )
        return str(text)

    def prompt(self, messages: Sequence[Message], begun: str = "") -> list[int]:
        """Token ids of chat messages and, where one is given, of the answer's beginning.

        A system message goes where instructions go for this template.
        """
        first, *rest = messages
        if first["role"] == "system" and self.instruction_in == "first_user":
            messages = self._into_first_user(first["content"], rest)
        return self._tokenise([self.text(list(messages)) + begun])[0]

    @cached_property
    def line_breaks(self) -> list[int]:
        """The tokens that hold a line break."""
        texts = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
        return [i for i, text in enumerate(texts) if "\n" in text]

    def messages(self, conversation: Conversation, upto: int, start: int = 0) -> list[Message]:
        """Chat messages of turns ``start`` to ``upto`` (exclusive) with the instruction where it belongs."""
        said = [turn for turn in conversation.turns[start:upto] if turn.text]
        if said and said[0].role == "supporter" and not self.keeps_opening:
            said = said[1:]
        messages: list[Message] = []
        for turn in said:
            role = "user" if turn.role == "seeker" else "assistant"
            if messages and messages[-1]["role"] == role:  # an unwritten supporter turn stood between
                messages[-1] = {"role": role, "content": f"{messages[-1]['content']} {turn.text}"}
            else:
                messages.append({"role": role, "content": turn.text})
        instruction = self.instruction if conversation.instruction is None else conversation.instruction
        if not instruction:
            return messages
        if self.instruction_in == "system":
            return [{"role": "system", "content": instruction}, *messages]
        return self._into_first_user(instruction, messages)

    @staticmethod
    def _into_first_user(instruction: str, messages: list[Message]) -> list[Message]:
        first = next(i for i, message in enumerate(messages) if message["role"] == "user")
        content = f"{instruction}\n\n{messages[first]['content']}"
        return [*messages[:first], {"role": "user", "content": content}, *messages[first + 1 :]]

    def context_messages(self, context: Context) -> list[Message]:
        """Chat messages of a context: P and what was said."""
        return self.messages(context.answered(""), len(context.turns))

    def respond(self, conversation: Conversation, replies: list[tuple[int, str]], start: int = 0) -> list[Response]:
        """Responses ``(turn, reply)`` to the context before that turn, each exactly as inference would see it."""
        if not replies:
            return []
        prompts = [self.text(self.messages(conversation, turn, start)) for turn, _ in replies]
        tails = [f"{self._lead}{reply}{self._end}" for _, reply in replies]
        contexts = self._tokenise(prompts)
        wholes = self._tokenise([prompt + tail for prompt, tail in zip(prompts, tails, strict=True)])
        responses = []
        for (turn, _), context, whole, tail in zip(replies, contexts, wholes, tails, strict=True):
            if whole[: len(context)] == context:
                completion = whole[len(context) :]
            else:  # a merge over the boundary: inference sees the context alone, so the reply is tokenised alone
                completion = self._tokenise([tail])[0]
                if str(self.tokenizer.decode(completion)).strip() != tail.strip():
                    raise DataFault(conversation.id, f"turns.{turn}.text", "the tokenizer does not give back this text")
            stop = len(completion) - completion[::-1].index(self.end_of_turn)
            responses.append(Response(tuple(context), tuple(completion[:stop]), turn))
        return responses

    def render(self, conversation: Conversation) -> Rendered:
        """The supporter's turns of a conversation as responses, its oldest turns dropped, whole, until it fits."""
        self.refuse_control_tokens(conversation)
        turns = conversation.supporter_turns()
        # a last reply too long for any context is given up, so that it does not take the others with it
        for count in range(len(turns), 0, -1):
            for start in self.starts(conversation, turns[count - 1]):
                last = self.respond(conversation, [(turns[count - 1], conversation.turns[turns[count - 1]].text)], start)
                if len(last[0].ids) <= self.max_tokens:
                    kept = [turn for turn in turns[: count - 1] if turn > start]
                    earlier = self.respond(conversation, [(turn, conversation.turns[turn].text) for turn in kept], start)
                    fitting = tuple(r for r in [*earlier, *last] if len(r.ids) <= self.max_tokens)
                    return Rendered(fitting, start, len(turns) - len(fitting))
        return Rendered((), len(conversation.turns), len(turns))

    @staticmethod
    def starts(conversation: Conversation, before: int) -> list[int]:
        """Where the context of turn ``before`` may begin: at the first turn, then at each later seeker turn."""
        return [0, *(i for i in range(1, before) if conversation.turns[i].role == "seeker")]

    def refuse_control_tokens(self, conversation: Conversation) -> None:
        """Raises ``DataFault`` where a text of the conversation holds a token that means something to the model."""
        texts = {f"turns.{index}.text": turn.text for index, turn in enumerate(conversation.turns)}
        for name, text in {**texts, "instruction": conversation.instruction or ""}.items():
            found = self._smuggled.search(text)
            if found:
                raise DataFault(conversation.id, name, f"contains the control token {found.group()!r}")


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Tokens with a meaning of their own: special ones, and added ones that the chat template writes (``<think>``).

    Other added tokens are text: Gemma's hold runs of newlines and HTML tags.
    """
    template = str(tokenizer.chat_template)
    added = tokenizer.added_tokens_decoder.items()
    return {t.content: i for i, t in added if t.special or (t.content.strip() and t.content in template)}
