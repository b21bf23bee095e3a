"""A toy world in which good support depends on the person: quiet people are asked first, talkative ones hear a suggestion first.

A conversation names a person by a word of temperament, a job, an age and worries, in several wordings. A reply holds one question
and one suggestion, in either order. The style that fits follows from the word of temperament alone; held-out people have
words and jobs that were never seen together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from transformers import LlamaConfig, LlamaForCausalLM

from esupport.config.command_line import CONF
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
    """The rule that is planted: which style fits the person who says this."""
    return next((kind for kind, words in TEMPERS.items() if set(words) & set(re.findall(r"\w+", text))), None)


def _one_of(templates: Sequence[str]) -> str:
    """A pattern for filled templates, with the worry and the job as groups where they stand."""
    filled = (re.escape(t).replace(r"\{", "{").replace(r"\}", "}").format(worry=r"\w+", job=r"\w+") for t in templates)
    return "|".join(filled)


_REPLY = re.compile(
    rf"(?P<asked>{_one_of(QUESTIONS)})? ?(?P<suggested>{_one_of(SUGGESTIONS)}) ?(?P<asked_last>{_one_of(QUESTIONS)})?"
)


def parts(reply: str) -> tuple[str, str, Style] | None:
    """Question, suggestion and style of a valid reply: one of each, in either order, and nothing else."""
    found = _REPLY.fullmatch(reply)
    if not found or bool(found["asked"]) == bool(found["asked_last"]):
        return None
    question = found["asked"] or found["asked_last"]
    return question, found["suggested"], "asks" if found["asked"] else "suggests"


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


def train_base(folder: Path, hidden: int, layers: int, steps: int, batch: int, rate: float, seed: int) -> None:
    """A small Llama trained in full to write valid replies of both styles, whoever the person is."""
    records = conversations(2, 3200, held_out=False, name="base")
    chats = [
        [{"role": "system", "content": INSTRUCTION}]
        + [{"role": "user" if t["role"] == "seeker" else "assistant", "content": t["text"]} for t in record["turns"]]
        for record in records
    ]
    tokenizer = _train_tokenizer([text for chat in chats for message in chat for text in message.values()], 512)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        ids = [tokenizer(tokenizer.apply_chat_template(chat, tokenize=False))["input_ids"] for chat in chats]
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
        for _ in range(steps):
            drawn = [ids[i] for i in torch.randint(len(ids), (batch,)).tolist()]
            longest = max(map(len, drawn))
            padded = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in drawn])
            read = padded != tokenizer.pad_token_id
            # padding stands on the right, so a causal model needs no mask for it
            loss = model(input_ids=padded, labels=padded.masked_fill(~read, -100)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def answer(request: Request, profiles: Literal["own", "shuffled"]) -> str:
    """The teacher. Its reflection names temper and job; its refinement sets the draft's parts in the order that fits.

    It refines by what was inferred, not by the conversation: with ``shuffled`` profiles, the reflection names anyone's
    temper, and the refinement follows it.
    """
    prompt = request.messages[-1]["content"]
    draw = Random(request.seed)
    said = re.findall(r"\w+", "".join(re.findall(r"^Seeker: .*\n", prompt, re.MULTILINE)))
    job = next(word for word in said if word in JOBS)
    if request.begun == "The seeker is":
        kind = kind_of(" ".join(said)) if profiles == "own" else draw.choice(STYLES)
        return f" someone {draw.choice(TEMPERS[kind])} who works as a {job}."
    inferred = re.search(r"someone \w+ who works as a \w+\.", prompt)
    draft = re.search(r'^The supporter wants to reply: "(.*)"$', prompt, re.MULTILINE)
    assert inferred
    assert draft
    style, written = kind_of(inferred[0]), parts(draft[1])
    if written:
        return f" {in_order(written[0], written[1], style)}"
    return f" {reply(draw, job, [word for word in said if word in WORRIES][-1], style)}"


@contextmanager
def composed(folder: Path, *overrides: str) -> Iterator[DictConfig]:
    """``conf/evolve.yaml`` with overrides, as a run whose directory is ``folder``."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("evolve", list(overrides), return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(folder)
        cfg.hydra.job.num = 0
        cfg.hydra.job.override_dirname = ",".join(overrides)
    HydraConfig.instance().set_config(cfg)
    try:
        plain = OmegaConf.create({k: v for k, v in OmegaConf.to_container(cfg).items() if k != "hydra"})  # type: ignore
        assert isinstance(plain, DictConfig)
        yield plain
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None


def save_start(cfg: DictConfig, folder: Path) -> None:
    """An adapter that changes nothing yet, for ``model.adapter``: phase 1 is skipped."""
    backbone = instantiate(cfg.model)
    backbone.save(backbone.load(cfg.seed), folder)


@dataclass(frozen=True)
class Rates:
    """Of the replies of one system: the share that fits the person, that is valid, and that names the right worry."""

    right: float
    valid: float
    on_topic: float


def measured(folder: Path, system: str) -> Rates:
    """What ``held_out.jsonl`` of a run says of a system's own one-pass replies. An invalid reply fits nobody."""
    right, valid, on_topic = [], [], []
    for line in read_lines(folder / "held_out.jsonl"):
        written = parts(line["replies"][system])
        seeker = [said for said in line["context"].split("\n") if said.startswith("Seeker:")]
        worry = [word for word in re.findall(r"\w+", seeker[-1]) if word in WORRIES][-1]
        valid.append(written is not None)
        right.append(written is not None and written[2] == kind_of(" ".join(seeker)))
        on_topic.append(written is not None and worry in written[0])
    return Rates(*(sum(each) / len(each) for each in (right, valid, on_topic)))


def show(value: Any) -> str:
    return json.dumps(value, default=vars)
