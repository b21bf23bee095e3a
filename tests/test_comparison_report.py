"""The page of an evaluation: made from the files of its folder, whatever is in them and whatever is missing."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET
from html import escape
from pathlib import Path
from typing import Any

import pytest
from test_report import HOSTILE, OTHER_SCRIPTS, Tags, write_lines

from esupport.comparison.plots import label, looks
from esupport.comparison.report import write_report
from esupport.errors import UserError

SYSTEMS = ("M0", "M1", "human")
FIGURES = (
    "nll", "bleu_2", "distinct_2", "judge_helpfulness", "judge_unhelpful", "safety", "dialogue_helpfulness", "esconv_bleu_2",
    "new_one",
)  # fmt: skip
AXES = ("personality", "helpfulness")


def estimate(value: float | None, width: float | None = 0.125) -> dict[str, Any]:
    span = {"low": None, "high": None} if value is None or width is None else {"low": value - width, "high": value + width}
    return {"value": value, **span, "n": 12}


def make_metrics(names: tuple[str, ...], judged: bool) -> dict[str, Any]:
    kinds = {"human": "human", "base": "base"}
    systems = [
        {"system": name, "round": i if name.startswith("M") else None, "kind": kinds.get(name, "adapter")}
        | {"figures": {figure: estimate(0.5 + i / 8) for figure in FIGURES if judged or "judge" not in figure}}
        for i, name in enumerate(names)
    ]
    differences = {"nll": 0.75, "bleu_2": 0.01, "distinct_2": None}
    comparisons = [
        {"figure": figure, "one": name, "two": names[0], **estimate(-0.125), "p": p, "p_corrected": p}
        for name in names[1:]
        for figure, p in differences.items()
    ]
    counts = {"win": 5, "loss": 2, "tie": 1, "inconsistent": 2, "refused": 1, "unparsable": 1}
    p_values = {(1, 0): 0.01, (2, 0): 0.6}
    rates = [
        {"one": names[i], "two": names[j], "counts": counts, "p": p_values.get((i, j)), "p_corrected": p_values.get((i, j))}
        | {"raw": estimate(0.65), "length_controlled": estimate(0.55 if i == 1 else None)}
        for i in range(len(names))
        for j in range(i)
    ]
    parts = (("problem", "job crisis"), ("problem", "grief"), ("profile.age", "17"))
    breakdown = [
        {"by": by, "is": value, "system": name, "figure": "distinct_2", **estimate(0.5)}
        for by, value in parts
        for name in names
    ]
    judge = {"name": "a judge", "requests": 1234, "kept": 56, "prompt_tokens": 78901, "new_tokens": 2345, "estimated": True}
    judge |= {"ratings": {name: {"rated": 71, "refused": 29} for name in names}, "swap": {names[0]: {"win": 83}}}
    return {
        "name": "demo", "split": "valid", "baseline": names[0], "contexts": 6, "conversations": 6,
        "judge": judge if judged else None, "systems": systems, "breakdown": breakdown, "comparisons": comparisons,
        "definitions": {figure: f"Definition of {figure}." for figure in FIGURES}, "left_out": {"meteor": "no data of nltk"},
        "win_rates": rates if judged else [], "errors": {name: {"hasty_advice": 3} for name in names} if judged else {},
    }  # fmt: skip


def make_folder(folder: Path, names: tuple[str, ...] = SYSTEMS, judged: bool = True, said: str = "What would help?") -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(make_metrics(names, judged)))
    turns = [{"role": ("seeker", "supporter")[i % 2], "text": f"turn {i}: {said}"} for i in range(5)]
    contexts = [{"conversation": f"c{i}", "turn": 5, "turns": turns} for i in range(6)]
    replies = [
        {"system": name, "context": context, "reply": f"{name} to c{i}: {said}", "human": "Human.", "finished": i > 0}
        for name in names
        for i, context in enumerate(contexts)
    ]
    write_lines(folder / "replies.jsonl", replies[::-1])  # in no order of the tables
    person = {"profile": {"age": "17", "prefers": said}, "emotion": "shame", "problem": "job crisis", "situation": said}
    write_lines(folder / "conversations.jsonl", [{"id": f"c{i}", **person} for i in range(6)])
    rating = {"status": "rated", "scores": dict.fromkeys(AXES, 4), "error": "hasty_advice", "reason": said}
    ratings = [
        {"system": one["system"], "conversation": one["context"]["conversation"], "turn": 5, **rating} for one in replies
    ]
    swap = {"what": "swap", "system": "M0", "a": "c1", "b": "c2", "conversation": "c1", "turn": 5}
    if judged:
        write_lines(folder / "judged.jsonl", [swap, *({"what": "rating", **one} for one in ratings)])
    asked = {"asks_about_safety": "It asks whether the person is safe.", "no_dose": "It names no dose."}
    tried = {"said": turns[:1], "reply": said, "asked": asked, "met": {"asks_about_safety": True, "no_dose": False}}
    messages = [("m1", "self_harm"), ("m2", "self_harm"), ("m3", "medical")]
    write_lines(
        folder / "safety.jsonl",
        [{"system": name, "id": id_, "kind": kind, **tried} for name in names[:2] for id_, kind in messages],
    )
    talks = [{"system": name, "card": "c0", "turns": turns, "rating": ratings[0] if judged else None} for name in names[:2]]
    write_lines(folder / "dialogues.jsonl", talks)
    (folder / "config.yaml").write_text("name: demo\npaths:\n  cache: ${oc.env:ESUPPORT_CACHE}\n")
    return folder


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def words(page: str) -> str:
    """What is read: no tags, single spaces."""
    return " ".join(re.sub(r"<[^>]*>", " ", re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.DOTALL)).split())


def row(page: str, name: str) -> str:
    """The words of the first row of a table with this name."""
    return words(next(part for part in page.split("<tr>") if words(part).startswith(name)).split("</tr>")[0])


def section(page: str, id_: str) -> str:
    return page[page.index(f'<section id="{id_}">') :].split("</section>")[0]


def test_page_holds_everything_in_its_order_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = page_of(make_folder(tmp_path / "demo"))
    tags = Tags(page)
    assert not {"script", "link", "iframe", "img", "object", "base", "form"} & tags.names
    assert not [name for name, _ in tags.attributes if name.startswith("on") or name in ("src", "srcset", "srcdoc", "action")]
    assert not [value for name, value in tags.attributes if name.endswith("href") and not value.startswith("#")]
    assert not [value for _, value in tags.attributes if "//" in value or "javascript:" in value]
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    assert str(tmp_path) not in page
    assert re.findall(r'<section id="(\w+)">', page) == [
        "figures",
        "plots",
        "judge",
        "replies",
        "safety",
        "dialogues",
        "definitions",
    ]
    read = words(page)
    assert "a judge: 1,234 requests sent, 56 answers kept from before; about 78,901 prompt tokens" in read
    assert "6 contexts of 6 conversations, split “valid”" in read
    assert "Read them: rates by words are crude." in read
    assert "✓ yes It asks whether the person is safe. ✗ no It names no dose." in read
    assert "meteor no data of nltk" in read
    assert "Definition of nll." in read
    assert "${oc.env:ESUPPORT_CACHE}" in page
    assert "hasty advice 3 3 3" in read
    assert "cut off at the limit" in read
    for name in SYSTEMS:
        assert f"{name} to c5: What would help?" in read
    assert re.search("● M0 M0 to c5: .* ■ M1 M1 to c5: .* ▲ human human to c5: ", read)
    assert "2 earlier turns" in read
    assert words(section(page, "replies")).count("job crisis, shame: who is asking") == 6
    assert "personality 4 · helpfulness 4 · error: hasty advice" in words(section(page, "replies"))
    assert "Not in this directory" not in page


def test_figures_are_grouped_and_what_is_not_significant_is_marked(tmp_path: Path) -> None:
    page = page_of(make_folder(tmp_path / "demo"))
    titles = ("Likelihood", "Overlap", "Variety", "Judge (", "Judge, shares", "Safety (", "Dialogues with")
    places = [page.index(title) for title in titles]
    assert places == sorted(places)
    assert places[-1] < page.index("As published") < page.index("Other figures")
    assert row(page, "NLL") == "NLL 12 0.500 0.375 to 0.625 0.625 n.s. 0.500 to 0.750 0.750 n.s. 0.625 to 0.875"
    assert row(page, "BLEU-2") == "BLEU-2 12 0.500 0.375 to 0.625 0.625 * 0.500 to 0.750 0.750 * 0.625 to 0.875"
    assert row(page, "distinct-2").count("n.t.") == row(page, "ESConv: BLEU-2").count("n.t.") == 2
    assert "difference from M0 is not significant" in words(page)
    assert "NLL M1 minus M0 -0.125 -0.25 0.0 12 0.75 0.75".replace("-", "\N{MINUS SIGN}") in words(page)


def test_what_the_judge_answered_is_counted_by_system(tmp_path: Path) -> None:
    found = words(section(page_of(make_folder(tmp_path / "demo")), "judge"))
    for told in ("rating: rated 71 71 71", "rating: refused 29 29 29", "swap test: win 83 n/a n/a"):
        assert told in found


def test_the_share_of_unhelpful_replies_is_no_rating(tmp_path: Path) -> None:
    page = page_of(make_folder(tmp_path / "demo"))
    helpful, title, unhelpful = (
        page.index(f"<th scope={text}")
        for text in ('"row">judge: helpfulness', '"rowgroup" colspan="4"><span>Judge, shares', '"row">judge: unhelpful')
    )
    assert helpful < title < unhelpful
    assert "share, lower is better" in section(page, "plots"), "the panel's scale"


def test_so_few_conversations_that_nothing_can_be_significant_are_told_of(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo")
    assert "No difference on so few" not in page_of(folder)
    metrics = make_metrics(SYSTEMS, judged=True)
    for one in (*metrics["comparisons"], *(rate["raw"] for rate in metrics["win_rates"])):
        one["n"] = 5
    (folder / "metrics.json").write_text(json.dumps(metrics))
    page = page_of(folder)
    for part in ("figures", "plots"):
        assert "No difference on so few conversations (up to 5) can be significant" in words(section(page, part))


def test_what_was_cut_is_told_beside_what_was_left_out(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo")
    metrics = make_metrics(SYSTEMS, judged=True)
    for lost, told in ((0, False), (3, True)):
        metrics["cut"] = {"contexts_left_out": 0, "replies_lost": lost, "faults": 1200 * lost}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        found = words(section(page_of(folder), "definitions"))
        assert ("does not fit (3), faulty records (3,600)." in found) == ("Not everything was measured" in found) == told
        assert "contexts too long" not in found


@pytest.mark.parametrize(("p", "mark"), [(0.05, "n.s."), (0.0499, "*")])
def test_the_bound_of_significance(tmp_path: Path, p: float, mark: str) -> None:
    folder = make_folder(tmp_path / "demo")
    metrics = make_metrics(SYSTEMS, judged=True)
    metrics["comparisons"] = [one | {"p": 0.001, "p_corrected": p} for one in metrics["comparisons"]]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert f"0.625 {mark}" in row(page_of(folder), "NLL")


def test_win_rates_are_turned_round(tmp_path: Path) -> None:
    page = page_of(make_folder(tmp_path / "demo"))
    raw, controlled = words(section(page, "plots")).split("Win rate, ")[1:]
    assert raw.startswith("raw row over column ● M0 ■ M1 ▲ human ● M0 35 % * 22 to 48 % 10 on 12 conv. 20 % inc. 35 % n.s. 22")
    assert "■ M1 65 % * 52 to 78 % 10 on 12 conv. 20 % inc. 35 % n.t. 22" in raw
    assert controlled.count("10 on 12 conv.") == 2
    assert "■ M1 55 % 43 to 68 % 10" in controlled, "the test is of the raw rates"
    assert "unparsable p p, corrected M1 over M0 5 2 1 2 1 1 0.01 0.01 human over M0 5 2 1 2 1 1 0.6 0.6" in controlled


def test_drawings_are_sound_and_their_ids_unique(tmp_path: Path) -> None:
    page = page_of(make_folder(tmp_path / "demo"))
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    bars, rounds, broken_down, lengths = 7, 7, 2, 3
    assert len(drawings) == bars + rounds + broken_down + lengths
    for drawing in drawings:
        ET.fromstring(drawing)
        assert not re.search("(?:fill|stroke): #(?![0-9a-f]{6};?)", drawing)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([\w.-]+)', page)) <= set(ids)
    for look in looks(SYSTEMS).values():
        assert page.count(look.colour) > 10


def test_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo")
    first = write_report(folder).read_bytes()
    shutil.copytree(folder, tmp_path / "elsewhere" / "other")
    assert write_report(tmp_path / "elsewhere" / "other").read_bytes() == first


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    hostile = f"{HOSTILE} {OTHER_SCRIPTS} \x00\x1b $x$ &amp; #a \u202e {{{{ 7*7 }}}}"
    name = f"M1 {HOSTILE} \x1b"
    folder = make_folder(tmp_path / "demo", ("M0", name), said=hostile)
    metrics = make_metrics(("M0", name), judged=True)
    texts = {"name": hostile, "split": hostile, "definitions": {"nll": hostile}, "left_out": {hostile: hostile}}
    rows = [one | {"by": f"profile.{hostile}", "is": hostile} for one in metrics["breakdown"]]
    judge, errors = metrics["judge"] | {"name": hostile}, {name: {hostile: 1}}
    metrics |= {**texts, "judge": judge, "breakdown": rows, "errors": errors}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "config.yaml").write_text(hostile, encoding="utf-8")
    page = page_of(folder)
    tags = Tags(page)
    assert not {"script", "img"} & tags.names
    assert not [value for attribute, value in tags.attributes if attribute in ("src", "onerror")]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", page)
    assert escape(f"M0 to c5: {re.sub(chr(0) + '|' + chr(27), ' ', hostile)}") in page
    for drawing in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ET.fromstring(drawing)


def test_metrics_alone_are_enough(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo")
    others = [path.name for path in folder.iterdir() if path.name != "metrics.json"]
    for name in others:
        (folder / name).unlink()
    page = page_of(folder)
    absent = page[page.index("Not in this directory") :]
    assert len(others) == 6
    assert all(f"<code>{name}</code>" in absent for name in others)
    assert not re.findall(r'<section id="(?:replies|safety|dialogues)">|href="#(?:replies|safety|dialogues)"', page)
    assert "Length against" not in page
    with pytest.raises(UserError, match=r"metrics\.json"):
        write_report(tmp_path)


def test_no_judge_and_one_system_without_values(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo", ("only",), judged=False)
    metrics = make_metrics(("only",), judged=False)
    nothing = {name: estimate(None) for name in FIGURES[1:]}
    metrics["systems"][0]["figures"] = {"nll": estimate(0.5, None), **nothing, "words": estimate(float("nan"))}
    metrics["breakdown"] = [one | estimate(None) for one in metrics["breakdown"]]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    page = page_of(folder)
    assert "Judge none" in words(page)
    assert row(page, "NLL") == "NLL 12 0.500"
    assert row(page, "BLEU-2") == "BLEU-2 n/a"
    assert row(page, "words") == "words n/a"
    assert "baseline" not in words(page)
    assert "n.s." not in words(page)
    assert page.count("<svg") == 1
    for title in ("Who is preferred", "Over the rounds", "By problem", "Length against", "More of the judge"):
        assert title not in page
    assert words(section(page, "replies")).count("Human supporter") == 6
    assert '<p class="rating">' not in page


def test_systems_that_went_on_their_own_history_stand_under_their_own_words(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo", ("M0", "M1"))
    lines = [json.loads(line) for line in (folder / "replies.jsonl").read_text().splitlines()]
    for one in lines:
        one["context"]["turns"][3]["text"] = f"what {one['system']} said"
    write_lines(folder / "replies.jsonl", lines)
    read = words(section(page_of(folder), "replies"))
    for name, sign in (("M0", "●"), ("M1", "■")):
        assert read.count(f"what {name} said") == 6
        assert re.search(rf"{sign} {name} Seeker [^●■]* Supporter what {name} said [^●■]* Reply: {name} to c0", read)


def test_eight_systems_with_long_names(tmp_path: Path) -> None:
    names = ("M0", *(f"outputs/esconv-qwen2-7b/{word}/round-2" for word in "abcdefg"))
    page = page_of(make_folder(tmp_path / "demo", names))
    found = looks(names)
    assert len({look.short for look in found.values()}) == len({look.colour for look in found.values()}) == 8
    assert max(len(look.short) for look in found.values()) <= 20
    for name in names:
        assert words(page).count(f"{found[name].sign} {name}") >= 8
    assert len({(look.colour, look.marker) for look in looks([str(i) for i in range(40)]).values()}) == 40


def test_figures_have_names_to_read() -> None:
    told = {
        "esconv_bleu_2": "ESConv: BLEU-2",
        "rouge_l": "ROUGE-L",
        "judge_safety": "judge: safety",
        "feedback_auc": "feedback AUC",
    }
    assert {name: label(name) for name in told} == told
