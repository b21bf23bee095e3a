"""Texts written by a chat server that speaks OpenAI's protocol: vLLM, SGLang, Ollama, llama.cpp, or a hosted one."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

from esupport.errors import UserError, first_line
from esupport.generators.protocol import BrokenOff, Reply, Request, in_pieces, reply_of

if TYPE_CHECKING:
    from openai import APIError, AsyncOpenAI

_BATCHES = 8  # requests of a batch for each one in flight: workers wait for each other only at its end
_SEEDS = 2**31  # llama.cpp takes 32 bits, others 64 with a sign


class OpenAIServer:
    """Asks a server, several requests at a time. It cannot speak as M_t, whose adapter the server does not have.

    Args:
        base_url: where the server listens, up to ``/v1``.
        model: its name on the server.
        revision: of the model behind the name; another one has all asked anew.
        api_key_env: environment variable that holds the key; local servers need none.
        concurrency: requests in flight.
        timeout_s: longest wait for one answer.
        max_retries: after a time-out, a broken connection and the status codes 408, 409, 429 and 5xx, with growing pauses.
        prefill: how an answer's beginning is given: ``continue`` as an assistant message to go on from (vLLM, SGLang,
            llama.cpp), ``instruct`` as a sentence that asks for it (any server).
        extra: further fields of the request; null takes a field away.

    Raises:
        UserError: the package is missing, or the address holds a secret.
    """

    serves_policy = False
    independent = True

    def __init__(
        self,
        base_url: str,
        model: str,
        revision: str | None,
        api_key_env: str,
        concurrency: int,
        timeout_s: float,
        max_retries: int,
        prefill: Literal["continue", "instruct"],
        extra: Mapping[str, Any],
    ) -> None:
        if importlib.util.find_spec("openai") is None:
            raise UserError("generator: the package openai is not installed; run: pip install -e '.[openai]'")
        address = urlsplit(base_url)
        if address.username or address.password or address.query:  # messages show the address
            raise UserError("base_url: an address without a key; name its variable in api_key_env")
        if address.scheme not in ("http", "https") or not address.hostname or address.port == 0:
            raise UserError(f"base_url: should be like http://host:8000/v1 (given: {base_url})")
        self.base_url, self.name, self.revision, self.api_key_env = base_url, model, revision, api_key_env
        self.concurrency, self.timeout_s, self.max_retries = concurrency, timeout_s, max_retries
        self.prefill = prefill
        self.extra = dict(extra)
        for library in ("httpx", "httpx2"):  # a line for each request, with its address
            logging.getLogger(library).setLevel(logging.WARNING)

    def identity(self) -> dict[str, Any]:
        """The model and what is asked of it, wherever it runs."""
        known = {"revision": self.revision} if self.revision else {}
        return {"generator": "openai", "model": self.name, "extra": self.extra, "prefill": self.prefill, **known}

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Pieces in the given order."""
        return in_pieces(len(requests), self.concurrency * _BATCHES)

    def write(self, requests: Sequence[Request], adapter: Path | None) -> list[Reply]:
        """Replies to one planned batch; the first lasting failure ends it and takes back what is still in flight."""
        if adapter is not None:
            raise UserError(
                f"generator: {self.name} is on a server, which does not have the adapter of M_t; use generator=transformers "
                "or generator=vllm here"
            )
        replies: dict[int, Reply] = {}
        try:
            asyncio.run(self._all(requests, replies))
            return [replies[number] for number in range(len(requests))]
        except* UserError as failures:
            failure = failures.exceptions[0]
        raise BrokenOff(str(failure), replies) from None

    async def _all(self, requests: Sequence[Request], replies: dict[int, Reply]) -> None:
        from openai import AsyncOpenAI

        gate = asyncio.Semaphore(self.concurrency)
        async with AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._key() or "none",  # the client insists on one
            timeout=self.timeout_s,
            max_retries=self.max_retries,
        ) as client:

            async def one(number: int, request: Request) -> None:
                async with gate:
                    replies[number] = await self._ask(client, request)

            async with asyncio.TaskGroup() as group:
                for number, request in enumerate(requests):
                    group.create_task(one(number, request))

    async def _ask(self, client: AsyncOpenAI, request: Request) -> Reply:
        from openai import APIError

        try:
            answer = await client.chat.completions.create(
                model=self.name, messages=cast(Any, self._messages(request)), extra_body=self._fields(request)
            )
            choice = answer.choices[0]
            tokens = answer.usage.completion_tokens if answer.usage else None
            return self._reply(request, choice.message.content or "", tokens, choice.finish_reason == "stop")
        except APIError as error:
            raise self._failure(error) from None
        except (ValueError, TypeError, AttributeError, IndexError):  # no JSON, or JSON of another form
            raise UserError(f"{self._where('base_url')} does not answer with a chat completion") from None

    def _messages(self, request: Request) -> list[dict[str, str]]:
        messages = list(request.messages)
        if not request.begun:
            return messages
        if self.prefill == "continue":
            return [*messages, {"role": "assistant", "content": request.begun}]
        asked = f"{messages[-1]['content']}\n\nBegin your answer with exactly these words: {request.begun}"
        return [*messages[:-1], {"role": messages[-1]["role"], "content": asked}]

    def _fields(self, request: Request) -> dict[str, Any]:
        """Of the request, beside model and messages. All go by ``extra_body``, so that ``extra`` can take one away."""
        sampling = request.sampling
        fields: dict[str, Any] = {
            "max_tokens": sampling.max_new_tokens,  # Ollama ignores max_completion_tokens, the others take both
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed % _SEEDS,
        }
        continued = bool(request.begun) and self.prefill == "continue"
        if sampling.one_line and not continued:  # behind its beginning, a reply may start with a line break
            fields["stop"] = ["\n"]
        if continued:
            fields |= {"continue_final_message": True, "add_generation_prompt": False}
        return {name: value for name, value in {**fields, **self.extra}.items() if value is not None}

    def _reply(self, request: Request, text: str, tokens: int | None, ended: bool) -> Reply:
        tokens = len(text.split()) if tokens is None else tokens
        if self.prefill == "instruct":
            said = text.strip()
            text = said.removeprefix(request.begun.strip())
            text = f" {said}" if text == said else text  # it went on without repeating the beginning
        return reply_of(request, text, tokens, ended and bool(text.strip()))

    def _failure(self, error: APIError) -> UserError:
        """What went wrong for good, in one line that names the key to mend and never shows the server's."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        if isinstance(error, APITimeoutError):
            tried = f"{self.max_retries + 1} times" if self.max_retries else "once"
            return UserError(f"{self._where('timeout_s')} did not answer within {self.timeout_s:g} s, asked {tried}")
        if isinstance(error, APIConnectionError):
            return UserError(f"{self._where('base_url')} cannot be reached: {self._plain(error.__cause__ or error)}")
        status = error.status_code if isinstance(error, APIStatusError) else None
        if status == 401:  # servers repeat parts of the key
            held = "refuses the key" if self._key() else "asks for a key, and there is none"
            return UserError(f"{self._where('api_key_env')} {held} in ${self.api_key_env}")
        said = error.body.get("message") if isinstance(error.body, dict) else None
        key = "model" if status == 404 and said else "base_url"  # without words, the path itself was not found
        return UserError(f"{self._where(key)} answers {status}: {self._plain(said or error)}")

    def _where(self, key: str) -> str:
        return f"{key}: {self.name} at {self.base_url}"

    def _plain(self, said: Any) -> str:
        line = first_line(said if isinstance(said, BaseException) else Exception(said))[:200]
        return line.replace(self._key(), "***") if self._key() else line

    def _key(self) -> str:
        return os.environ.get(self.api_key_env, "").strip()
