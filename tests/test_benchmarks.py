"""The benchmarks: both sides do the same work on the tiny model, and a side that does other work gets no ratio."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from rich.console import Console

sys.path.insert(0, str(ROOT))  # benchmarks/ is no installed package

from benchmarks import agreement, options, planning, processes
from benchmarks.flops import Flops
from benchmarks.material import Material, prepare
from benchmarks.meters import Meter
from benchmarks.peer_rows import IGNORED, labels_of, rows, runs, sequences
from benchmarks.processes import Job
from benchmarks.report import Figure, Report, Row, ratio
from benchmarks.shapes import backbone_of
from benchmarks.work import Peer, Planning, Training, Writing
from esupport.errors import UserError

TINY = ["--model", "tiny", "--repeats", "1"]
SMALL = ["--conversations-per-step", "1", "--turns", "4", "--steps", "1", "--held-out", "1"]


def command(name: str, out: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, the object of the last line, and all that was printed."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *TINY, *arguments, "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    printed = done.stdout.strip()
    assert printed, done.stderr
    return done.returncode, json.loads(printed.splitlines()[-1]), printed


def left(out: Path, name: str) -> dict[str, Any]:
    """The JSON file of a benchmark, beside which there is a plot."""
    assert (out / f"{name}.png").stat().st_size > 1000
    text = (out / f"{name}.json").read_text()
    assert str(ROOT) not in text
    record = json.loads(text)
    assert record["machine"]["processor"]
    assert record["machine"]["torch"]
    return record


# commands, end to end


@pytest.mark.slow
def test_dpo_learns_what_trl_learns(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    status, last, printed = command("dpo", tmp_path, *SMALL, "--no-tune", "--peer-batch", "2", "--peer-targets-only")
    assert status == 0, printed
    assert last["agree"] is True
    assert last["ratio"] == last["ratios"]["pairs_per_second"]
    assert {"pairs_per_second_with_reference", "peak_memory", "tokens_forwarded"} <= {*last["ratios"]}
    assert last["ratios"]["tokens_forwarded"] > 2
    record = left(tmp_path, "dpo")
    assert record["peers"]["TRL"]["setting"] == "batch 2, head on targets only"
    ours, theirs = (record["runs"][side][0] for side in ("esupport", "TRL"))
    assert ours["learnt"] == theirs["learnt"]
    assert [step["completions"] for step in ours["learnt"]] == [8, 8]
    assert ours["second_reference_tokens"] == 0


@pytest.mark.slow
def test_sft_learns_what_trl_learns_in_both_layouts(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    two = ["--conversations-per-step", "2", "--turns", "2", "--steps", "1", "--held-out", "1"]
    status, last, printed = command("sft", tmp_path, *two, "--no-tune", "--peer-batch", "2")
    assert status == 0, printed
    by_turn, by_conversation = "TRL by turn", "TRL by conversation"
    assert {*last["ratio"]} == {by_turn, by_conversation}
    assert last["ratios"]["tokens_forwarded"][by_turn] > 1.3
    record = left(tmp_path, "sft")
    assert record["peers"][by_conversation]["setting"] == "batch 2"
    ours, *theirs = (record["runs"][side][0] for side in ("esupport", by_turn, by_conversation))
    assert [step["completions"] for step in ours["learnt"]] == [4, 4]
    assert all(other["learnt"] == ours["learnt"] for other in theirs)


@pytest.mark.slow
def test_generation_writes_what_generate_writes(tmp_path: Path) -> None:
    short = ["--override", "evolution.draft.max_new_tokens=8", "--override", "reflection.refine.sampling.max_new_tokens=8"]
    status, last, printed = command("generation", tmp_path, "--conversations", "1", "--no-tune", *short)
    assert status == 0, printed
    assert last["agree"] is True
    assert last["ratios"]["tokens_forwarded"] > 1
    record = left(tmp_path, "generation")
    ours = record["runs"]["esupport"][0]
    assert {*ours["texts"]} == {"draft", "reflect", "refine"}
    assert len(ours["texts"]["draft"]) == ours["requests"]["draft"] > 2


@pytest.mark.slow
def test_scaling_plans_ten_times_the_steps(tmp_path: Path) -> None:
    status, last, printed = command("scaling", tmp_path, "--conversations", "100")
    assert status == 0, printed
    assert last["ratios"]["steps"] == 10
    assert {"seconds", "start_seconds", "peak_memory"} <= {*last["ratios"]}
    left(tmp_path, "scaling")


@pytest.mark.slow
def test_the_time_of_a_whole_run_is_told_apart(tmp_path: Path) -> None:
    status, last, printed = command("evolve", tmp_path, "--override", "experiment=smoke")
    assert status == 0, printed
    assert last["agree"] is None, "there is no peer"
    record = left(tmp_path, "evolve")
    (run,) = record["runs"]["esupport"]
    assert {*run["parts"]} == {"forward", "backward", "decoding", "loading"}
    assert all(seconds > 0 for seconds in run["parts"].values())
    assert 0 < last["ratio"] < 1
    assert sum(run["parts"].values()) < run["seconds"]


@pytest.mark.slow
def test_memory_is_measured_over_the_grid(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    grid = ["--tasks", "dpo", "--lengths", "128", "--vocabularies", "4096", "--width", "64", "--layers", "1", "--turns", "2"]
    status, last, printed = command("memory", tmp_path, *grid)
    assert status == 0, printed
    assert {*last["ratios"]} == {"dpo_pair_128_4096"}
    left(tmp_path, "memory")


# what is learnt


@pytest.fixture(scope="module")
def pairs() -> Material:
    return material("dpo")


def material(task: Any, **changes: Any) -> Material:
    work = Training(**{"model": "tiny", "task": task, "per_step": 2, "steps": 2, "warmup": 1, **changes})
    plain = work.plain()
    return prepare(plain, work, backbone_of(plain, work))


def test_every_step_has_equally_many_pairs(pairs: Material) -> None:
    assert len(pairs.steps) == 3
    assert sorted(number for step in pairs.steps for number in step) == list(range(6))
    sizes = {len(unit) for unit in pairs.units}
    assert len(sizes) == 1
    assert sizes.pop() // 2 * 2 % 4 == 0, "two conversations of a step fill batches of four pairs"
    assert len(pairs.held_out_units) == 2


def test_pairs_are_the_same_each_time_and_reject_other_replies(pairs: Material) -> None:
    assert material("dpo").units == pairs.units
    for unit in pairs.units:
        for chosen, rejected in zip(unit[::2], unit[1::2], strict=True):
            assert chosen.context == rejected.context
            assert chosen.completion != rejected.completion
            assert 0.3 < len(rejected.completion) / len(chosen.completion) < 3


def test_neither_reply_is_on_the_trunk_unless_it_is_asked_for(pairs: Material) -> None:
    human = material("dpo", chosen="human")
    for row in (row for unit in pairs.corpus.units for row in unit):
        assert row.branches == row.responses - 1, "the last response is the trunk's end"
    for row in (row for unit in human.corpus.units for row in unit):
        assert row.branches == row.responses // 2
    for own, others in zip(human.units, pairs.units, strict=True):
        for said, other in zip(own[::2], others[::2], strict=True):
            assert said.context == other.context
            assert said.completion != other.completion


def test_rows_of_the_peer_learn_the_targets_of_the_tree_rows() -> None:
    found = material("sft", turns=4)
    for rows_of_unit, unit in zip(found.corpus.units, found.units, strict=True):
        ours = sorted(
            tuple(row.ids[row.targets[row.response == r]].tolist()) for row in rows_of_unit for r in range(row.responses)
        )
        for layout in ("turn", "conversation"):
            made = rows(unit, layout)
            assert len(made) == (4 if layout == "turn" else 1)
            theirs = [run for row in made for run in runs(labels_of({"labels": torch.tensor([row["labels"]])}))]
            assert sorted(theirs) == ours
            assert sum(targets for row in made for _, targets in sequences(row)) == sum(map(len, ours))


def test_runs_are_told_apart_by_what_stands_between() -> None:
    labels = torch.tensor([[IGNORED, 5, 6, IGNORED, 7], [8, IGNORED, IGNORED, IGNORED, IGNORED]])
    assert runs(labels) == [(5, 6), (7,), (8,)]


def test_drawn_conversations_have_the_asked_length() -> None:
    found = material("dpo", length=256, turns=2, shape={"vocab_size": 5000}, per_step=1, steps=1, warmup=0)
    (unit,) = found.units
    assert max(len(response.ids) for response in unit) == 256
    assert len(unit) == 4
    assert max(max(response.ids) for response in unit) < 5000


# the check


def result(**changes: Any) -> dict[str, Any]:
    agreed = {
        "learnt": [{"completions": 2, "tokens": 9, "digest": "a"}],
        "losses": [2.0, 1.9],
        "gradient_norms": [0.5, 0.25],
        "held_out_before": [-3.0],
        "held_out_after": [-2.9],
    }
    return {**agreed, **changes}


def test_equal_runs_agree() -> None:
    assert agreement.of_training([result()], [result(losses=[2.0, 1.9005])], bf16=False).holds


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("learnt", [{"completions": 2, "tokens": 9, "digest": "b"}], "what was learnt"),
        ("losses", [2.0, 1.902], "loss"),
        ("losses", [2.0], "loss"),
        ("losses", [2.0, float("nan")], "loss"),
        ("gradient_norms", [0.5, 0.26], "gradient norm"),
        ("held_out_before", [-3.002], "held-out before"),
        ("held_out_after", [-2.902], "held-out after"),
    ],
)
def test_what_differs_is_a_fault(name: str, value: Any, fault: str) -> None:
    found = agreement.of_training([result()], [result(**{name: value})], bf16=False)
    assert not found.holds
    assert fault in found.faults[0]


def test_one_differing_repeat_is_enough() -> None:
    assert not agreement.of_training([result(), result()], [result(), result(losses=[0.0, 0.0])], bf16=False).holds


def test_a_side_that_did_other_work_gets_no_ratio(tmp_path: Path) -> None:
    apart = agreement.of_training([result()], [result(gradient_norms=[0.5, 0.26])], bf16=False)
    sides = {"esupport": Figure(2.0, 2.0, 2.0), "TRL": Figure(1.0, 1.0, 1.0)}
    rows = [Row("pairs a second", "pairs_per_second", sides, {"TRL": 2.0})]
    report = Report("dpo", "python -m benchmarks.dpo", 1, {}, {}, rows, {"TRL": apart}, {})
    console = Console(record=True, width=110)
    report.show(console)
    printed = console.export_text()
    assert "TRL DID NOT DO THE SAME WORK: there are no ratios" in printed
    assert "ratio " not in printed
    last = json.loads(report.last_line("pairs_per_second"))
    assert last["agree"] is False
    assert "gradient norm" in last["faults"][0]
    assert "ratios" not in last
    assert json.loads(report.write(tmp_path).read_text())["ratios"] is None


def test_texts_must_be_nearly_all_equal() -> None:
    ours = {"texts": {"draft": [str(number) for number in range(100)]}}
    theirs = copy.deepcopy(ours)
    theirs["texts"]["draft"][0] = "another"
    assert agreement.of_texts([ours], [theirs]).holds
    theirs["texts"]["draft"][:10] = ["another"] * 10
    assert not agreement.of_texts([ours], [theirs]).holds
    assert not agreement.of_texts([ours], [{"texts": {"draft": ours["texts"]["draft"][:50]}}]).holds


# tuning


def test_the_fastest_setting_that_does_the_same_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {1: (9.0, 2.0), 2: (7.0, 2.0), 3: (1.0, 2.5), 4: None, 5: (8.0, 2.0)}  # seconds and loss by batch

    def run(job: Job) -> dict[str, Any]:
        assert job.peer
        answer = answers[job.peer.batch]
        if answer is None:
            raise UserError("benchmarks.peers:train failed:\nout of memory")
        return {"seconds": answer[0], "losses": [answer[1]], "process_seconds": 10.0}

    monkeypatch.setattr(processes, "run", run)
    jobs = [Job("benchmarks.peers:train", Training(model="tiny"), Peer("pair", batch)) for batch in answers]
    best, tried = processes.tune("TRL", jobs, Console(quiet=True))
    assert best is jobs[1]
    assert [attempt["setting"] for attempt in tried] == [f"batch {batch}" for batch in answers]
    assert "its loss is 2.5" in tried[2]["left_out"]
    assert tried[3]["left_out"] == "out of memory"
    with pytest.raises(UserError, match="none of its settings"):
        processes.tune("TRL", jobs[3:4], Console(quiet=True))


def test_sides_run_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def run(job: Job) -> dict[str, Any]:
        order.append(job.target)
        return {"seconds": 1.0, "process_seconds": 1.0}

    monkeypatch.setattr(processes, "run", run)
    jobs = {name: Job(name, Training(model="tiny")) for name in ("ours", "theirs")}
    results = processes.alternate(jobs, 3, Console(quiet=True))
    assert order == ["ours", "theirs"] * 3
    assert [len(runs) for runs in results.values()] == [3, 3]


# measuring


def test_meter_counts_tokens_and_leaves_the_warm_up_out() -> None:
    work = Training(model="tiny")
    policy, meter = backbone_of(work.plain(), work).load(0), Meter("cpu")
    meter.watch(policy)
    meter.stamp()
    for length in (8, 16, 24):
        with torch.no_grad():
            policy(input_ids=torch.ones(2, length, dtype=torch.long))
        meter.stamp()
    assert meter.figures(warmup=1)["forwarded_tokens"] == 2 * (16 + 24)
    assert meter.figures(warmup=0)["forwarded_tokens"] == 2 * (8 + 16 + 24)
    assert meter.peak() > 1e7


def test_flops_are_four_a_frozen_weight() -> None:
    work = Training(model="tiny")
    policy = backbone_of(work.plain(), work).load(0)
    config = policy.config
    width, inner, kv = config.hidden_size, config.intermediate_size, config.hidden_size // 2
    linear = config.num_hidden_layers * (2 * width * width + 2 * width * kv + 3 * width * inner)
    flops = Flops(policy)
    flops.add(10, 0, 0)
    assert flops.total == pytest.approx(4 * 10 * linear, rel=0.01), "norms add next to nothing"
    body = flops.total
    flops.add(0, 7, 3)
    assert flops.total - body == 12 * width * config.num_hidden_layers * 7 + 4 * 3 * width * config.vocab_size


def test_figures_are_medians() -> None:
    assert Figure.of([3.0, 1.0, 2.0]) == Figure(2.0, 1.0, 3.0)
    assert ratio(Figure.of([6.0]), Figure.of([2.0, 3.0, 4.0])) == 2.0


# settings


def test_no_path_is_written_down() -> None:
    argv = ["--data", "/home/someone/esconv.jsonl", "--override", "model.path=/mnt/llama", "--out=/tmp/x"]
    words = ["python -m benchmarks.dpo", "--data", "esconv.jsonl", "--override", "model.path=llama", "--out=x"]
    assert options.typed("dpo", argv) == " ".join(words)


def test_settings_of_the_peer_are_read() -> None:
    given = ["beta=3.3", "optim=adamw_torch", "flag=true"]
    assert options.further(given) == {"beta": 3.3, "optim": "adamw_torch", "flag": True}
    assert Peer("pair", 2, further={"beta": 1}).name == "batch 2, beta=1"


@pytest.mark.parametrize(
    "work", [Training(model="tiny", task="sft"), Training(model="tiny"), Writing(model="tiny"), Planning(model="tiny")]
)
def test_work_composes(work: Any) -> None:
    plain = work.plain()
    assert plain["model"]["name"] == "tiny"
    assert plain["model"]["lora"]["dropout"] == 0
    assert plain["replay"]["ratio"] == 0


def test_synthetic_conversations_are_the_same_each_time_and_all_unlike(tmp_path: Path) -> None:
    for name in ("one", "other"):
        planning.write_synthetic(tmp_path / name, 30)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    talks = [json.loads(line) for line in (tmp_path / "one").read_text().splitlines()]
    assert len({json.dumps(talk["turns"]) for talk in talks}) == 30
