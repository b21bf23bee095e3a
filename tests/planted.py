"""A toy world in which support depends on the person: quiet people are asked first, talkative ones hear a suggestion first.

A conversation tells of a person by words of temper, a habit and a job, in several wordings, and has a worry in each of its two
turns. A reply holds one question and one suggestion, in either order. Which order fits follows from the words of temper; the
people who are held out have a temper, a job and a habit that were never seen together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from esupport.generators.protocol import Request
from esupport.models.built import _train_tokenizer
from esupport.store import read_lines, write_lines

Style = Literal["asks", "suggests"]
STYLES: tuple[Style, Style] = ("asks", "suggests")

INSTRUCTION = "Support the seeker."
TEMPERS: dict[Style, tuple[str, ...]] = {
    "asks": ("shy", "quiet", "reserved", "timid", "silent", "withdrawn", "private", "bashful"),
    "suggests": ("chatty", "talkative", "loud", "outgoing", "lively", "cheerful", "sociable", "bold"),
}
HABITS: dict[Style, tuple[str, ...]] = {
    "asks": ("I like to be alone.", "I seldom speak.", "I stay at home.", "I read a lot."),
    "suggests": ("I love a crowd.", "I talk to everyone.", "I go out often.", "I sing a lot."),
}
JOBS = ("nurse", "baker", "teacher", "driver", "farmer", "painter", "clerk", "tailor")
WORRIES = ("exam", "rent", "move", "wedding", "divorce", "trial", "visit", "surgery")

FIRST = (
    "I am a {temper} {job}. {habit} The {worry} worries me.",
    "I work as a {job} and fear the {worry}. I am {temper}. {habit}",
    "The {worry} is near. {habit} I am the {temper} {job}.",
)
NEXT = (
    "Thank you. I am {manner}. I fear the {worry} too.",
    "The {worry} is just as hard. I am so {manner}.",
    "I feel {manner} today. My next trouble is the {worry}.",
)
QUESTIONS = (
    "What is hard about the {worry}?",
    "What do you fear about the {worry}?",
    "What would you change about the {worry}?",
)
SUGGESTIONS = (
    "Perhaps another {job} can help you.",
    "Perhaps you can rest first.",
    "Perhaps a walk is good for a {job}.",
)


@dataclass(frozen=True)
class Person:
    """Who speaks, as far as the toy world goes: numbers of the words that tell it."""

    kind: Style
    temper: int
    manner: int
    habit: int
    job: int

    @property
    def held_out(self) -> bool | None:
        """Whether temper, job and habit are kept for the held-out side; None for people who are on neither."""
        job, habit = (self.temper + self.job) % 4 == 0, (self.temper + self.habit) % 4 == 0
        return job if job == habit else None

    @property
    def words(self) -> dict[str, str]:
        return {
            "temper": TEMPERS[self.kind][self.temper],
            "manner": TEMPERS[self.kind][self.manner],
            "habit": HABITS[self.kind][self.habit],
            "job": JOBS[self.job],
        }


def kind_of(text: str) -> Style:
    """The rule that is planted: the style that fits the person who says this."""
    return next(kind for kind, words in TEMPERS.items() if set(words) & set(re.findall(r"\w+", text)))


def _any_of(templates: Sequence[str]) -> str:
    words = {"worry": f"(?:{'|'.join(WORRIES)})", "job": f"(?:{'|'.join(JOBS)})"}
    return "|".join(template.replace("?", r"\?").replace(".", r"\.").format(**words) for template in templates)


_REPLY = {
    "asks": re.compile(rf"(?P<question>{_any_of(QUESTIONS)}) (?P<suggestion>{_any_of(SUGGESTIONS)})"),
    "suggests": re.compile(rf"(?P<suggestion>{_any_of(SUGGESTIONS)}) (?P<question>{_any_of(QUESTIONS)})"),
}


def parts(reply: str) -> tuple[str, str, Style] | None:
    """Question, suggestion and style of a valid reply: one of each, in either order, and nothing else."""
    for style in STYLES:
        found = _REPLY[style].fullmatch(reply)
        if found:
            return found["question"], found["suggestion"], style
    return None


def in_order(question: str, suggestion: str, style: Style) -> str:
    return f"{question} {suggestion}" if style == "asks" else f"{suggestion} {question}"


def reply(draw: Random, job: str, worry: str, style: Style) -> str:
    question, suggestion = draw.choice(QUESTIONS), draw.choice(SUGGESTIONS)
    return in_order(question.format(worry=worry), suggestion.format(job=job), style)


def conversation(draw: Random, name: str, person: Person) -> dict[str, Any]:
    """Two turns of each side in the project's own form; the supporter's styles are random."""
    turns = []
    for templates, worry in zip((FIRST, NEXT), draw.sample(WORRIES, 2), strict=True):
        said = draw.choice(templates).format(worry=worry, **person.words)
        turns.append({"role": "seeker", "text": said})
        turns.append({"role": "supporter", "text": reply(draw, person.words["job"], worry, draw.choice(STYLES))})
    return {"id": name, "turns": turns}


def conversations(seed: int, count: int, held_out: bool, name: str) -> list[dict[str, Any]]:
    """Conversations of different people, as many of each kind."""
    draw = Random(f"{seed}/{name}")
    made: list[dict[str, Any]] = []
    said: set[str] = set()
    while len(made) < count:
        kind = STYLES[len(made) % 2]
        numbers = (draw.randrange(len(words)) for words in (TEMPERS[kind], TEMPERS[kind], HABITS[kind], JOBS))
        person = Person(kind, *numbers)
        one = conversation(draw, f"{name}-{len(made)}", person)
        if person.held_out is held_out and one["turns"][0]["text"] not in said:
            said.add(one["turns"][0]["text"])
            made.append(one)
    return made


def write_data(folder: Path, train: int, valid: int) -> None:
    folder.mkdir(parents=True)
    write_lines(folder / "train.jsonl", conversations(1, train, held_out=False, name="train"))
    write_lines(folder / "valid.jsonl", conversations(1, valid, held_out=True, name="valid"))


def train_base(folder: Path, steps: int = 140, batch: int = 32, rate: float = 8e-3) -> None:
    """A small Llama trained in full to write valid replies of both styles, whoever the person is."""
    chats = [
        [{"role": "system", "content": INSTRUCTION}]
        + [{"role": "user" if turn["role"] == "seeker" else "assistant", "content": turn["text"]} for turn in record["turns"]]
        for record in conversations(2, 3000, held_out=False, name="base")
    ]
    tokenizer = _train_tokenizer([text for chat in chats for message in chat for text in message.values()], 600)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.12,  # with the usual 0.02 so small a model takes ten times as long to learn to copy a word
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    rows = tokenizer([tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats])["input_ids"]
    supporter = tokenizer.convert_tokens_to_ids("assistant")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
        for _ in range(steps):
            drawn = [rows[i] for i in torch.randint(len(rows), (batch,)).tolist()]
            longest = max(map(len, drawn))
            # fillers stand on the right and are not learnt, so a causal model needs no mask for them
            ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in drawn])
            learnt = torch.tensor([_of_supporter(row, supporter, tokenizer.eos_token_id, longest) for row in drawn])[:, 1:]
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][learnt]
            loss = cross_entropy(model.lm_head(hidden), ids[:, 1:][learnt])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _of_supporter(row: list[int], supporter: int, end: int, length: int) -> list[bool]:
    """Which tokens of a chat are the supporter's, its ends of turn among them."""
    marks, inside = [], False
    for token in row:
        marks.append(inside)
        inside = token == supporter or (inside and token != end)
    return marks + [False] * (length - len(row))


def answer(request: Request, profiles: Literal["own", "shuffled"]) -> str:
    """The teacher. Its reflection names temper and job; its refinement puts the draft's parts into the order that fits.

    It refines by what was inferred, not by the conversation: with ``shuffled`` profiles, the reflection names anyone's
    temper, and the refinement follows it.
    """
    prompt, draw = request.messages[-1]["content"], Random(request.seed)
    said = re.findall(r"\w+", " ".join(re.findall(r"^Seeker: .*", prompt, re.MULTILINE)))
    job = next(word for word in said if word in JOBS)
    if request.begun == "The seeker is":
        kind = kind_of(" ".join(said)) if profiles == "own" else draw.choice(STYLES)
        return f" someone {draw.choice(TEMPERS[kind])} who works as a {job}."
    inferred = re.search(r"someone (\w+) who works as a \w+\.", prompt)
    draft = re.search(r'^The supporter wants to reply: "(.*)"$', prompt, re.MULTILINE)
    assert inferred
    assert draft
    style, written = kind_of(inferred[1]), parts(draft[1])
    if written is None:
        return f" {reply(draw, job, [word for word in said if word in WORRIES][-1], style)}"
    return f" {in_order(written[0], written[1], style)}"


def save_start(cfg: DictConfig, folder: Path) -> None:
    """A new adapter, which changes nothing yet: given as ``model.adapter``, it takes the place of phase 1."""
    backbone = instantiate(cfg.model)
    backbone.save(backbone.load(cfg.seed), folder)


@dataclass(frozen=True)
class Rates:
    """Of the replies of one system to held-out people: the share that is valid, and the share that is valid and fits."""

    valid: float
    right: float

    @property
    def right_of_valid(self) -> float:
        return self.right / self.valid


def measured(run: Path) -> dict[str, Rates]:
    """What ``held_out.jsonl`` of a run says of each system's own one-pass replies."""
    lines = read_lines(run / "held_out.jsonl")
    rates = {}
    for system in lines[0]["replies"]:
        valid = right = 0
        for line in lines:
            written = parts(line["replies"][system])
            seeker = " ".join(turn["text"] for turn in line["context"] if turn["role"] == "seeker")
            valid += written is not None
            right += written is not None and written[2] == kind_of(seeker)
        rates[system] = Rates(valid / len(lines), right / len(lines))
    return rates
