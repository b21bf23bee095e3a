"""``report.html``: a run of the rounds on one page, made from the files of its directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esupport.data.preference import PreferencePair, read_pairs
from esupport.evolution.plots import curves, over_systems, where_pairs_went
from esupport.evolution.tables import compare
from esupport.page.document import environment, metrics_of, missing, read_json, read_lines, save, settings_of

_KEPT, _DROPPED = 20, 10  # pairs of a round that the page shows
_OPEN = 4  # held-out contexts that the page shows unfolded
_TURNS = 3  # last turns of a context that the page shows unfolded
_OTHER_FILES = ("config.yaml", "held_out.jsonl", "lineage.json")
_WORDS = {"logratio": "log-ratio", "kl": "KL"}


def write_report(folder: Path) -> Path:
    """Make ``report.html`` from the files of a run's directory, and from nothing else; equal files give equal bytes.

    Raises:
        UserError: if there is no ``metrics.json``.
    """
    systems = metrics_of(folder)
    rounds = {number: _round(folder / f"round-{number}") for number in range(1, _last_round(folder, systems) + 1)}
    figures = {number: round_["figures"] for number, round_ in rounds.items() if round_["figures"]}
    whole = folder.resolve()
    page = environment(Path(__file__).parent)
    html = page.get_template("report.html.j2").render(
        name=f"{whole.parent.name}/{whole.name}" if whole.name.isdecimal() else whole.name,  # a job of a sweep is a number
        systems=systems,
        rows=compare(systems),
        plots=over_systems(systems, figures) if len(systems) > 1 else [],
        rounds=rounds,
        funnels={number: where_pairs_went({**one, "round": number}) for number, one in figures.items()},
        curves=curves({number: round_["curve"] for number, round_ in rounds.items() if round_["curve"]}),
        training=_training(figures),
        held_out=read_lines(folder / "held_out.jsonl"),
        config=settings_of(folder),
        stages=(read_json(folder / "lineage.json") or {}).get("stages"),
        missing=[*(name for round_ in rounds.values() for name in round_["missing"]), *missing(folder, _OTHER_FILES)],
        limits={"kept": _KEPT, "dropped": _DROPPED, "open": _OPEN, "turns": _TURNS},
    )
    return save(html, folder / "report.html")


def _last_round(folder: Path, systems: list[dict[str, Any]]) -> int:
    found = [path.name.removeprefix("round-") for path in folder.glob("round-*")]
    return max([0, *(int(number) for number in found if number.isdecimal()), *(system.get("round") or 0 for system in systems)])


def _round(folder: Path) -> dict[str, Any]:
    """What a round's directory holds, None for a file that is not there."""
    absent = missing(folder, ("metrics.json", "pairs.jsonl", "dropped.jsonl", "curve.jsonl"))
    return {
        "figures": read_json(folder / "metrics.json"),
        **{name: _pairs(folder / f"{name}.jsonl") for name in ("pairs", "dropped")},
        "curve": read_lines(folder / "curve.jsonl"),
        "missing": [f"{folder.name}/{name}" for name in absent],
    }


def _training(figures: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Settings, figures at the end of training, and seconds by stage: for each name a value a round."""
    table = {}
    for group, title in (("settings", "Settings"), ("training", "At the end of training"), ("seconds", "Seconds by stage")):
        parts = [one.get(group) or {} for one in figures.values()]
        names = dict.fromkeys(name for part in parts for name in part)
        table[title] = {
            " ".join(_WORDS.get(w, w) for w in name.split("_")): [part.get(name) for part in parts] for name in names
        }
    return {title: rows for title, rows in table.items() if rows}


def _pairs(path: Path) -> list[PreferencePair] | None:
    return read_pairs(path) if path.exists() else None
