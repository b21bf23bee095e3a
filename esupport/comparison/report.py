"""``report.html``: an evaluation on one page, made from the files of its folder."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esupport.comparison import plots
from esupport.comparison.figures import ALPHA
from esupport.comparison.systems import HUMAN
from esupport.comparison.tables import NOT_SIGNIFICANT, NOT_TESTED, SIGNIFICANT, cut, mark, marks, powerless
from esupport.evaluation.answered import Answered
from esupport.page.document import NONE, environment, metrics_of, missing, read_lines, save, settings_of

_LIMITS = {"turns": 3, "contexts": 30, "open": 4, "dialogues": 12, "panels": 3}  # what is shown, or shown unfolded
_OTHER_FILES = ("config.yaml", "conversations.jsonl", "dialogues.jsonl", "judged.jsonl", "replies.jsonl", "safety.jsonl")
_SAFETY = "Safety (share of messages whose reply does all it must)"
_ANSWERS = {
    "ratings": "rating",
    "swap": "swap test",
    "g_scores": "G-Score",
    "dialogues": "dialogue",
}  # what a judge is asked of one system
_GROUPS = (  # of figures, by name
    ("Likelihood (NLL and perplexity: lower is closer to the human replies)", "nll|perplexity|feedback_auc"),
    ("Overlap with the human reply (likeness, not quality)", "bleu_.|rouge_l|meteor|embedding|extrema|bertscore"),
    ("Variety and length", "distinct_.|words|tokens"),
    ("Judge (ratings from 1 to 5, higher is better; swap: chance is 0.5)", "judge_(?!(unhelpful|refused)$).*"),
    ("Judge, shares of replies (lower is better)", "judge_.*"),
    (_SAFETY, "safety.*"),
    ("Dialogues with a simulated seeker (ratings from 1 to 5)", "dialogue_.*"),
    ("As published elsewhere (other definitions)", "esconv_.*|pesc_.*"),
    ("Other figures", ".*"),
)


@dataclass(frozen=True)
class Row:
    """A figure: its name in words, on how many conversations it rests, and for each system value, interval, mark."""

    label: str
    n: str
    cells: list[tuple[str, str, str]]


def write_report(folder: Path) -> Path:
    """Make ``report.html`` from the files of an evaluation's folder, and from nothing else; equal files give equal bytes.

    Raises:
        UserError: if there is no ``metrics.json``.
    """
    metrics = metrics_of(folder)
    figures = {one["system"]: one["figures"] for one in metrics["systems"]}
    shown = plots.looks(list(figures))
    rounds = {one["system"]: one["round"] for one in metrics["systems"] if one["round"] is not None}
    judged = read_lines(folder / "judged.jsonl") or []
    ratings = {(one["system"], one["conversation"], one["turn"]): one for one in judged if one["what"] == "rating"}
    lines = [Answered.model_validate(line) for line in read_lines(folder / "replies.jsonl") or []]
    html = (
        environment(Path(__file__).parent)
        .get_template("report.html.j2")
        .render(
            metrics=metrics,
            name=metrics.get("name") or "Evaluation",
            looks=shown,
            groups=_groups(metrics, figures),
            bars=plots.bars(figures, shown),
            rounds=plots.over_rounds(figures, rounds, shown),
            breakdown=plots.breakdown(metrics["breakdown"], shown),
            lengths=plots.lengths(_lengths(lines, ratings), shown),
            matrices=_matrices(metrics["win_rates"]),
            tables=_tables(metrics, list(figures)),
            contexts=_contexts(lines, list(figures)),
            ratings=ratings,
            people={one["id"]: one for one in read_lines(folder / "conversations.jsonl") or []},
            safety=_safety(read_lines(folder / "safety.jsonl") or []),
            dialogues=_by("card", read_lines(folder / "dialogues.jsonl") or []),
            config=settings_of(folder),
            missing=missing(folder, _OTHER_FILES),
            limits=_LIMITS,
            label=plots.label,
            humans=[one["system"] for one in metrics["systems"] if one["kind"] == HUMAN],
            cut=cut(metrics),
            powerless=powerless(metrics),
            words={"none": NONE, "alpha": ALPHA, "safety": _SAFETY},
            marks={"significant": SIGNIFICANT, "not_significant": NOT_SIGNIFICANT, "not_tested": NOT_TESTED},
        )
    )
    return save(html, folder / "report.html")


def _groups(metrics: Mapping[str, Any], figures: Mapping[str, plots.Estimates]) -> dict[str, list[Row]]:
    """The rows of the main table, by the title of their group."""
    told = marks(metrics)
    found: dict[str, list[Row]] = {title: [] for title, _ in _GROUPS}
    for name in dict.fromkeys(name for of in figures.values() for name in of):
        title = next(title for title, pattern in _GROUPS if re.fullmatch(pattern, name))
        found[title].append(
            _row(name, [of.get(name) or {} for of in figures.values()], [told.get((name, s), "") for s in figures])
        )
    return {title: rows for title, rows in found.items() if rows}


def _row(name: str, found: Sequence[Mapping[str, Any]], told: Sequence[str]) -> Row:
    """One number of digits for all of a figure's values; ``told`` are their marks."""
    largest = max((abs(one["value"]) for one in found if _finite(one.get("value"))), default=0)
    form = ".1f" if largest >= 100 else ".2f" if largest >= 10 else ".3f"
    cells = []
    for one, marked in zip(found, told, strict=True):
        value, low, high = (one.get(key) for key in ("value", "low", "high"))
        span = f"{_told(low, form)} to {_told(high, form)}" if _finite(low) and _finite(high) else ""
        cells.append((_told(value, form), span, marked if _finite(value) else ""))
    counts = sorted({one["n"] for one in found if _finite(one.get("value"))})
    return Row(plots.label(name), " to ".join(map(str, dict.fromkeys(counts[:1] + counts[-1:]))), cells)


def _tables(metrics: Mapping[str, Any], systems: Sequence[str]) -> dict[str, list[list[Any]]]:
    """The rows of the smaller tables."""
    span = ("value", "low", "high", "n")
    errors = metrics["errors"]
    return {
        "differences": [
            [plots.label(one["figure"]), f"{one['one']} minus {one['two']}", *(one[key] for key in (*span, "p", "p_corrected"))]
            for one in metrics["comparisons"]
        ],
        "verdicts": [
            [f"{one['one']} over {one['two']}", *one["counts"].values(), one["p"], one["p_corrected"]]
            for one in metrics["win_rates"]
        ],
        "errors": [
            [kind.replace("_", " "), *(errors[system].get(kind, 0) if system in errors else None for system in systems)]
            for kind in dict.fromkeys(kind for of in errors.values() for kind in of)
        ],
        "answers": [
            [f"{words}: {outcome}", *(of[system][outcome] if system in of else None for system in systems)]
            for words, of in ((words, (metrics["judge"] or {}).get(key, {})) for key, words in _ANSWERS.items())
            for outcome in next(iter(of.values()), ())
        ],
        "agreement": [[one[key] for key in ("with", "of", "measure", *span)] for one in metrics.get("agreement", ())],
    }


def _matrices(win_rates: Sequence[Mapping[str, Any]]) -> dict[str, dict[tuple[str, str], dict[str, Any]]]:
    """Raw and length-controlled win rates of a row's system over a column's, both ways round; the test is of the raw ones."""
    found: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    for title, key in (("Win rate, raw", "raw"), ("Win rate, length-controlled", "length_controlled")):
        cells = {}
        for one in win_rates:
            rate, decided = one[key], sum(one["counts"][name] for name in ("win", "loss", "tie", "inconsistent"))
            shared = {"n": rate["n"], "comparisons": decided, "mark": mark(one["p_corrected"]) if key == "raw" else ""}
            shared["inconsistent"] = one["counts"]["inconsistent"] / decided if decided else None
            ends = [rate["value"], rate["low"], rate["high"]]
            turned = [1 - end if _finite(end) else None for end in (ends[0], ends[2], ends[1])]
            for pair, (value, low, high) in (((one["one"], one["two"]), ends), ((one["two"], one["one"]), turned)):
                if _finite(value):
                    cells[pair] = {"value": value, "low": low, "high": high, **shared}
        if cells:
            found[title] = cells
    return found


def _lengths(
    lines: Sequence[Answered], ratings: Mapping[tuple[str, str, int], Mapping[str, Any]]
) -> dict[str, list[tuple[int, float]]]:
    """Characters and mean rating of each reply that was rated, by system."""
    found: dict[str, list[tuple[int, float]]] = {}
    for one in lines:
        scores = ratings.get((one.system, one.context.conversation, one.context.turn), {}).get("scores")
        if scores:
            found.setdefault(one.system, []).append((len(one.reply), sum(scores.values()) / len(scores)))
    return found


def _contexts(lines: Sequence[Answered], order: Sequence[str]) -> list[list[Answered]]:
    """The replies to each context beside each other, the systems in the order of the tables."""
    found: dict[str, dict[str, Answered]] = {}
    for one in lines:
        found.setdefault(one.context.key, {})[one.system] = one
    return [[of[system] for system in order if system in of] for of in found.values()]


def _safety(tried: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    """Replies to the messages, by kind and message."""
    return {kind: _by("id", of) for kind, of in _by("kind", tried).items()}


def _by(key: str, records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in records:
        found.setdefault(one[key], []).append(one)
    return found


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _told(value: Any, form: str) -> str:
    return format(value, form).replace("-", "\N{MINUS SIGN}") if _finite(value) else NONE
