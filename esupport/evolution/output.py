"""The run's directory, the console and the loggers: what a person sees of the rounds."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.console import Console

from esupport.data.preference import PreferencePair, read_pairs
from esupport.evolution.exam import Exam
from esupport.evolution.ledger import Ledger
from esupport.evolution.report import write_report
from esupport.evolution.tables import pair_rows, show_round, show_systems
from esupport.store import write_json, write_lines

_AXIS = "rounds/round"


@dataclass
class Output:
    """Writes what a round gave.

    Args:
        folder: the run's directory.
        console: for tables.
        loggers: of the run.
        ledger: for the seconds of the stages.
        samples: pairs shown on the console after each round.
    """

    folder: Path
    console: Console
    loggers: list[Any]
    ledger: Ledger
    samples: int

    def adapter(self, source: Path, target: str) -> None:
        """Copy an adapter's folder into the run's directory."""
        _copy(source, self.folder / target)

    def pairs(self, number: int, made: Path, figures: dict[str, Any]) -> None:
        """The pairs of a round, before anything is learnt from them: where none is left, a reader finds the reasons."""
        folder = self.folder / f"round-{number}"
        for name in ("pairs.jsonl", "dropped.jsonl"):
            _copy(made / name, folder / name)
        whole = {"round": number, **figures}
        write_json(folder / "metrics.json", whole)
        show_round(self.console, *self._pairs(folder), whole, self.samples)

    def round(self, number: int, trained: Path, figures: dict[str, Any], settings: dict[str, Any]) -> None:
        """Files, table and curves of a round that has been trained."""
        folder = self.folder / f"round-{number}"
        _copy(trained / "adapter", folder / "adapter")
        _copy(trained / "curve.jsonl", folder / "curve.jsonl")
        measured = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))
        # seconds of the whole training, loading among them; the ledger has the stage's
        training = {name.removeprefix("train/"): value for name, value in measured.items() if name != "seconds"}
        whole = {
            "round": number,
            **figures,
            "training": training,
            "settings": settings,
            "seconds": self.ledger.seconds(number),
        }
        write_json(folder / "metrics.json", whole)
        kept, dropped = self._pairs(folder)
        columns, rows = pair_rows([*kept, *dropped])
        for logger in self._wandb():
            logger._prefix = ""  # a training's prefix is over
            logger.log_table(f"pairs/round_{number}", columns=columns, data=rows)
        groups = {"pairs": figures, "dropped": figures["filters"], "dpo": training}
        groups |= {name: figures[name] for name in ("refused", "reflect", "refine", "unknown")}
        self._log(number, {n: v for group, values in groups.items() for n, v in _numbers(group, values).items()})

    def system(self, systems: list[dict[str, Any]], adapter: str, exam: Exam) -> None:
        """Figures and held-out replies of all systems so far, the last of them new."""
        systems[-1]["adapter"] = adapter
        write_json(self.folder / "metrics.json", systems)
        write_lines(
            self.folder / "held_out.jsonl",
            (
                {
                    "conversation": context.conversation,
                    "turn": context.turn,
                    "context": [{"role": turn.role, "text": turn.text} for turn in context.turns],
                    "problem": conversation.problem,
                    "human": conversation.turns[context.turn].text,
                    "replies": {name: replies[index].text for name, replies in exam.replies.items()},
                }
                for index, (context, conversation) in enumerate(exam.contexts)
            ),
        )
        for warning in systems[-1]["warnings"]:
            self.console.print(f"Warning: {systems[-1]['system']}: {warning}.", style="bold", markup=False)
        self._log(systems[-1]["round"], _numbers("held_out", systems[-1]))

    def end(self, systems: list[dict[str, Any]]) -> None:
        """The last table and the report."""
        show_systems(self.console, systems)
        self.console.print(f"Report: {write_report(self.folder)}", markup=False, highlight=False, soft_wrap=True)

    def _pairs(self, folder: Path) -> tuple[list[PreferencePair], list[PreferencePair]]:
        return read_pairs(folder / "pairs.jsonl"), read_pairs(folder / "dropped.jsonl")

    def _wandb(self) -> list[Any]:
        return [logger for logger in self.loggers if isinstance(logger, pl.loggers.WandbLogger)]

    def _log(self, number: int, figures: dict[str, float]) -> None:
        named = {**{f"rounds/{name}": value for name, value in figures.items()}, _AXIS: number}
        for logger in self._wandb():
            for name in named:
                # by its whole name: a pattern would stand beside the one of Lightning's logger, and either may be taken
                logger.experiment.define_metric(name, step_metric=None if name == _AXIS else _AXIS)
        for logger in self.loggers:
            logger._prefix = ""
            logger.log_metrics(named)
            logger.save()


def _numbers(group: str, figures: dict[str, Any]) -> dict[str, float]:
    return {f"{group}/{n}": float(v) for n, v in figures.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
