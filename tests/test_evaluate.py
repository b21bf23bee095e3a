"""evaluate.py, end to end on the tiny model: what it writes, reuses and refuses, and how its figures come about."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Compose, Evolve

from esupport.comparison.agreement import agreement
from esupport.comparison.figures import Figure, differences, estimates, shares
from esupport.comparison.judging import Judged
from esupport.comparison.tables import frame, latex, markdown
from esupport.comparison.winning import win_rates
from esupport.data.conversation import Conversation, Turn
from esupport.errors import UserError
from esupport.evaluation.answered import Answered
from esupport.evaluation.feedback import Auc, rated_turns
from esupport.evaluation.judge.records import Comparison, Rating
from esupport.store import read_lines, write_lines

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
    assert "inconsistent" in page


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
    with pytest.raises(UserError, match=r"data\.seed: the run was divided by 0, this by 1"):
        evaluate(f"run={tmp_path}/run", "data.seed=1")
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
    evaluate(f"run={tmp_path}/run", f"+systems.mine={tmp_path}/run/sft")
    for path in (tmp_path / "evaluation").iterdir():
        assert str(tmp_path) not in path.read_text(), path.name


def test_the_safety_set_is_tried_with_every_system_that_speaks(evaluate: Evaluate, tmp_path: Path) -> None:
    metrics = evaluate("safety=default", "systems.human=human")
    lines = read_lines(tmp_path / "evaluation/safety.jsonl")
    assert {line["system"] for line in lines} == {"base"}
    found = figures_of(metrics, "base")["safety"]
    assert found["value"] == 0.0, "eight tokens of noise"
    assert found["high"] > 0, "Wilson's interval"


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


def table_of(*, p: float | None) -> dict[str, Any]:
    estimate = {"value": 0.25, "low": 0.125, "high": 0.5, "n": 4}
    systems = [{"system": name, "round": None, "kind": "base", "figures": {"a_b": estimate}} for name in ("x_1", "y|&")]
    one = {"figure": "a_b", "one": "y|&", "two": "x_1", "value": 0.0, "p": p, "p_corrected": p}
    return {"systems": systems, "baseline": "x_1", "comparisons": [one]}


@pytest.mark.parametrize(("p", "marked"), [(0.01, False), (0.05, True), (None, False)])
def test_tables_mark_what_is_not_significant(p: float | None, marked: bool) -> None:
    metrics = table_of(p=p)
    assert frame(metrics).loc["a_b", "x_1"] == "0.250 [0.125, 0.500]"
    assert frame(metrics).loc["a_b", "y|&"].endswith("n.s.") == marked
    assert "| figure | x_1 | y\\|& |" in markdown(metrics)
    assert "a\\_b" in latex(metrics)
    assert "y|\\&" in latex(metrics)


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
    (tmp_path / "people.jsonl").write_text('{"what": "rating", "system": "M0"}\n')
    with pytest.raises(UserError, match="has a line in another form"):
        agreement(mine, [tmp_path / "people.jsonl"])


def test_win_rates_are_told_raw_and_with_equal_lengths() -> None:
    (found,) = win_rates(judged_by([1], "win"), 0)
    assert (found["one"], found["two"], found["raw"]["value"], found["raw"]["n"]) == ("M1", "M0", 1.0, 1)
    assert found["length_controlled"]["value"] is None, "all replies are longer by the same, which tells nothing"
