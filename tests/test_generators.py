"""Who writes texts: a server on loopback that misbehaves in every way, a function, vLLM's stand-in, and the model itself."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import conversation, small_model, tokenizer_for
from hydra.utils import instantiate
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from rich.console import Console
from speaking import SAMPLING, Local
from transformers import GenerationConfig

from esupport.errors import UserError
from esupport.generators.local import SeededSampling
from esupport.generators.protocol import Generator, Reply, Request, behind, seed_of
from esupport.generators.scripted import Scripted
from esupport.generators.server import OpenAIServer
from esupport.generators.stored import ask
from esupport.generators.vllm import VLLM
from esupport.models.forward import _BUCKETS
from esupport.rendering.template import Renderer
from esupport.store import Store, key_of

Body = dict[str, Any]
KEY = "sk-secret-0123456789"


def request(name: str = "a", words: str = "I lost my job.", begun: str = "", **sampling: Any) -> Request:
    messages = ({"role": "system", "content": "Listen."}, {"role": "user", "content": words})
    return Request(name, name, messages, begun, replace(SAMPLING, **sampling), seed_of(0, name))


def answer(text: str | None = "I am sorry.", reason: str = "stop", tokens: int | None = 4) -> Body:
    """What a server says when all is well."""
    usage = None if tokens is None else {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9}
    message = {"role": "assistant", "content": text}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "small",
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": usage,
    }


class Server(ThreadingHTTPServer):
    """Answers as ``behave(number of the call, body)`` says: a body, or a status with one and headers, or raw bytes.

    It counts the calls, and those under way at one time.
    """

    block_on_close = False  # calls that hang are left behind

    def __init__(self, behave: Callable[[int, Body], Any]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave, self.bodies, self.keys = behave, list[Body](), set[str | None]()
        self.now = self.most = 0
        self.lock = threading.Lock()

    def handle_error(self, *_: Any) -> None:
        """The client went away."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.bodies)
            self.server.bodies.append(body)
            self.server.keys.add(self.headers["Authorization"])
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        try:
            said = self.server.behave(number, body) if self.path == "/v1/chat/completions" else (404, {"detail": "Not Found"})
        finally:
            with self.server.lock:
                self.server.now -= 1
        status, content, headers = (*said, {})[:3] if isinstance(said, tuple) else (200, said, {})
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[OpenAIServer, Server]]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("ESUPPORT_TEST_KEY", KEY)
    servers = []

    def start(behave: Callable[[int, Body], Any], path: str = "/v1", **settings: Any) -> tuple[OpenAIServer, Server]:
        server = Server(behave)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        known = {"model": "small", "revision": None, "api_key_env": "ESUPPORT_TEST_KEY"}
        known |= {"concurrency": 4, "timeout_s": 5.0, "max_retries": 2}
        address = f"http://127.0.0.1:{server.server_port}{path}"
        return OpenAIServer(**{"base_url": address, "prefill": "instruct", "extra": {}, **known, **settings}), server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_server_is_sent_what_the_request_says(serving: Any) -> None:
    generator, server = serving(lambda number, body: answer())
    asked = request(one_line=True)
    assert generator.write([asked], None) == [Reply(text="I am sorry.", tokens=4, finished=True)]
    assert server.bodies == [
        {
            "model": "small",
            "messages": list(asked.messages),
            "max_tokens": 16,
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": asked.seed % 2**31,
            "stop": ["\n"],
        }
    ]
    assert server.keys == {f"Bearer {KEY}"}


def test_extra_fields_are_added_and_null_takes_one_away(serving: Any) -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "max_tokens": None, "max_completion_tokens": 20}
    generator, server = serving(lambda number, body: answer(), extra=extra)
    generator.write([request()], None)
    (body,) = server.bodies
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["max_completion_tokens"] == 20
    assert {"max_tokens", "stop"}.isdisjoint(body)
    assert key_of(generator.identity()) != key_of(serving(lambda *_: answer())[0].identity())
    assert not {"127.0.0.1", KEY} & set(json.dumps(generator.identity()).split('"'))


def test_an_answer_begun_is_gone_on_from_where_the_server_can(serving: Any) -> None:
    generator, server = serving(lambda number, body: answer("tired, she says."), prefill="continue")
    assert generator.write([request(begun="She is ")], None)[0].text == "tired, she says."
    (body,) = server.bodies
    assert body["messages"][-1] == {"role": "assistant", "content": "She is "}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    generator.write([request()], None)
    assert "continue_final_message" not in server.bodies[1]
    assert len(server.bodies[1]["messages"]) == 2


@pytest.mark.parametrize(
    ("said", "text"), [("She is tired.", "tired."), (" She is\ntired.", "tired."), ("tired.", "tired."), ("She is", "")]
)
def test_and_asked_for_elsewhere_and_cut_off_the_answer(serving: Any, said: str, text: str) -> None:
    generator, server = serving(lambda number, body: answer(said))
    (reply,) = generator.write([request(begun="She is ")], None)
    assert (reply.text, reply.finished) == (text, bool(text))
    asked = server.bodies[0]["messages"]
    assert [m["role"] for m in asked] == ["system", "user"]
    assert asked[-1]["content"].startswith("I lost my job.\n")
    assert asked[-1]["content"].endswith("She is ")


@pytest.mark.parametrize(
    ("said", "reply"),
    [
        (answer("I am", "length"), Reply(text="I am", tokens=4, finished=False)),
        (answer("I am sorry", tokens=None), Reply(text="I am sorry", tokens=3, finished=True)),
        (answer(None), Reply(text="", tokens=4, finished=False)),
        (answer(" \n", "stop", 1), Reply(text="", tokens=1, finished=False)),
        (answer(None, "content_filter", None), Reply(text="", tokens=0, finished=False)),
    ],
    ids=["length", "no usage", "null", "blank", "filtered"],
)
def test_what_a_server_may_answer(serving: Any, said: Body, reply: Reply) -> None:
    assert serving(lambda number, body: said)[0].write([request()], None) == [reply]


def test_a_server_that_ignores_the_stop_is_cut_at_the_line_break(serving: Any) -> None:
    generator, _ = serving(lambda number, body: answer("Tired.\nAnd more", "length"))
    assert generator.write([request(one_line=True)], None) == [Reply(text="Tired.", tokens=4, finished=True)]


def test_a_reply_that_was_begun_may_start_with_a_line_break(serving: Any) -> None:
    generator, server = serving(lambda number, body: answer("\nTired.\nAnd more", "length"), prefill="continue")
    assert generator.write([request(one_line=True, begun="Supporter:")], None)[0].text == " Tired."
    assert "stop" not in server.bodies[0], "it would end the reply before its first word"


def test_a_busy_server_is_asked_again_when_it_says(serving: Any) -> None:
    def behave(number: int, body: Body) -> Any:
        busy = {"error": {"message": "slow down"}}
        return (429, busy, {"Retry-After": "0.05"}) if number < 2 else answer()

    generator, server = serving(behave)
    started = time.monotonic()
    assert generator.write([request()], None)[0].finished
    assert len(server.bodies) == 3
    assert 0.1 <= time.monotonic() - started < 0.7, "the pauses are the server's"


@pytest.mark.parametrize("fault", ["500", "half", "hang"])
def test_a_passing_fault_is_asked_again(serving: Any, fault: str) -> None:
    def behave(number: int, body: Body) -> Any:
        if number:
            return answer()
        if fault == "hang":
            time.sleep(0.6)
        return {"500": (500, {"error": "oh"}), "half": (200, b'{"id": "1", "cho', {"Content-Length": "400"})}.get(fault, {})

    generator, server = serving(behave, timeout_s=0.3, max_retries=1)
    assert generator.write([request()], None)[0].text == "I am sorry."
    assert len(server.bodies) == 2
    assert server.bodies[0] == server.bodies[1], "the seed is the same"


def half(number: int, body: Body) -> Any:
    return 200, b'{"id": "1", "cho', {"Content-Length": "400"}


def hang(number: int, body: Body) -> Any:
    time.sleep(0.5)


def refuse(status: int, message: str) -> Callable[[int, Body], Any]:
    return lambda number, body: (status, {"error": {"message": message, "code": None}})


@pytest.mark.parametrize(
    ("behave", "said"),
    [
        (refuse(401, f"Incorrect API key provided: {KEY}"), "api_key_env.* refuses the key in \\$ESUPPORT_TEST_KEY"),
        (refuse(403, f"the key {KEY} may not\nat all"), r"answers 403: the key \*\*\* may not$"),
        (refuse(404, "The model `small` does not exist"), "model: .*answers 404: The model `small` does not exist"),
        (refuse(400, "seed: unknown"), "answers 400: seed: unknown"),
        (refuse(500, "out of memory"), "answers 500: out of memory"),
        (lambda *_: (502, b"<html>\nBad gateway"), "answers 502: "),
        (lambda *_: b'{"id": "1", "choices": [', "base_url: .*does not answer with a chat completion"),
        (lambda *_: {"error": {"message": "no"}}, "does not answer with a chat completion"),
        (lambda *_: answer(["parts"]), "does not answer with a chat completion"),  # type: ignore[arg-type]
        (lambda *_: (200, b"<html>Welcome", {"Content-Type": "text/html"}), "does not answer with a chat completion"),
        (half, "base_url: .*cannot be reached: peer closed connection"),
        (hang, "timeout_s: .*did not answer within 0.2 s, asked once"),
    ],
    ids=["401", "403", "404", "400", "500", "502", "broken JSON", "no choices", "no text", "a web page", "half", "hang"],
)
def test_a_lasting_failure_is_one_line_without_the_key(serving: Any, behave: Any, said: str) -> None:
    generator, server = serving(behave, timeout_s=0.2, max_retries=0)
    with pytest.raises(UserError, match=said) as caught:
        generator.write([request()], None)
    assert len(server.bodies) == 1
    line = str(caught.value)
    assert line.split(": ")[0] in ("base_url", "timeout_s", "api_key_env", "model"), "the key to mend"
    assert generator.base_url in line
    assert "\n" not in line
    assert KEY not in line


def test_a_wrong_path_and_a_closed_port_are_the_addresss_fault(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, server = serving(lambda *_: answer(), path="", max_retries=0)
    with pytest.raises(UserError, match=r"base_url: .*answers 404"):
        generator.write([request()], None)
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"base_url: .*cannot be reached"):
        generator.write([request()], None)
    monkeypatch.delenv("ESUPPORT_TEST_KEY")
    closed, server = serving(refuse(401, "a key, please"))
    with pytest.raises(UserError, match="asks for a key, and there is none in \\$ESUPPORT_TEST_KEY"):
        closed.write([request()], None)
    assert server.keys == {"Bearer none"}


def test_what_a_server_answered_before_it_failed_is_not_asked_again(serving: Any, tmp_path: Path) -> None:
    def behave(number: int, body: Body) -> Any:
        said = body["messages"][-1]["content"]
        return refuse(400, "too long")(number, body) if said == "number 5" and len(server.bodies) < 20 else answer(said)

    generator, server = serving(behave, concurrency=1, max_retries=0)
    store, requests = Store(tmp_path), [request(str(i), f"number {i}") for i in range(8)]
    with pytest.raises(UserError, match="answers 400: too long"):
        ask(store, "judge", generator, requests, None, Console(quiet=True))
    assert len(server.bodies) == 6
    server.bodies += [{}] * 20  # it has recovered
    _, replies = ask(store, "judge", generator, requests, None, Console(quiet=True))
    assert [reply.text for reply in replies] == [f"number {i}" for i in range(8)]
    assert [body["messages"][-1]["content"] for body in server.bodies[26:]] == ["number 5", "number 6", "number 7"]


def test_requests_in_flight_are_bounded_and_answers_stand_in_their_order(serving: Any, caplog: Any) -> None:
    def behave(number: int, body: Body) -> Any:
        time.sleep(0.06 if number % 2 else 0.02)
        return answer(body["messages"][-1]["content"])

    generator, server = serving(behave, concurrency=3)
    requests = [request(str(i), f"number {i}") for i in range(14)]
    with caplog.at_level(logging.INFO):
        replies = generator.write(requests, None)
    assert [reply.text for reply in replies] == [f"number {i}" for i in range(14)]
    assert server.most == 3
    assert len({body["seed"] for body in server.bodies}) == 14
    assert "127.0.0.1" not in caplog.text, "no line for each request"
    batches = generator.plan([request(str(i)) for i in range(50)])
    assert [len(batch) for batch in batches] == [24, 24, 2]
    assert [i for batch in batches for i in batch] == list(range(50))
    assert generator.plan([]) == []


def test_one_refusal_for_good_ends_the_batch_soon(serving: Any) -> None:
    def behave(number: int, body: Body) -> Any:
        if body["messages"][-1]["content"] == "number 5":
            return 400, {"error": {"message": "content too long"}}
        time.sleep(0.05)
        return answer()

    generator, server = serving(behave, concurrency=2)
    with pytest.raises(UserError, match="answers 400: content too long"):
        generator.write([request(str(i), f"number {i}") for i in range(20)], None)
    assert 6 <= len(server.bodies) <= 8


def test_a_server_cannot_speak_as_the_policy(serving: Any, tmp_path: Path) -> None:
    generator, server = serving(lambda number, body: answer())
    assert not generator.serves_policy
    with pytest.raises(UserError, match="does not have the adapter of M_t; use generator=transformers"):
        generator.write([request()], tmp_path)
    assert server.bodies == []


@pytest.mark.parametrize("address", ["http://me:word@host/v1", "http://host/v1?key=word", "localhost:8000/v1", "http:///v1"])
def test_an_address_is_one_and_holds_no_secret(serving: Any, address: str) -> None:
    with pytest.raises(UserError, match=r"^base_url: ") as caught:
        serving(lambda *_: answer(), base_url=address)
    assert "word" not in str(caught.value)


def test_a_missing_package_is_told_at_once(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[openai\]'"):
        serving(lambda *_: answer())
    with pytest.raises(UserError, match=r"pip install -e '\.\[vllm\]'"):
        vllm(SimpleNamespace(dora=False))


def echo(asked: Request, before: str) -> str:
    return f"{before} {asked.messages[-1]['content']}"


class Counting:
    def __call__(self, asked: Request) -> str:
        return str(len(asked.messages))


def test_a_function_can_pass_for_a_model(tmp_path: Path) -> None:
    node = {
        "_target_": "esupport.generators.scripted.Scripted",
        "answer": {"_target_": f"{__name__}.echo", "_partial_": True, "before": "You said:"},
        "rows": 3,
    }
    generator: Generator = instantiate(node)
    assert generator.serves_policy
    assert generator.write([request()], tmp_path) == [Reply(text="You said: I lost my job.", tokens=6, finished=True)]
    assert generator.plan([request(str(i)) for i in range(7)]) == [[0, 1, 2], [3, 4, 5], [6]]
    assert generator.identity() == {
        "generator": "scripted",
        "answer": f"{__name__}.echo",
        "keywords": {"before": "You said:"},
    }
    assert Scripted(partial(echo, before="x"), 3).identity() != generator.identity()
    assert Scripted(Counting(), 3).identity()["answer"] == f"{__name__}.Counting"
    json.dumps(generator.identity())


# vLLM's stand-in: what the code hands over comes back as the text
VLLM_ITSELF = """
from types import SimpleNamespace as Some

class SamplingParams(Some): pass

class LLM:
    started = []
    def __init__(self, **settings):
        if settings["max_model_len"] == 0:
            raise ValueError("max_model_len: no room\\nTrace")
        self.started.append(settings)
    def generate(self, prompts, params, lora_request, use_tqdm):
        lora = lora_request and (lora_request.name, lora_request.number, lora_request.path)
        said = [(p["prompt_token_ids"], s.__dict__, lora) for p, s in zip(prompts, params, strict=True)]
        return [Some(outputs=[Some(text=f" {one!r}", token_ids=[1, 2], finish_reason="stop")]) for one in said]
"""
VLLM_LORA = """
class LoRARequest:
    def __init__(self, name, number, path):
        self.name, self.number, self.path = name, number, path
"""


def vllm(lora: Any, **settings: Any) -> VLLM:
    def identity() -> dict[str, Any]:
        return {"weights": "w"}

    backbone = SimpleNamespace(
        name="small", folder="some/model", revision="main", dtype="float32", load_in_4bit=False, lora=lora, identity=identity
    )
    known = {"rows": 2, "gpu_memory_utilization": 0.5, "max_model_len": None, "max_lora_rank": 16, "tensor_parallel_size": 1}
    renderer: Any = SimpleNamespace(prompt=lambda messages, begun: [7, len(messages)], end_of_turn=2, identity=dict)
    return VLLM(slot=SimpleNamespace(backbone=backbone), renderer=renderer, **{**known, **settings})  # type: ignore[arg-type]


def test_vllm_is_given_ids_seeds_and_the_adapter_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "path" / "vllm" / "lora"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "request.py").write_text(VLLM_LORA)
    (package.parent / "__init__.py").write_text(VLLM_ITSELF)
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    adapters = [tmp_path / name for name in "abc"]
    for adapter, content in zip(adapters, ("one", "one", "other"), strict=True):
        adapter.mkdir()
        (adapter / "adapter_model.safetensors").write_text(content)
    generator = vllm(SimpleNamespace(dora=False))
    asked = [request("x"), request("y", one_line=True)]
    first, second = (eval(reply.text) for reply in generator.write(asked, None))
    params = {"max_tokens": 16, "temperature": 0.7, "top_p": 0.9, "stop_token_ids": [2]}
    assert first == ([7, 2], {**params, "seed": asked[0].seed, "stop": None}, None)
    assert second == ([7, 2], {**params, "seed": asked[1].seed, "stop": ["\n"]}, None)
    assert eval(generator.write([request("z", one_line=True, begun="She is")], None)[0].text)[1]["stop"] is None
    loras = [eval(generator.write(asked[:1], adapter)[0].text)[2] for adapter in adapters]
    assert loras[0][:2] == loras[1][:2] != loras[2][:2]
    assert all(0 < number < 2**31 for _, number, _ in loras)
    assert [path for _, _, path in loras] == list(map(str, adapters))
    assert generator.plan(asked * 2) == [[0, 1], [2, 3]]
    assert generator.identity() == {"generator": "vllm", "tensor_parallel_size": 1, "weights": "w"}
    with pytest.raises(UserError, match=r"generator: vLLM cannot load small: max_model_len: no room$"):
        vllm(SimpleNamespace(dora=False), max_model_len=0).write(asked, None)
    with pytest.raises(UserError, match=r"model\.lora\.dora"):
        vllm(SimpleNamespace(dora=True))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_text_does_not_depend_on_what_else_is_written(local: Local, temperature: float) -> None:
    requests = local.requests(temperature=temperature)
    together = local.written(requests)
    alone = [local.generator().write([asked], None)[0].text for asked in requests]
    assert alone == together
    assert local.written(requests[::-1], rows=5)[::-1] == together
    assert local.written(requests[2:7]) == together[2:7]
    assert len(set(together)) == len(together)


def test_greedy_texts_are_those_of_one_forward_after_another(local: Local) -> None:
    requests = local.requests(temperature=0.0)
    assert local.written(requests) == [local.plainly(asked) for asked in requests]


def test_the_adapter_is_spoken_with(local: Local, tmp_path: Path) -> None:
    policy = local.slot.load(None)
    fresh = {name: value.clone() for name, value in get_peft_model_state_dict(policy).items()}
    set_peft_model_state_dict(policy, {name: torch.full_like(value, 0.02) for name, value in fresh.items()})
    local.slot.backbone.save(policy, tmp_path)
    requests = local.requests(turns=2, temperature=0.0)
    taught = local.written(requests, adapter=tmp_path)
    assert taught == [local.plainly(asked, tmp_path) for asked in requests]
    untaught = local.written(requests)
    assert untaught == [local.plainly(asked) for asked in requests]
    assert sum(a != b for a, b in zip(taught, untaught, strict=True)) > len(requests) / 2


def test_the_seed_decides(local: Local) -> None:
    requests = local.requests()
    texts = local.written(requests)
    assert local.written(requests) == texts
    others = local.written([replace(asked, seed=asked.seed + 1) for asked in requests])
    assert not set(others) & set(texts)


def test_batches_are_a_plan_of_whole_families(local: Local) -> None:
    requests = [*local.requests(4), *local.requests(4, temperature=0.0)]
    for rows in (1, 4, 6, 16, 100):
        plan = local.generator(rows).plan(requests)
        assert plan == local.generator(rows).plan(requests)
        assert sorted(i for batch in plan for i in batch) == list(range(len(requests)))
        assert all(1 <= len(batch) <= rows for batch in plan)
        assert all(len({requests[i].sampling for i in batch}) == 1 for batch in plan)
        if rows >= 4:
            homes = Counter((requests[i].family, requests[i].sampling, number) for number, b in enumerate(plan) for i in b)
            assert set(homes.values()) == {4}, "a family of four stays together"
    named = [[requests[i].id for i in batch] for batch in local.generator(8).plan(requests[:16])]
    turned = [*requests[8:16], *requests[:8]]  # families in another order, each in its own
    assert [[turned[i].id for i in batch] for batch in local.generator(8).plan(turned)] == named
    assert local.generator().plan([]) == []


def test_never_fewer_than_four_rows_decode_and_a_family_is_read_once(local: Local) -> None:
    for count in (1, 2, 5):
        local.read.clear()
        local.generator().write(local.requests()[:count], None)
        assert {rows for rows, columns in local.read if columns == 1} == {max(4, count)}
        families = {asked.family for asked in local.requests()[:count]}
        assert sum(columns > 1 for _, columns in local.read) == len(families), "a trunk each, on which all prompts lie"
    family = [asked for asked in local.requests(turns=8) if asked.family == local.talks[0].id]
    assert len(family) >= 4
    local.read.clear()
    local.generator().write(family, None)
    prompts = [len(local.renderer.prompt(asked.messages)) for asked in family]
    assert sum(rows * columns for rows, columns in local.read if columns > 1) < sum(prompts) / 2


def test_one_reply_takes_as_many_forwards_as_it_has_tokens(local: Local) -> None:
    (asked,) = local.requests(max_new_tokens=60)[:1]
    with saying(local, local.renderer.end_of_turn, 3, rows=1):
        local.read.clear()
        (reply,) = local.generator().write([asked], None)
    assert (reply.tokens, reply.finished) == (3, True)
    assert len(local.read) == 4, "what fills the batch up is not waited for"


@pytest.mark.parametrize("bucket", [1, 512])
def test_branches_read_in_several_forwards_give_the_same_texts(
    local: Local, monkeypatch: pytest.MonkeyPatch, bucket: int
) -> None:
    """With forwards filled up to a bucket too, as on a GPU."""
    requests = [*local.requests(temperature=0.0, begun="You feel"), *local.requests(turns=1, temperature=0.0)]
    local.read.clear()
    at_once = local.written(requests, rows=100)
    forwards = len(local.read)
    monkeypatch.setitem(_BUCKETS, "cpu", bucket)
    monkeypatch.setattr("esupport.generators.prefill._PREFILL", 1)
    local.read.clear()
    assert local.written(requests, rows=100) == at_once
    assert len(local.read) > forwards


def asked_twice(local: Local) -> tuple[list[Request], list[Request]]:
    """Two questions about the same contexts, of which one step asks the first, a later one the second."""

    def asking(question: str) -> list[Request]:
        asked = []
        for told in local.requests(temperature=0.7):
            said = " ".join(message["content"] for message in told.messages)
            messages = ({"role": "system", "content": "Read."}, {"role": "user", "content": f"{said}\n\n{question}"})
            asked.append(replace(told, id=f"{told.id} {question}", messages=messages))
        longest = {
            told.family: max((a for a in asked if a.family == told.family), key=lambda a: len(str(a.messages)))
            for told in asked
        }
        trunks = {
            f: (a.messages[0], {"role": "user", "content": a.messages[1]["content"].removesuffix(f"\n\n{question}")})
            for f, a in longest.items()
        }
        return [replace(told, trunk=trunks[told.family]) for told in asked]

    return asking("Who is it?"), asking("What would help, and what would not?")


def texts_and_columns(local: Local, requests: list[Request], **others: Any) -> tuple[list[str], int]:
    """What is written, and how many tokens of prompts are read for it."""
    local.read.clear()
    texts = local.written(requests, rows=64, **others)
    return texts, sum(columns for _, columns in local.read if columns > 1)


@pytest.mark.parametrize("share", [1.0, 0.6, 0.0])
def test_a_later_step_reads_no_trunk_again_and_writes_the_same(local: Local, share: float) -> None:
    """What is held changes no text, whether it is all, some or nothing."""
    first, later = asked_twice(local)
    local.slot.load(None)
    alone, whole = texts_and_columns(local, later)
    trunks, size = {*local.slot.trunks}, sum(known.bytes for known in local.slot.trunks.values())
    assert len(trunks) == len(local.talks)
    local.slot.load(None)
    texts_and_columns(local, first, cache_gb=share * size / 1e9)
    held = {*local.slot.trunks}
    assert texts_and_columns(local, later, cache_gb=share * size / 1e9) == (alone, whole - sum(map(len, held)))
    assert held == trunks if share == 1 else held < trunks
    assert sum(known.bytes for known in local.slot.trunks.values()) <= share * size
    assert bool(held) == bool(share)


def test_what_is_held_is_of_the_weights_that_are_in_place(local: Local, tmp_path: Path) -> None:
    policy = local.slot.load(None)
    weights = get_peft_model_state_dict(policy)
    set_peft_model_state_dict(policy, {name: torch.full_like(value, 0.02) for name, value in weights.items()})
    local.slot.backbone.save(policy, tmp_path)
    first, later = asked_twice(local)
    alone, whole = texts_and_columns(local, later, adapter=tmp_path)
    assert texts_and_columns(local, later, adapter=tmp_path) == (alone, whole - sum(map(len, local.slot.trunks)))
    texts_and_columns(local, first)
    assert texts_and_columns(local, later, adapter=tmp_path) == (alone, whole), "others spoke in between"
    assert local.slot.trunks
    policy = local.slot.load(tmp_path)
    assert not local.slot.trunks, "who trains has the memory"
    set_peft_model_state_dict(policy, {name: torch.full_like(value, 0.05) for name, value in weights.items()})
    assert texts_and_columns(local, later, adapter=tmp_path) == (alone, whole), "and what was trained is put back"


def test_a_trunk_gives_equal_bits_whether_it_was_held_or_read(local: Local) -> None:
    """Scores behind prompts, not texts alone: a step that goes on after a kill reads what the whole one had held."""
    first, later = asked_twice(local)
    scores = []

    def seen(*given: Any) -> torch.Tensor:
        scores.append(given[1].clone())
        return given[1].argmax(-1)

    for before in (first, []):
        local.slot.load(None)
        local.written(before, rows=64)
        assert bool(local.slot.trunks) == bool(before)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SeededSampling, "__call__", seen)
            local.written(later, rows=64)
    half = len(scores) // 2
    assert half > 1
    assert all(torch.equal(one, two) for one, two in zip(scores[:half], scores[half:], strict=True))


def test_what_is_held_keeps_nothing_larger_in_memory(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_BUCKETS, "cpu", 512)
    local.slot.load(None)
    local.written(asked_twice(local)[0], rows=64)
    kept = [states for known in local.slot.trunks.values() for states in (known.hidden, *chain(*known.layers.values()))]
    assert kept
    assert sum(states.untyped_storage().nbytes() for states in kept) == sum(k.bytes for k in local.slot.trunks.values())


def test_it_is_told_once_that_the_cache_is_full(local: Local, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = asked_twice(local)
    for cache_gb, told in ((1e-6, 1), (1.0, 0), (0.0, 0)):
        local.slot.load(None)
        caplog.clear()
        local.written(first, rows=4, cache_gb=cache_gb)
        assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["generator.trunk_cache_gb"] * told


def test_the_trunk_is_no_part_of_what_is_asked(tmp_path: Path) -> None:
    store, console = Store(tmp_path), Console(quiet=True)
    asked = [request("a"), request("b")]
    scripted = Scripted(lambda one: one.id, rows=1)
    ask(store, "draft", scripted, asked, None, console)
    stage, _ = ask(store, "draft", scripted, [replace(one, trunk=one.messages) for one in asked], None, console)
    assert stage.reused


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 0.9), (1.0, 0.5), (1.5, 1.0)])
def test_tokens_are_drawn_from_the_nucleus(local: Local, temperature: float, top_p: float) -> None:
    """Of 1024 replies of one token: none outside the nucleus, and chi-square within 4 standard deviations."""
    (asked,) = local.requests(max_new_tokens=1, temperature=temperature, top_p=top_p)[:1]
    draws = [replace(asked, id=str(i), seed=seed_of("draw", i)) for i in range(1024)]
    found = Counter(local.written(draws, rows=512))
    with torch.no_grad(), local.slot.speaking(None) as policy:
        ids = torch.tensor([local.renderer.prompt(asked.messages)])
        exact = (policy(input_ids=ids, use_cache=False).logits[0, -1].double() / temperature).softmax(-1)
    ranked, order = exact.sort(descending=True)
    kept = ranked.cumsum(-1) - ranked < top_p
    expected: Counter[str] = Counter()  # tokens that read alike are one
    for token, p in zip(order[kept].tolist(), (ranked[kept] / ranked[kept].sum()).tolist(), strict=True):
        expected[local.renderer.tokenizer.decode([token], skip_special_tokens=True).strip()] += p * len(draws)
    assert set(found) <= set(expected)
    assert len(expected) > 5
    cells = [(found[text], count) for text, count in expected.items() if count >= 5]
    rest = len(draws) - sum(c for _, c in cells)
    if rest > 5:
        cells.append((len(draws) - sum(f for f, _ in cells), rest))
    square = sum((f - c) ** 2 / c for f, c in cells)
    free = len(cells) - 1
    assert square < free + 4 * (2 * free) ** 0.5


@pytest.mark.parametrize(("begun", "text", "whole"), [
    ("I hear", " you.\n", "I hear you."),
    ("I hear", "d you.", "I heard you."),
    ("I hear ", " you.", "I hear you."),
    ("Supporter:", "\nI hear you.", "Supporter: I hear you."),
    ("", " I hear you. ", "I hear you."),
    ("I hear", " \n", "I hear"),
])  # fmt: skip
def test_a_beginning_and_what_was_written_behind_it_make_one_text(begun: str, text: str, whole: str) -> None:
    assert begun + behind(begun, text) == whole


def test_an_answer_begun_by_the_caller_goes_on(local: Local) -> None:
    requests = local.requests(turns=2, begun="You feel", temperature=0.0)
    texts = local.written(requests)
    assert texts == [local.plainly(asked) for asked in requests]
    assert texts != local.written(local.requests(turns=2, temperature=0.0))
    assert not any(text.startswith("You feel") for text in texts)


@contextmanager
def saying(local: Local, token: int, *steps: int, rows: int | None = None) -> Iterator[None]:
    """The model says a token at these steps of the next batch, in all rows or the first ones, and nowhere else."""
    step = iter(range(1000))

    def said(module: Any, args: Any, scores: torch.Tensor) -> torch.Tensor:
        by = torch.full((len(scores), 1), -1000.0)
        if next(step) in steps:
            by[:rows] = 1000.0
        return scores + by * torch.nn.functional.one_hot(torch.tensor(token), scores.shape[-1])

    with local.slot.speaking(None) as policy:
        hook = policy.get_base_model().lm_head.register_forward_hook(said)
    yield
    hook.remove()


def test_one_line_ends_at_a_line_break_that_something_stands_before(local: Local) -> None:
    (line_break,) = local.renderer.tokenizer("\n", add_special_tokens=False)["input_ids"]
    with saying(local, line_break, 0, 1, 5):
        whole = local.generator().write(local.requests(), None)
    with saying(local, line_break, 0, 1, 5):
        lines = local.generator().write(local.requests(one_line=True), None)
    assert all("\n" in reply.text and (reply.tokens, reply.finished) == (8, False) for reply in whole)
    assert all((reply.tokens, reply.finished) == (6, True) for reply in lines)
    assert [reply.text for reply in lines] == [reply.text.partition("\n")[0].strip() for reply in whole]
    assert all(reply.text for reply in lines)


def test_a_reply_ends_with_its_turn_or_is_unfinished(local: Local) -> None:
    requests = local.requests(temperature=0.0)[:2]
    with saying(local, local.renderer.end_of_turn, 5):
        ended = local.generator().write(requests, None)
    with saying(local, local.renderer.end_of_turn):
        unending = local.generator().write(requests, None)
    assert [(reply.tokens, reply.finished) for reply in ended + unending] == [(5, True)] * 2 + [(8, False)] * 2
    assert all(long.text.startswith(short.text) for short, long in zip(ended, unending, strict=True))


def test_what_the_request_does_not_ask_for_is_not_taken_from_the_models_own_file(local: Local) -> None:
    """Qwen's generation_config.json has a repetition penalty."""
    requests = local.requests()
    texts = local.written(requests)
    with local.slot.speaking(None) as policy:
        own = policy.generation_config
        policy.generation_config = GenerationConfig(repetition_penalty=1.5, no_repeat_ngram_size=1)
    try:
        assert local.written(requests) == texts
    finally:
        policy.generation_config = own


def test_equal_scores_are_drawn_from_alike_whoever_stands_beside() -> None:
    """Scores of bfloat16 are often equal; a neighbour whose nucleus is wide takes another way."""
    scores = (torch.randn(1, 2048, generator=torch.Generator().manual_seed(0)) * 2).round()
    wide = torch.zeros(1, 2048)
    for seed in range(20):
        asked = [replace(request(name), seed=seed) for name in "ab"]
        alone = SeededSampling(asked[:1])(scores, [0])
        beside = SeededSampling(asked)(torch.cat([scores, wide]), [0, 1])
        assert alone[0] == beside[0]


def windowed(family: str, window: int | None, talks: int) -> Local:
    """A small random model with a window of 24, or another."""
    model = small_model(family)
    if window:
        model.config.sliding_window = window
    policy = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    named = SimpleNamespace(name=family, identity=dict)
    slot = SimpleNamespace(speaking=lambda adapter: nullcontext(policy), backbone=named, trunks={})
    renderer = Renderer(tokenizer_for("qwen"), "Support the seeker.", "system", {}, 1000)
    return Local(slot, renderer, [conversation(6, name=f"talk {i}", words="and on " * i) for i in range(talks)])


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma3"])
def test_a_sliding_window_is_kept(family: str) -> None:
    """Contexts of a hundred tokens and more, and a window of 24."""
    local = windowed(family, None, 2)
    requests = local.requests(temperature=0.0)
    assert max(len(local.renderer.prompt(asked.messages)) for asked in requests) > 3 * 24
    requests += local.requests(temperature=0.0, begun="You feel")  # which lies on branches
    assert local.written(requests, rows=100) == [local.plainly(asked) for asked in requests]


def test_a_window_is_kept_where_only_the_gap_in_a_row_outgrows_it() -> None:
    local = windowed("mistral", 152, 0)
    requests = [
        replace(request(name, f"{name} is what I {'think and ' * n}say.", temperature=0.0), family="one")
        for n, name in enumerate(["Rain", "Work", "Money"], 20)
    ]
    prompts = [len(local.renderer.prompt(asked.messages)) for asked in requests]
    assert max(prompts) + 16 + 32 < 152 < 2 * min(prompts) - 30, prompts
    assert local.written(requests) == [local.plainly(asked) for asked in requests]
