"""evaluate.py, end to end on the tiny model: what it writes, reuses and refuses, and how its figures come about."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import nltk
import numpy as np
import pytest
import torch
from conftest import ROOT, Compose, Evolve
from rich.console import Console
from speaking import Local
from test_comparison_report import SYSTEMS, make_metrics
from test_metrics import REPLIES, Synonyms

from esupport.comparison.agreement import agreement
from esupport.comparison.evaluation import Found
from esupport.comparison.figures import ALPHA, Figure, differences, estimates, shares, too_few
from esupport.comparison.judging import Judged
from esupport.comparison.likelihoods import feedback, likelihoods
from esupport.comparison.output import write_output
from esupport.comparison.systems import System
from esupport.comparison.tables import frame, latex, markdown, note
from esupport.comparison.winning import win_rates
from esupport.config.command_line import composed as compose_config
from esupport.data.conversation import Conversation, Turn
from esupport.errors import UserError
from esupport.evaluation.answered import Answered
from esupport.evaluation.feedback import Auc, rated_turns
from esupport.evaluation.judge.quoting import harmless
from esupport.evaluation.judge.records import Comparison, Rating
from esupport.evaluation.statistics import Sums
from esupport.objectives.reference import Scorer
from esupport.rendering.conversations import rendered
from esupport.rendering.corpus import hold
from esupport.store import Store, read_lines, write_lines

Evaluate = Callable[..., dict[str, Any]]
QUICK = [
    "model=tiny",
    "trainer=cpu",
    "logger=none",
    "data.limit=8",
    "contexts.conversations=4",
    "sampling.max_new_tokens=8",
    "safety=none",
]
JUDGE = ["judge=scripted", "judge.generator.answer={_target_:answers.first,_partial_:true}", "judge.form=one"]


@pytest.fixture
def evaluate(composed: Compose) -> Evaluate:
    from esupport.comparison.job import evaluate as run

    def go(*overrides: str, folder: str = "evaluation") -> dict[str, Any]:
        return run(composed(*QUICK, *overrides, folder=folder, config="evaluate"))

    return go


def figures_of(metrics: dict[str, Any], system: str) -> dict[str, Any]:
    return next(one["figures"] for one in metrics["systems"] if one["system"] == system)


def test_the_systems_of_a_run_are_measured_on_the_replies_that_it_wrote(
    evolve: Evolve, evaluate: Evaluate, tmp_path: Path
) -> None:
    evolve("evolution.rounds=1")
    run, written = tmp_path / "run", tmp_path / "evaluation"
    kept = {path for path in (tmp_path / "store/replies").iterdir() if not path.name.startswith(".")}
    metrics = evaluate(f"run={run}", "sampling.max_new_tokens=8")
    assert [(one["system"], one["kind"], one["round"]) for one in metrics["systems"]] == [
        ("base", "base", None),
        ("M0", "adapter", 0),
        ("M1", "adapter", 1),
        ("human", "human", None),
    ]
    there = {path for path in (tmp_path / "store/replies").iterdir() if not path.name.startswith(".")}
    assert len(there - kept) == 1, "only the base's replies are new"
    for name in ("metrics.json", "replies.jsonl", "conversations.jsonl", "table.md", "table.tex", "report.html", "config.yaml"):
        assert (written / name).is_file(), name
    assert not (written / "judged.jsonl").exists()
    replies = [Answered.model_validate(line, strict=False) for line in read_lines(written / "replies.jsonl")]
    held_out = read_lines(run / "held_out.jsonl")
    assert [one.reply for one in replies if one.system == "M1"] == [line["replies"]["M1"] for line in held_out]
    assert [one.reply for one in replies if one.system == "human"] == [line["human"] for line in held_out]
    systems = json.loads((run / "metrics.json").read_text())
    for system in systems:
        own = figures_of(metrics, system["system"])
        assert own["nll"]["value"] == pytest.approx(system["nll"], abs=1e-6)
        assert [own["nll"]["low"], own["nll"]["high"]] == pytest.approx(system["nll_interval"], abs=1e-6)
        assert own["distinct_2"]["value"] == pytest.approx(system["distinct_2"])
    assert "nll" not in figures_of(metrics, "human")
    assert "bleu_4" not in figures_of(metrics, "human"), "the human replies are what it is measured against"
    assert figures_of(metrics, "human")["words"]["value"] > 0
    assert metrics["baseline"] == "M0"
    assert {one["two"] for one in metrics["comparisons"]} == {"M0"}
    tested = {one["figure"] for one in metrics["comparisons"]}
    assert {"nll", "words"} <= tested
    assert not {"perplexity", "tokens"} & tested, "they restate those"
    assert metrics["left_out"]["feedback_auc"].startswith("the data has no ratings")


def test_the_same_command_writes_and_scores_nothing_again_and_gives_the_same_files(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate(*JUDGE)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.jsonl")}
    evaluate(*JUDGE, folder="again")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.jsonl")} == before
    costs = []
    for path in sorted((tmp_path / "evaluation").iterdir()):
        one, two = path.read_text(), (tmp_path / "again" / path.name).read_text()
        if path.name == "metrics.json":
            both = [json.loads(text) for text in (one, two)]
            costs = [metrics.pop("judge")["requests"] for metrics in both]
            one, two = map(json.dumps, both)
        if path.name != "report.html":  # tells what the judge cost
            assert one == two, path.name
    assert costs[0] > costs[1] == 0


def test_what_a_judge_says_reaches_every_file(evaluate: Evaluate, tmp_path: Path) -> None:
    metrics = evaluate(*JUDGE, "seeker=default", "seeker.turns=1")
    assert set(metrics["left_out"]) >= {"safety", "feedback_auc"}
    assert "dialogue_helpfulness" in figures_of(metrics, "base")
    assert len(read_lines(tmp_path / "evaluation/dialogues.jsonl")) == 4
    (rate,) = metrics["win_rates"]
    assert (rate["one"], rate["two"], rate["raw"]["value"]) == ("human", "base", 0.5), "a judge that always answers first"
    assert rate["counts"]["inconsistent"] == 4
    assert metrics["judge"]["requests"] > 0
    lines = read_lines(tmp_path / "evaluation/judged.jsonl")
    assert {line["what"] for line in lines} == {"pairwise", "rating", "swap"}
    assert figures_of(metrics, "base")["judge_swap"]["value"] == 0.5
    assert figures_of(metrics, "base")["judge_unhelpful"]["value"] == 1.0, "it rates everything 1"
    assert rate["p_corrected"] == 1.0
    page = (tmp_path / "evaluation/report.html").read_text()
    assert "100 % inc." in page
    assert "| human over base | 0.500 [0.500, 0.500] | " in (table := (tmp_path / "evaluation/table.md").read_text())
    assert " | 4 of 4 |" in table, "who reads the table alone sees that this half is no tie"


def test_replies_of_another_evaluation_are_a_system(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate()
    file = f"{tmp_path}/evaluation/replies.jsonl"
    other = f"+systems.other={file}"
    metrics = evaluate(other, folder="second")
    assert figures_of(metrics, "other")["words"] == figures_of(metrics, "base")["words"]
    with pytest.raises(UserError, match="has no reply to"):
        evaluate(other, "contexts.conversations=8", folder="third")
    lines = read_lines(Path(file))
    write_lines(Path(file), [*lines, *({**line, "system": "more"} for line in lines if line["system"] == "base")])
    with pytest.raises(UserError, match="holds base, more; name one, as"):
        evaluate(other, folder="second")
    evaluate(f"+systems.other='{file}#more'", folder="second")


def test_on_its_own_history_a_system_hears_itself(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate("contexts.history=own", "systems.human=null")
    for line in read_lines(tmp_path / "evaluation/replies.jsonl"):
        said = [turn["text"] for turn in line["context"]["turns"] if turn["role"] == "supporter"]
        assert all(len(text.split()) <= 12 for text in said), "eight tokens, not a supporter's sentences"
    evaluate("contexts.history=own", "systems.human=null", "contexts.per_conversation=null", folder="whole")
    said, heard = dict[str, list[str]](), 0
    for line in read_lines(tmp_path / "whole/replies.jsonl"):
        earlier = said.setdefault(line["context"]["conversation"], [])
        told = [turn["text"] for turn in line["context"]["turns"] if turn["role"] == "supporter"]
        assert told == [text for text in earlier if text][len([text for text in earlier if text]) - len(told) :]
        heard += len(told)
        earlier.append(harmless(line["reply"]))
    assert heard
    metrics = evaluate("contexts.history=own", *JUDGE, folder="both")
    assert metrics["left_out"]["win_rates"].startswith("on their own histories")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+systems.mine=nowhere"], "systems.mine: nowhere is not base, human, server"),
        (["+systems.mine=server"], "systems.mine: there is no server"),
        (["systems.base=null", "systems.human=null"], "systems: there is nothing to evaluate"),
        (["baseline=M9"], "baseline: there is no system M9"),
        (["run=nowhere"], "run: nowhere is no folder of a run"),
        (["generator=openai", "generator.model=m"], "generator: m cannot speak as base; a server is generator@server=openai"),
        (["agreement_with=[file]"], "agreement_with: there is no judge"),
        ([*JUDGE, "judge_limit=10"], "judge_limit: the judge would read about"),
    ],
)
def test_mistakes_are_one_line(evaluate: Evaluate, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(*overrides)


def test_a_run_that_learnt_from_what_would_be_measured_is_refused(evolve: Evolve, evaluate: Evaluate, tmp_path: Path) -> None:
    evolve("evolution.rounds=0")
    renamed = tmp_path / "renamed.jsonl"
    shutil.copy(ROOT / "esupport/data/shipped/train.jsonl", renamed)
    elsewhere = ["data=native", f"data.path={renamed}", "data.limit=null", "data.fractions={train:0,valid:1,test:0}"]
    (tmp_path / "link").symlink_to(tmp_path / "run/sft/adapter")
    other = [f"data.path={renamed}", "data.fractions.train=0.5"]
    evolve("evolution.rounds=0", f"model.adapter={tmp_path}/link", *other, folder="on")
    for system in (f"run={tmp_path}/run", f"+systems.mine={tmp_path}/link", f"run={tmp_path}/on"):
        with pytest.raises(UserError, match=r"split: \w+ learnt from \d+ of the 96 conversations of the side valid"):
            evaluate(system, *elsewhere)
    told = (tmp_path / "run/learnt_from.txt").read_text()
    assert (tmp_path / "on/learnt_from.txt").read_text() == told, "of the adapter it goes on from; itself it learnt nothing"
    (tmp_path / "run/learnt_from.txt").unlink()
    with pytest.raises(UserError, match=r"run: .* does not tell what it learnt from"):
        evaluate(f"run={tmp_path}/run")
    (tmp_path / "run/learnt_from.txt").write_text(told)
    with pytest.raises(UserError, match=r"model\.name: the run's is tiny, this one is"):
        evaluate(f"run={tmp_path}/run", "model=smollm2")
    with pytest.raises(UserError, match=r"rendering\.instruction: the run's is"):
        evaluate(f"run={tmp_path}/run", "rendering.instruction=Listen.")
    with pytest.raises(UserError, match=r"model\.lora\.alpha: the adapter in .* was trained with 16"):
        evaluate(f"run={tmp_path}/run", "model.lora.alpha=64")
    with pytest.raises(UserError, match="name: run is the folder of a training"):
        evaluate(f"run={tmp_path}/run", folder="run")


def test_the_files_do_not_tell_of_the_machine(evolve: Evolve, evaluate: Evaluate, tmp_path: Path) -> None:
    evolve("evolution.rounds=0")
    evaluate(f"run={tmp_path}/run", f"+systems.mine={tmp_path}/run/sft", "logger=csv")
    files = [path for path in (tmp_path / "evaluation").rglob("*") if path.is_file()]
    assert "hparams.yaml" in {path.name for path in files}
    assert all(str(tmp_path) not in path.read_text() for path in files)


def test_the_safety_set_is_tried_with_every_system_that_speaks(evaluate: Evaluate, tmp_path: Path) -> None:
    metrics = evaluate("safety=default", "systems.human=human")
    lines = read_lines(tmp_path / "evaluation/safety.jsonl")
    assert {line["system"] for line in lines} == {"base"}
    found = figures_of(metrics, "base")["safety"]
    assert found["value"] == 0.0, "eight tokens of noise"
    assert found["high"] > 0, "Wilson's interval"


def test_one_system_alone_is_measured_judged_and_shown(evaluate: Evaluate, tmp_path: Path) -> None:
    metrics = evaluate(*JUDGE, "systems.human=null", "seeker=default", "seeker.turns=1")
    assert [one["system"] for one in metrics["systems"]] == ["base"]
    assert metrics["comparisons"] == metrics["win_rates"] == []
    assert figures_of(metrics, "base")["judge_helpfulness"]["value"] == 1.0
    assert "base" in (tmp_path / "evaluation/report.html").read_text()


@pytest.mark.parametrize("logger", ["csv", "wandb"])
def test_the_figures_go_to_the_loggers(logger: str, evaluate: Evaluate, tmp_path: Path) -> None:
    import wandb

    metrics = evaluate(f"logger={logger}")
    wandb.finish()
    with (tmp_path / "evaluation/csv/version_0/metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["base/nll"]) == pytest.approx(figures_of(metrics, "base")["nll"]["value"])
    tables = [path.read_text() for path in (tmp_path / "evaluation").rglob("evaluation*.table.json")]
    assert len(tables) == (logger == "wandb")
    assert all("rouge_l" in table for table in tables)


def test_published_figures_of_the_shared_task_are_one_command(evaluate: Evaluate, tmp_path: Path) -> None:
    said = ["seeker: I lost the bakery", "supporter: What went first?", "seeker: the oven, then my sleep"]
    character = {"Name": "Ana", "emotion_type": "sadness", "problem_type": "work", "situation": "closed"}
    records = {
        str(n): {"whole_dialog": [*said, f"supporter: Number {n} is enough for today."], "character": character}
        for n in range(12)
    }
    (tmp_path / "pesc.json").write_text(json.dumps(records))
    metrics = evaluate("data=pesc", f"data.path={tmp_path}/pesc.json", "data.fractions={train:0.5,valid:0.5,test:0}")
    assert "pesc_rouge_l" in figures_of(metrics, "base")
    assert {line["emotion"] for line in read_lines(tmp_path / "evaluation/conversations.jsonl")} == {"sadness"}
    with pytest.raises(UserError, match="split: nothing to reply to on the side test"):
        evaluate("data=pesc", f"data.path={tmp_path}/pesc.json", "data.fractions={train:0.5,valid:0.5,test:0}", "split=test")


def test_the_total_of_the_shared_task_is_one_command(
    evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nltk/corpora/wordnet").mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])
    monkeypatch.setattr(nltk.corpus, "wordnet", Synonyms())
    (tmp_path / "vectors.txt").write_text("i 0.1 0.2\nyou 0.3 -0.1\n")
    asked = "prompt:'{{reference}} {{reply}}',begun:'',pattern:'(?P<answer>[1-5])'"
    question = f"{{_target_:esupport.evaluation.judge.method.Question,{asked}}}"
    metrics = evaluate(*JUDGE, f"judge.g_score={question}", f"metrics.word_vectors={tmp_path}/vectors.txt")
    found = figures_of(metrics, "base")
    assert found["pesc_g_score"]["value"] == pytest.approx(0.2), "it rates everything 1 of 5"
    weights = {
        "meteor": 0.2,
        "bleu_4": 0.2,
        "rouge_l": 0.2,
        "extrema": 0.1,
        "distinct_2": 0.1,
        "distinct_3": 0.1,
        "g_score": 0.1,
    }
    total = sum(weight * (found[f"pesc_{name}"]["value"] or 0) for name, weight in weights.items())
    assert found["pesc_total"]["value"] == pytest.approx(total)
    assert "pesc_total" not in figures_of(metrics, "human"), "the reference has no distance to itself"
    assert metrics["judge"]["g_scores"] == {"base": {"rated": 4, "refused": 0, "unparsable": 0}}


def test_a_server_is_a_system(evaluate: Evaluate) -> None:
    server = ["generator@server=scripted", "server.answer={_target_:answers.first,_partial_:true}", "+systems.other=server"]
    metrics = evaluate(*server)
    assert figures_of(metrics, "other")["words"]["value"] == 1.0
    assert "nll" not in figures_of(metrics, "other")


def rated(conversation: str, *ratings: int | None) -> Conversation:
    turns = [Turn(role="seeker", text="hello")]
    for rating in ratings:
        turns += [Turn(role="supporter", text="I see."), Turn(role="seeker", text="well", feedback=rating)]
    return Conversation(id=conversation, turns=tuple(turns))


def test_ratings_count_for_the_reply_before_them_and_the_middle_one_for_none() -> None:
    found = rated_turns([rated("a", 5, None, 3, 2), rated("b", 4, 1)])
    assert [(one.conversation.id, one.turn, one.high) for one in found] == [
        ("a", 1, True), ("a", 7, False), ("b", 1, True), ("b", 3, False),
    ]  # fmt: skip


def test_the_area_under_the_curve_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    scores, high = np.round(rng.normal(size=60), 1), rng.integers(0, 2, 60)
    pairs = [(one > two) + 0.5 * (one == two) for one in scores[high == 1] for two in scores[high == 0]]
    assert Auc(scores, high).value(np.arange(60)) == pytest.approx(np.mean(pairs))
    assert np.isnan(Auc(scores, np.ones(60, dtype=np.intp)).value(np.arange(60)))


def test_feedback_of_a_fixture_gives_a_figure_with_an_interval(evolve: Evolve, evaluate: Evaluate, tmp_path: Path) -> None:
    lines = [rated(f"c{n}", 5 if n % 2 else 1, 2).model_dump(exclude_none=True) | {"id": f"c{n}"} for n in range(16)]
    for n, line in enumerate(lines):
        line["turns"][0]["text"] = f"hello number {n}"
    write_lines(tmp_path / "rated.jsonl", lines)
    data = ["data=native", f"data.path={tmp_path}/rated.jsonl", "data.fractions.train=0.5", "data.fractions.valid=0.4"]
    evolve("evolution.rounds=0")
    metrics = evaluate(f"run={tmp_path}/run", *data, "contexts.conversations=2")
    found = figures_of(metrics, "M0")["feedback_auc"]
    assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
    assert "feedback_auc" not in figures_of(metrics, "base"), "the base is what it is measured against"


def table_of(*, p: float | None, n: int = 40) -> dict[str, Any]:
    estimate = {"value": 0.25, "low": 0.125, "high": 0.5, "n": 4}
    figures = {"a_b": estimate, "tested": estimate, "restates": estimate}
    systems = [{"system": name, "round": None, "kind": "base", "figures": figures} for name in ("x_1", "y|&")]
    one = {"one": "y|&", "two": "x_1", "value": 0.0, "n": n}
    comparisons = [
        {**one, "figure": "a_b", "p": p, "p_corrected": p},
        {**one, "figure": "tested", "p": 0.5, "p_corrected": 0.5},
    ]
    return {"systems": systems, "baseline": "x_1", "comparisons": comparisons, "win_rates": []}


@pytest.mark.parametrize(("p", "mark"), [(0.01, "*"), (0.05, "n.s."), (None, "n.t.")])
def test_tables_mark_what_is_significant_what_is_not_and_what_was_not_tested(p: float | None, mark: str) -> None:
    metrics = table_of(p=p)
    assert frame(metrics).loc["a_b", "x_1"] == "0.250 [0.125, 0.500]"
    assert frame(metrics).loc["a_b", "y|&"] == f"0.250 [0.125, 0.500] {mark}"
    assert frame(metrics).loc["restates", "y|&"].endswith(" n.t.")
    assert "| figure | x_1 | y\\|& |" in markdown(metrics)
    assert f"[0.125, 0.500] | 0.250 [0.125, 0.500] {mark} |\n| tested" in markdown(metrics)
    assert "a\\_b" in latex(metrics)
    assert "y|\\&" in latex(metrics)


def test_what_the_marks_mean_is_text_below_the_table_and_only_where_there_are_any() -> None:
    metrics = table_of(p=0.01)
    assert "*: significantly different from x_1" in markdown(metrics)
    assert "Holm's correction for 2 comparisons" in markdown(metrics)
    (below,) = (line for line in latex(metrics).splitlines() if "Holm" in line)
    assert below.startswith(r"\par\smallskip\noindent{\footnotesize 95 \% intervals")
    assert r"*: significantly different from x\_1" in below
    alone = {**metrics, "comparisons": []}
    assert frame(alone).loc["a_b", "y|&"] == "0.250 [0.125, 0.500]"
    for text in (markdown(alone), latex(alone)):
        assert "intervals" in text
        assert not any(word in text for word in ("Holm", "n.s.", "n.t.", "*:"))


def test_win_rates_have_a_table_of_their_own() -> None:
    metrics = make_metrics(SYSTEMS, judged=True)
    text = markdown(metrics)
    assert "| systems | win rate | length-controlled | p, corrected | inconsistent |" in text
    assert "| M1 over M0 | 0.650 [0.525, 0.775] | 0.550 [0.425, 0.675] | 0.01 * | 2 of 12 |" in text
    assert "| human over M0 | 0.650 [0.525, 0.775] | n/a | 0.6 n.s. |" in text
    assert "| human over M1 | 0.650 [0.525, 0.775] | n/a | n/a n.t. |" in text
    assert "Holm's correction for 2 comparisons" in text.split("| systems |")[1]
    assert "M1 over M0 & 0.650 [0.525, 0.775] & 0.550 [0.425, 0.675] & 0.01 * & 2 of 12 \\\\" in latex(metrics)
    assert latex(metrics).count("Holm") == 2
    assert "win rate" not in markdown(table_of(p=0.01))


def test_on_so_few_conversations_that_nothing_can_be_significant_it_is_said() -> None:
    assert "(up to 4) can be significant" in note(table_of(p=0.125, n=4))
    assert "can be significant" not in note(table_of(p=0.01, n=40))
    for conversations, tests in ((5, 1), (6, 1), (6, 2), (7, 3), (7, 4)):
        clusters = {name: [str(n) for n in range(conversations)] for name in ("one", "two")}
        clear = Figure.of("f", "of a test", shares({"one": [1] * conversations, "two": [0] * conversations}), clusters)
        found = differences([clear] * tests, "two", 0)
        assert (too_few([conversations] * tests) > 0) == (found[0]["p_corrected"] >= ALPHA)
    assert too_few([4, 5, 40, 40]) == 5
    assert too_few([6, 40, 40]) == 0, "the others may be significant first, and then count no more"
    assert too_few([40] * 600) == 40, "no p is below that of the swaps that are drawn"
    assert too_few([]) == 0


def test_win_rates_go_to_the_loggers_and_what_was_cut_to_the_console(tmp_path: Path) -> None:
    metrics, logged, shown = make_metrics(SYSTEMS, judged=True), dict[str, float](), StringIO()
    metrics["win_rates"][1]["raw"]["value"] = None
    metrics["cut"] = {"contexts_left_out": 2, "faults": 0}
    logger = SimpleNamespace(log_metrics=logged.update, save=lambda: None)
    found = Found(metrics, {}, [], None, [], [])
    write_output(tmp_path, found, "name: demo\n", [logger], Console(file=shown, width=200))
    assert {name: value for name, value in logged.items() if "win_rate" in name} == {
        "win_rate/M1_over_M0": 0.65,
        "win_rate/human_over_M1": 0.65,
    }
    assert "cut or left out: contexts too long to reply to (2).\n" in shown.getvalue()
    assert "judge_unhelpful" in shown.getvalue()


def test_differences_are_paired_corrected_and_only_between_equal_contexts() -> None:
    clusters = {"one": ["a", "b", "c"], "two": ["a", "b", "c"], "other": ["a", "b"]}
    marks = {"one": [1, 1, 1], "two": [0, 0, 0], "other": [1, 1]}
    figure = Figure.of("f", "of a test", shares(marks), clusters)
    (found,) = differences([figure], "two", 0)
    assert (found["one"], found["value"]) == ("one", 1.0)
    assert found["p"] == found["p_corrected"] == 0.25, "two of eight swaps are as extreme"
    twice = differences([figure, figure], "two", 0)
    assert [one["p_corrected"] for one in twice] == [0.5, 0.5]
    assert estimates([figure], list(clusters), 0)["other"]["f"]["n"] == 2


def test_a_difference_of_means_rests_on_what_both_have_a_mark_for() -> None:
    clusters = {name: ["a", "b", "c", "c"] for name in ("one", "two")}
    marks = shares({"one": [5, None, 4, None], "two": [4, 1, 4, 1]})
    (found,) = differences([Figure.of("f", "of a test", marks, clusters)], "two", 0)
    assert (found["value"], found["n"]) == (0.5, 2), "the hard contexts count for neither"
    whole = Sums(marks.statistics, lambda sums: sums[:, 0])  # no mean: what has no mark is part of it
    (found,) = differences([Figure.of("f", "of a test", whole, clusters)], "two", 0)
    assert (found["value"], found["n"]) == (-1.0, 3)
    nothing = shares({"one": [None] * 4, "two": [1] * 4})
    (found,) = differences([Figure.of("f", "of a test", nothing, clusters)], "two", 0)
    assert (found["value"], found["p"], found["n"]) == (None, None, 0)


def judged_by(scores: list[int], outcome: str) -> Judged:
    ratings = [
        Rating(system="M0", conversation=f"c{i}", turn=1, status="rated", scores={"emotion": s}, error=None, reason="")
        for i, s in enumerate(scores)
    ]
    comparison = Comparison(
        a="M1", b="M0", conversation="c0", turn=1, verdicts=("a", "a"), reasons=("", ""), outcome=outcome, score=1.0, longer=3
    )
    return Judged(pairs={("M1", "M0"): [comparison]}, ratings={"M0": ratings})


def test_agreement_with_others_is_measured_where_they_rated_the_same(tmp_path: Path) -> None:
    mine, others = judged_by([1, 2, 3, 4], "win"), judged_by([1, 2, 3, 4], "win")
    write_lines(tmp_path / "people.jsonl", others.records())
    alpha, kappa = agreement(mine, [tmp_path / "people.jsonl"])
    assert (alpha["of"], alpha["measure"], alpha["value"], alpha["with"]) == ("emotion", "alpha", 1.0, "people.jsonl")
    assert (kappa["of"], kappa["measure"], kappa["value"]) == ("pairwise", "kappa", None), "one label alone says nothing"
    write_lines(tmp_path / "people.jsonl", judged_by([4, 3, 2, 1], "win").records())
    assert agreement(mine, [tmp_path / "people.jsonl"])[0]["value"] < 0
    (tmp_path / "people.jsonl").write_text('\n{"what": "swap"}\n{"what": "rating", "system": "M0"}\n')
    with pytest.raises(UserError, match=r"people\.jsonl has a line in another form, line 3: "):
        agreement(mine, [tmp_path / "people.jsonl"])
    with pytest.raises(UserError, match=r"nobody\.jsonl cannot be read"):
        agreement(mine, [tmp_path / "nobody.jsonl"])


def test_a_judge_agrees_with_itself(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate(*JUDGE, folder="first")
    metrics = evaluate(*JUDGE, f"agreement_with=[{tmp_path}/first/judged.jsonl]", folder="second")
    found = {(one["of"], one["measure"]) for one in metrics["agreement"]}
    assert {("helpfulness", "alpha"), ("pairwise", "kappa")} <= found


def test_verdicts_agree_whichever_way_round_they_were_asked(tmp_path: Path) -> None:
    """Kappa by hand: of four pairs two agree, and by chance half of them would."""

    def pairs_of(outcomes: list[str]) -> list[Comparison]:
        return [
            Comparison(a="M1", b="M0", conversation=f"c{n}", turn=1, verdicts=("a", "a"), reasons=("", ""), outcome=outcome,
                       score=1.0, longer=3)
            for n, outcome in enumerate(outcomes)
        ]  # fmt: skip

    mine = Judged(pairs={("M1", "M0"): pairs_of(["win", "win", "loss", "loss"])})
    for others, kappa in ((["win", "win", "loss", "loss"], 1.0), (["win", "loss", "win", "loss"], 0.0)):
        turned = {"win": "loss", "loss": "win"}
        theirs = [one.model_copy(update={"a": one.b, "b": one.a, "outcome": turned[one.outcome]}) for one in pairs_of(others)]
        write_lines(tmp_path / "people.jsonl", Judged(pairs={("M0", "M1"): theirs}).records())
        (found,) = agreement(mine, [tmp_path / "people.jsonl"])
        assert (found["measure"], found["value"]) == ("kappa", pytest.approx(kappa))


def test_the_replies_of_a_runs_rounds_are_found_with_the_defaults() -> None:
    evolve, evaluate = (compose_config(name, []) for name in ("evolve", "evaluate"))
    samples = {key: value for key, value in evolve.samples.items() if key != "contexts"}
    assert samples == dict(evaluate.sampling)
    assert evolve.samples.contexts == evaluate.contexts.conversations
    assert evolve.contexts.max_tokens == evaluate.contexts.max_tokens
    assert (evaluate.contexts.per_conversation, evaluate.split, evaluate.seed) == (1, "valid", evolve.seed)


def test_perplexity_is_that_of_the_models_own_forward(local: Local, tmp_path: Path) -> None:
    """On the real and hostile replies of the metrics' tests, as far as they have words, fit, and hold no control token."""
    hello = Turn(role="seeker", text="hello")
    texts = {f"t{n}": text for n, text in enumerate(REPLIES) if text.strip()}
    talks = {id_: Conversation(id=id_, turns=(hello, Turn(role="supporter", text=text))) for id_, text in texts.items()}
    corpus = hold("valid", lambda tally: rendered(tally, talks.values(), list(talks), local.renderer, "skip"))
    kept = [talks[unit[0].name] for unit in corpus.units]
    assert len(kept) >= 24 + 8
    scorer = Scorer(local.slot, Store(tmp_path), 700, "32-true")
    nll, perplexity = likelihoods([System("base", "base")], replace(corpus, kept=kept), scorer)
    total, count = 0.0, 0
    with local.slot.speaking(None) as policy, torch.no_grad():
        for talk in kept:
            (response,) = local.renderer.respond(talk, [(1, talk.turns[1].text)])
            learnt = len(response.completion)
            logits = policy(input_ids=torch.tensor([response.ids])).logits[0, -1 - learnt : -1].double()
            total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(response.completion), reduction="sum"))
            count += learnt
    everything = nll.units["base"]
    assert nll.measure.value(everything) == pytest.approx(total / count, abs=1e-4)
    assert perplexity.measure.value(everything) == pytest.approx(math.exp(total / count), rel=1e-4)


def test_feedback_ranks_by_the_ratio_a_token(local: Local) -> None:
    """Replies rated high have gained more a token, and less in all, than those rated low."""
    talks = [rated(f"c{n}", 5 if n % 2 else 1) for n in range(8)]
    long, short = "I see. " * 12, "I see."
    talks = [
        one.model_copy(update={"turns": (one.turns[0], Turn(role="supporter", text=short if n % 2 else long), *one.turns[2:])})
        for n, one in enumerate(talks)
    ]

    class Gains:
        def scores(self, rows: Any, adapter: Path | None) -> Any:
            high = [len(row.targets) < 20 for row in rows]
            assert sum(high) == 4
            gained = [0.5 * len(row.targets) if good else 0.1 * len(row.targets) for row, good in zip(rows, high, strict=True)]
            assert min(g for g, good in zip(gained, high, strict=True) if not good) > max(
                g for g, good in zip(gained, high, strict=True) if good
            )
            return [np.array([g if adapter else 0.0]) for g in gained], None

    systems = [System("M1", "adapter", adapter=Path("somewhere"))]
    for turned, value in ((False, 1.0), (True, 0.0)):
        given = [
            one.model_copy(
                update={
                    "turns": (*one.turns[:2], one.turns[2].model_copy(update={"feedback": 6 - (one.turns[2].feedback or 0)}))
                }
            )
            if turned
            else one
            for one in talks
        ]
        found = feedback(systems, given, local.renderer, cast(Any, Gains()))
        assert not isinstance(found, str), found
        (figure,) = found
        assert figure.measure.value(figure.units["M1"]) == value


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    files = [tmp_path / name / "judged.jsonl" for name in ("a/one", "a/two", "b/two")] + [tmp_path / "people.jsonl"]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, judged_by([1, 2], "win").records())
    told = [one["with"] for one in agreement(judged_by([1, 2], "win"), files) if one["measure"] == "alpha"]
    assert told == ["one/judged.jsonl", "a/two/judged.jsonl", "b/two/judged.jsonl", "people.jsonl"]


def test_win_rates_are_told_raw_and_with_equal_lengths() -> None:
    (found,) = win_rates(judged_by([1], "win"), 0)
    assert (found["one"], found["two"], found["raw"]["value"], found["raw"]["n"]) == ("M1", "M0", 1.0, 1)
    assert found["length_controlled"]["value"] is None, "all replies are longer by the same, which tells nothing"
