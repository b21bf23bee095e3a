"""The report of a run: the page from its files, and the tables on the console."""

from __future__ import annotations

import io
import json
import re
import shutil
import xml.etree.ElementTree as ET
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from esupport.data.conversation import Turn
from esupport.data.preference import Context, Finding, PreferencePair
from esupport.errors import UserError
from esupport.evolution.report import write_report
from esupport.evolution.tables import pair_rows, show_round, show_systems

SCRIPT = "<script>alert(1)</script>"
HOSTILE = f"{SCRIPT} [bold]not bold[/bold] <img src=http://x.example/a.png> \x1b[31m"
OTHER_SCRIPTS = "Здравствуйте. لم أنم منذ يومين. 昨晚又没睡着。"
PEOPLE = [
    (
        "nurse on nights, 34",
        "worn out",
        "I have swapped three night shifts this month and my daughter now eats with my neighbour.",
    ),
    (
        "retired joiner, 71",
        "lonely",
        "The workshop is swept and there is nothing left to sweep. She used to call me in at six.",
    ),
    (
        "first-year student",
        "ashamed",
        "I failed statistics twice and told my parents it was postponed. They have bought train tickets.",
    ),
    (
        "baker with a lease to renew",
        "torn",
        "The landlord wants an answer on Friday. I do the sums at four in the morning and they never agree.",
    ),
]


def pair(index: int, round_: int, **changes: Any) -> PreferencePair:
    who, feels, said = PEOPLE[index % len(PEOPLE)]
    turns = [
        Turn(role="seeker", text=f"Hello. I am the {who}, we wrote last week, entry {index}."),
        Turn(role="supporter", text="Good to hear from you again. What has happened since?"),
        Turn(role="seeker", text=said),
        Turn(role="supporter", text="That sounds heavy. Who knows about it?"),
        Turn(role="seeker", text="Nobody, really. I keep meaning to say something and then it is late again."),
    ]
    values: dict[str, Any] = {
        "context": Context(conversation=f"made-up-{index:02d}", turn=5, turns=tuple(turns)),
        "rejected": f"Draft {round_}.{index}. I am sorry to hear that. It is important to stay positive.",
        "chosen": f"Refined {round_}.{index}. You keep meaning to say it, and then it is late. "
        "Who would be the easiest person to tell first, if it took only one sentence?",
        "chosen_from": "refined",
        "round": round_,
        "reflection": {
            "profile": Finding(text=who, evidence=f"I am the {who}"),
            "emotion": Finding(text=feels, evidence="it is late again"),
            "situation": Finding(text="has told nobody yet", evidence="Nobody, really."),
            "need": Finding(text="unknown"),
        },
        "verdicts": dict.fromkeys(("empty", "same_as_draft", "length_ratio", "leaked_analysis"), ""),
    }
    return PreferencePair(**values | changes)


def dropped_pair(index: int, round_: int) -> PreferencePair:
    reasons = {
        "same_as_draft": "97 % of the words are the draft's",
        "length_ratio": "3.4 times the draft, bound 2.5",
        "empty": "",
    }
    return pair(index, round_, verdicts=reasons)


def kept(round_: int, count: int = 31) -> list[PreferencePair]:
    hostile = pair(90, round_, rejected=HOSTILE, reflection={f"axis {SCRIPT}": Finding(text=HOSTILE, evidence=HOSTILE)})
    other = pair(91, round_, chosen=OTHER_SCRIPTS, reflection={})
    return [pair(0, round_), hostile, other, *(pair(i, round_) for i in range(1, count - 2))]


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def system(number: int, **changes: Any) -> dict[str, Any]:
    figures = {"system": f"M{number}", "round": number, "adapter": f"round-{number}/adapter" if number else "sft/adapter"}
    figures |= {"nll": 3.494 - 0.06 * number, "nll_interval": [3.31 - 0.06 * number, 3.68 - 0.06 * number]}
    figures |= {
        "perplexity": 32.9 - 2 * number,
        "replies": 24,
        "reply_tokens": 31.2 + 5 * number,
        "length_ratio": 1 + 0.16 * number,
    }
    figures |= {"distinct_2": 0.81 + 0.02 * number, "repetition": 0.021 + 0.004 * number, "unfinished": 0.042 * number}
    figures |= {"kl_start": 0.05 * number if number else None, "kl_sft": 0.07 * number, "warnings": []}
    return figures | changes


def round_figures(number: int) -> dict[str, Any]:
    filters = {
        "unparsable": 2,
        "empty": 0,
        "same_as_draft": 9,
        "leaked_analysis": 3,
        "recites_profile": 1,
        "speaks_for_seeker": 0,
    }
    training = {"pairs": 31, "steps": 16, "loss": 0.512, "margin": 0.71, "accuracy": 0.83, "chosen_logratio": 2.1}
    training |= {"rejected_logratio": -5.2, "chosen_reward": 0.21, "rejected_reward": -0.52, "kl": 0.034, "seconds": 41.2}
    return {
        "round": number, "contexts": 48, "kept": 31, "dropped": 17,
        "filters": filters | {"repeats_itself": 0, "length_ratio": 4, "duplicate": 0, "unsafe": 1},
        "reflect": {"asked": 192, "retried": 20, "unparsable": 4 + number},
        "refine": {"asked": 48, "retried": 5, "unparsable": 2},
        "unknown": {"profile": 0.4, "emotion": 0.1, "situation": None, "need": 0.55},
        "pair_length_ratio": 1.2,
        "training": training,
        "settings": {"beta": 0.1, "learning_rate": 5e-4, "epochs": 2},
        "seconds": {"draft": 30.1, "reflect": 80.0, "refine": 33.5, "train": 41.2},
    }  # fmt: skip


def held_out(index: int, systems: int) -> dict[str, Any]:
    context = pair(index, 0).context
    said = [{"role": turn.role, "text": turn.text} for turn in context.turns]
    replies = {
        f"M{k}": f"Held {index}, M{k}. " + "That is a lot to carry alone. What would tomorrow need? " * k
        for k in range(systems)
    }
    return {
        "conversation": context.conversation, "turn": context.turn, "context": said, "problem": "job loss",
        "human": f"{HOSTILE} {OTHER_SCRIPTS}" if index == 1 else "Who would be the easiest to tell?", "replies": replies,
    }  # fmt: skip


class Tags(HTMLParser):
    """Names of all tags of a page, and all attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "demo")


def make_run(folder: Path) -> Path:
    """A run of two rounds, as ``evolve.py`` leaves it."""
    folder.mkdir(parents=True)
    warned = system(2, warnings=["replies are 1.32 times as long as M0's, bound 1.3"])
    (folder / "metrics.json").write_text(json.dumps([system(0), system(1), warned]))
    for number in (1, 2):
        place = folder / f"round-{number}"
        place.mkdir()
        (place / "metrics.json").write_text(json.dumps(round_figures(number)))
        write_lines(place / "pairs.jsonl", [one.model_dump(mode="json") for one in kept(number)])
        write_lines(place / "dropped.jsonl", [dropped_pair(i, number).model_dump(mode="json") for i in range(17)])
        curve = [
            {
                "step": i,
                "preference_loss": 0.693 * 0.97**i,
                "chosen_nll": 3.1 - 0.01 * i,
                "margin": 0.05 * i,
                "accuracy": min(1, 0.5 + 0.03 * i) if i else None,
            }
            | {"chosen_logratio": 0.12 * i - 0.004 * i * i, "rejected_logratio": -0.33 * i, "kl": 0.002 * i}
            for i in range(16 * number)
        ]
        write_lines(place / "curve.jsonl", curve)
    write_lines(folder / "held_out.jsonl", [held_out(i, 3) for i in range(8)])
    (folder / "config.yaml").write_text("name: demo\nrounds: 2\npaths:\n  cache: ${oc.env:ESUPPORT_CACHE}\n")
    names = [("sft", None)] + [
        (stage, k) for k in (1, 2) for stage in ("draft", "reflect", "refine", "pair", "train", "evaluate")
    ]
    stages = [
        {"stage": name, "round": k, "key": f"ab12{i:02d}", "folder": f"{name}/ab12{i:02d}", "inputs": {}, "files": {}}
        | {"seconds": 3.1 * i, "reused": i < 2}
        for i, (name, k) in enumerate(names)
    ]
    (folder / "lineage.json").write_text(json.dumps({"stages": stages}))
    return folder


def test_page_is_one_file_and_holds_everything(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    tags = Tags(page)
    assert page.startswith("<!DOCTYPE html>")
    assert not {"script", "link", "iframe", "img", "object", "base", "form"} & tags.names
    assert not [name for name, _ in tags.attributes if name.startswith("on") or name in ("src", "srcset", "srcdoc", "action")]
    assert not [value for name, value in tags.attributes if name.endswith("href") and not value.startswith("#")]
    assert not [value for _, value in tags.attributes if "//" in value or "javascript:" in value]
    assert "@import" not in page
    assert f'<p class="text" dir="auto">{escape(HOSTILE.replace(chr(27), " "))}</p>' in page
    for word in OTHER_SCRIPTS.split():
        assert word in page
    for name in ("M0", "M1", "M2"):
        assert f'<th scope="col">{name}' in page
    assert "replies are 1.32 times as long as M0&#39;s, bound 1.3" in page
    for number in (1, 2):
        for one in kept(number)[:20]:
            assert escape(one.chosen) in page
        assert escape(kept(number)[20].chosen) not in page
        assert "The first 20; all 31 are in" in page
        assert f"round-{number}/dropped.jsonl" in page
    assert page.count("97 % of the words are the draft&#39;s") == 20
    assert page.count("3.4 times the draft, bound 2.5") == 20
    assert page.count('<article class="held">') == 8
    assert "${oc.env:ESUPPORT_CACHE}" in page
    assert "draft/ab1201" in page
    assert "Not in this directory" not in page


def test_drawings_are_sound_and_their_ids_unique(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == 7 + 2 + 2 * 5
    for drawing in drawings:
        ET.fromstring(drawing)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', page))
    assert used <= set(ids)


def test_same_files_give_the_same_bytes(run: Path, tmp_path: Path) -> None:
    first = write_report(run).read_bytes()
    shutil.copytree(run, tmp_path / "elsewhere" / "demo")
    assert write_report(tmp_path / "elsewhere" / "demo").read_bytes() == first


def test_what_is_not_there_is_said(run: Path) -> None:
    for name in ("round-2", "held_out.jsonl", "config.yaml", "lineage.json"):
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    (run / "round-1" / "curve.jsonl").unlink()
    page = write_report(run).read_text(encoding="utf-8")
    missing = page[page.index("Not in this directory") :]
    for name in (
        "round-1/curve.jsonl",
        "round-2/metrics.json",
        "round-2/pairs.jsonl",
        "held_out.jsonl",
        "config.yaml",
        "lineage.json",
    ):
        assert f"<code>{name}</code>" in missing
    assert "round-1/metrics.json" not in missing


def test_a_run_without_rounds_and_without_figures(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps([dict.fromkeys(system(0)) | {"system": "M0", "round": 0}]))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert page.count("<td>n/a</td>") == 10
    assert "No round has been run here" in page
    assert "<svg" not in page


def test_a_directory_without_figures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.json"):
        write_report(tmp_path)


def test_null_figures_leave_gaps(run: Path) -> None:
    systems = [system(0), system(1, nll=None, nll_interval=None, kl_sft=None), system(2, distinct_2=None, right_trait=0.81)]
    (run / "metrics.json").write_text(json.dumps(systems))
    (run / "round-1" / "metrics.json").write_text(
        json.dumps({"round": 1, "contexts": 48, "kept": 0, "dropped": None, "training": None})
    )
    write_lines(run / "round-1" / "pairs.jsonl", [])
    page = write_report(run).read_text(encoding="utf-8")
    assert "No pair was kept." in page
    assert "right trait" in page
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL).lower().split()


def test_scanty_records(run: Path) -> None:
    (run / "metrics.json").write_text(
        '[{"system": "M0"}, {"system": "M1", "nll": 1.0, "nll_interval": [null, null], "kl_sft": NaN}]'
    )
    rows = [
        {
            "conversation": "a",
            "turn": 1,
            "context": [{"role": "seeker", "text": "Supporter: is what I am not"}],
            "replies": {"M1": ""},
        },
        {
            "conversation": "b",
            "turn": 2,
            "context": [{"role": "seeker", "text": "one\ntwo"}, {"role": "supporter", "text": "three"}],
            "human": None,
            "replies": {"M0": "x", "M1": "x"},
        },
    ]
    write_lines(run / "held_out.jsonl", rows)
    write_lines(run / "round-1" / "curve.jsonl", [{"step": 0, "loss": 0.69}])
    (run / "round-1" / "metrics.json").write_text('{"round": 1, "contexts": 1, "filters": {"<b>&$x$": 1}}')
    write_lines(run / "round-1" / "pairs.jsonl", [pair(0, 1, chosen_from="human").model_dump(mode="json")])
    page = write_report(run).read_text(encoding="utf-8")
    assert "same as M0" in page
    assert "&lt;b&gt;&amp;$x$" in page
    assert "one\ntwo</span>" in page
    assert "Supporter: is what I am not</span>" in page, "what looks like a speaker's name is a part of the text"
    assert "Human reply (chosen)" in page


@pytest.mark.parametrize("width", [60, 80, 200])
def test_round_on_the_console_fits(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    pairs = [kept(1)[1], kept(1)[2], pair(3, 1)]
    show_round(console, pairs, [dropped_pair(4, 1), dropped_pair(5, 1)], round_figures(1), 3)
    told = console.file.getvalue()
    assert max(map(len, told.splitlines())) <= width
    assert "48 contexts, 31 kept, 17 dropped" in told
    assert "same_as_draft 9" in told
    assert "[bold]not" in told
    assert "\x1b" not in told
    assert told.count("verdict") == 3
    assert "dropped by same_as_draft: 97 %" in told
    assert "made-up" not in told
    assert "Draft 1.3" not in told


def test_round_of_dropped_pairs_only() -> None:
    console = Console(file=io.StringIO(), width=80)
    show_round(console, [], [dropped_pair(i, 1) for i in range(4)], {"round": 1}, 2)
    assert console.file.getvalue().count("dropped by") == 2
    show_round(console, [], [], {}, 2)


def test_systems_on_the_console() -> None:
    console = Console(file=io.StringIO(), width=80)
    show_systems(console, [system(0), system(1, nll=None), system(2, warnings=["[red]longer[/red]"])])
    told = console.file.getvalue()
    assert max(map(len, told.splitlines())) <= 80
    assert "3.374  -0.120" in told
    assert "n/a" in told
    assert "warning: M2: [red]longer[/red]" in told


def test_rows_for_a_table() -> None:
    columns, rows = pair_rows([pair(0, 1), dropped_pair(1, 1), pair(2, 1, reflection={"wish": Finding(text="rest")})])
    assert columns == ["context", "profile", "emotion", "situation", "need", "wish", "draft", "refined", "verdict"]
    assert all(len(row) == len(columns) for row in rows)
    assert rows[0][columns.index("need")] == "unknown"
    assert rows[2][columns.index("profile")] == ""
    assert rows[0][-1] == "kept"
    assert rows[1][-1].startswith("dropped by same_as_draft: ")
