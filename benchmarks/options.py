"""The options that the commands share."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from rich.console import Console

from benchmarks.work import Work
from esupport.errors import UserError

OUT = "outputs/benchmarks"
SWITCH = argparse.BooleanOptionalAction  # --name and --no-name

# what no one can download without an account, as keys of transformers' LlamaConfig
SHAPES: dict[str, dict[str, Any]] = {
    "llama3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    },
}


def parser(name: str, description: str, repeats: int) -> argparse.ArgumentParser:
    """A command with the options that all have; ``description`` stands at the top of its help."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--model", default="smollm2", help="a file of conf/model: smollm2 is embedded, tiny is for tests")
    made.add_argument("--repeats", type=positive, default=repeats, help="processes of each side, in turn")
    made.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="a key of conf/, for this project")
    made.add_argument("--out", type=Path, default=Path(OUT), help="folder of the JSON file and the plot")
    return made


def add_data(made: argparse.ArgumentParser) -> None:
    """Where conversations come from."""
    made.add_argument("--data", type=Path, metavar="FILE", help="conversations; the shipped ones if not given")
    made.add_argument("--form", default="esconv", help="form of FILE, a file of conf/data")


def add_device(made: argparse.ArgumentParser) -> None:
    """Where and how it is computed."""
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of both sides")
    made.add_argument("--bf16", action="store_true", help="frozen weights and arithmetic in bfloat16")


def add_training(made: argparse.ArgumentParser) -> None:
    """What is trained, for how long, and how the peer is set."""
    add_data(made)
    add_device(made)
    made.add_argument("--steps", type=positive, default=2, help="optimizer steps that are counted")
    made.add_argument("--warmup", type=natural, default=1, help="optimizer steps before them, which are not counted")
    made.add_argument("--conversations-per-step", type=positive, metavar="N", help="the project's default if not given")
    made.add_argument("--turns", type=positive, help="supporter turns of a conversation; the data's median if not given")
    made.add_argument("--held-out", type=positive, default=2, metavar="N", help="conversations scored before and after")
    made.add_argument("--checkpointing", action="store_true", help="recompute whole layers in the backward pass, on both sides")
    made.add_argument("--random-weights", choices=SHAPES, help="weights drawn in these shapes, with the tokenizer of --model")
    made.add_argument(
        "--tune", action=SWITCH, default=True, help="first try the peer's settings, on less, and take the fastest"
    )
    made.add_argument("--peer-batch", type=positive, default=1, metavar="N", help="the peer's rows in a forward with --no-tune")
    made.add_argument(
        "--peer-targets-only",
        action="store_true",
        help="have the peer's head score targets alone on a CPU, as it does on a GPU; it has no such setting",
    )
    made.add_argument("--peer", action="append", default=[], metavar="KEY=VALUE", help="a key of the peer's configuration")


def common(given: argparse.Namespace) -> dict[str, Any]:
    """What :class:`benchmarks.work.Work` takes of the options that there are."""
    found: dict[str, Any] = {"model": given.model, "overrides": tuple(given.override)}
    if getattr(given, "data", None):
        if not given.data.expanduser().exists():
            raise UserError(f"--data: no such file: {given.data}")
        found |= {"data": str(given.data.expanduser().resolve()), "form": given.form}
    for name in ("device", "bf16", "checkpointing"):
        if hasattr(given, name):
            found[name] = getattr(given, name)
    if getattr(given, "random_weights", None):
        found["shape"] = SHAPES[given.random_weights]
    return found


def described(work: Work) -> dict[str, Any]:
    """The work as JSON, without paths."""
    data = Path(work.data).name if work.data else "shipped"
    return asdict(work) | {"data": data, "overrides": [*map(pathless, work.overrides)]}


def further(given: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` options as numbers, booleans, lists or texts."""
    for option in given:
        if "=" not in option:
            raise UserError(f"--peer: {option} is not KEY=VALUE")
    read: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(given)))
    return {str(key): value for key, value in read.items()}


def typed(name: str, argv: Sequence[str]) -> str:
    """The command as it was typed, with file names in place of paths."""
    return " ".join([f"python -m benchmarks.{name}", *map(pathless, argv)])


def pathless(word: str) -> str:
    """A word of the command line with file names in place of paths: those tell of the machine."""
    return re.sub(r"[^\s=]*/", "", word)


def console() -> Console:
    """Where the table goes: wide enough for it also where no one looks."""
    return Console(width=max(110, Console().width))


def told(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake is one line."""
    os.environ.setdefault("MPLBACKEND", "agg")
    try:
        sys.exit(main(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        sys.exit(f"error: {error}")


def positive(text: str) -> int:
    """A number of at least 1."""
    return _number(text, 1)


def natural(text: str) -> int:
    """A number of at least 0."""
    return _number(text, 0)


def _number(text: str, least: Literal[0, 1]) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is less than {least}")
    return value
