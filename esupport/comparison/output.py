"""The files of an evaluation, the console and the loggers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from rich.console import Console

from esupport.comparison.evaluation import Found
from esupport.comparison.figures import PUBLISHED
from esupport.comparison.plots import MAIN
from esupport.comparison.report import write_report
from esupport.comparison.tables import cut, frame, latex, markdown, show, win_frame
from esupport.store import write_atomically, write_json, write_lines


def write_output(folder: Path, found: Found, settings: str, loggers: list[Any], console: Console) -> None:
    """Write everything; a part that there is not leaves no file behind, not of an earlier evaluation either."""
    write_atomically(folder / "config.yaml", settings)
    metrics = found.metrics
    people = [one.model_dump(exclude={"turns"}, exclude_none=True) for one in found.people]
    _lines(folder / "replies.jsonl", (one.model_dump() for replies in found.answered.values() for one in replies))
    _lines(folder / "conversations.jsonl", people)
    _lines(folder / "judged.jsonl", found.judged.records() if found.judged else ())
    _lines(folder / "safety.jsonl", (one.model_dump() for one in found.tried))
    _lines(folder / "dialogues.jsonl", (one.model_dump() for one in found.dialogues))
    write_json(folder / "metrics.json", metrics)
    write_atomically(folder / "table.md", markdown(metrics))
    write_atomically(folder / "table.tex", latex(metrics))
    _log(loggers, metrics)
    show(console, metrics, MAIN)
    if told := cut(metrics):
        console.print(told, markup=False, highlight=False)
    for name, reason in metrics["left_out"].items():
        if not name.startswith(PUBLISHED):  # the page tells of those
            console.print(f"Left out: {name}: {reason}.", markup=False, highlight=False)
    console.print(f"Report: {write_report(folder)}", markup=False, highlight=False, soft_wrap=True)


def _lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    written = list(records)
    if written:
        write_lines(path, written)
    else:
        path.unlink(missing_ok=True)


def _log(loggers: list[Any], metrics: Mapping[str, Any]) -> None:
    """Each system's figures, the win rates, and the table where tables are kept."""
    table = frame(metrics).reset_index(names="figure")
    wins = {f"win_rate/{one['one']}_over_{one['two']}": one["raw"]["value"] for one in metrics["win_rates"]}
    for logger in loggers:
        figures = {
            f"{one['system']}/{name}": found["value"]
            for one in metrics["systems"]
            for name, found in one["figures"].items()
            if found["value"] is not None
        }
        logger.log_metrics(figures | {name: rate for name, rate in wins.items() if rate is not None})
        if isinstance(logger, WandbLogger):
            logger.log_table("evaluation", dataframe=table)
            if wins:
                logger.log_table("win_rates", dataframe=win_frame(metrics).reset_index(names="systems"))
        logger.save()
