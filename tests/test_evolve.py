"""The loop, end to end on the tiny model: what is written, what is made again and what is not, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from conftest import ROOT, Compose, Evolve, Train
from safetensors.torch import load_file

from esupport.config.check import check_types
from esupport.config.command_line import composed as compose_config
from esupport.config.schema_evolve import Contexts, Drift
from esupport.data.preference import PreferencePair
from esupport.errors import UserError
from esupport.evolution.contexts import choose
from esupport.evolution.exam import Exam, _length_ratio
from esupport.models.weights import weights_digest
from esupport.reflection.parsing import parse_reply
from esupport.store import Store, key_of, read_lines
from esupport.training.environment import make
from esupport.training.prepare import prepare

TEACHER = [
    "generator@teacher=scripted",
    "teacher.answer={_target_:answers.reflect_and_refine,_partial_:true}",
    "reflection.reflect.by=teacher",
    "reflection.refine.by=teacher",
]


def pairs_of(folder: Path, number: int, name: str = "pairs") -> list[PreferencePair]:
    return [PreferencePair.model_validate(line) for line in read_lines(folder / f"round-{number}" / f"{name}.jsonl")]


def entries(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "lineage.json").read_text())["stages"]


def made(folder: Path) -> list[str]:
    return [entry["gives"] for entry in entries(folder) if not entry["reused"]]


def test_two_rounds_write_what_they_promise(evolve: Evolve, tmp_path: Path) -> None:
    systems = evolve()
    run = tmp_path / "run"
    assert [system["system"] for system in systems] == ["M0", "M1", "M2"]
    assert json.loads((run / "metrics.json").read_text()) == systems
    for name in ("lineage.json", "report.html", "held_out.jsonl", "config.yaml", "sft/adapter/adapter_model.safetensors"):
        assert (run / name).is_file(), name
    for number in (1, 2):
        folder = run / f"round-{number}"
        kept, dropped = pairs_of(run, number), pairs_of(run, number, "dropped")
        figures = json.loads((folder / "metrics.json").read_text())
        assert (figures["kept"], figures["dropped"]) == (len(kept), len(dropped))
        assert figures["kept"] + figures["dropped"] == figures["contexts"]
        assert kept
        assert all(not pair.dropped and pair.round == number for pair in kept)
        assert all(set(pair.verdicts) >= {"unparsable", "empty", "leaked_analysis", "unsafe"} for pair in kept)
        steps = {"draft", "reflect/profile", "reflect/emotion", "reflect/situation", "reflect/need", "refine"}
        assert all(set(pair.prompts) == set(pair.seeds) == steps for pair in kept)
        assert all(pair.dropped for pair in dropped)
        assert (folder / "adapter/adapter_model.safetensors").is_file()
        assert len(read_lines(folder / "curve.jsonl")) == figures["training"]["steps"]
    weights = [load_file(run / name / "adapter/adapter_model.safetensors") for name in ("sft", "round-1", "round-2")]
    for one, two in ((0, 1), (1, 2)):
        assert any((weights[one][key] != weights[two][key]).any() for key in weights[one])
    held_out = read_lines(run / "held_out.jsonl")
    assert all(set(line["replies"]) == {"M0", "M1", "M2"} for line in held_out)
    assert all([*turn] == ["role", "text"] and turn["text"] for line in held_out for turn in line["context"])
    assert all(line["context"][-1]["role"] == "seeker" for line in held_out)
    assert not list(run.rglob("*.ckpt"))


def test_lineage_leads_from_the_last_adapter_back_to_each_pair_and_file(evolve: Evolve, tmp_path: Path) -> None:
    evolve()
    by_gives = {entry["gives"]: entry for entry in entries(tmp_path / "run")}
    last = by_gives["M2"]
    reference = by_gives["round-2/reference"]
    assert last["inputs"]["reference"] == reference["key"]
    drafts = by_gives["round-2/draft"]
    assert drafts["inputs"]["adapter"] == last["inputs"]["start"] == reference["inputs"]["adapter"]
    for entry in by_gives.values():
        folder = tmp_path / "store" / entry["folder"]
        assert json.loads((folder / "stage.json").read_text())["files"] == entry["files"]
        assert all((folder / name).is_file() for name in entry["files"])
    asked, written = (
        {line["id"]: line for line in read_lines(tmp_path / "store" / by_gives[step]["folder"] / "replies.jsonl")}
        for step in ("round-2/draft", "round-2/refine")
    )
    for pair in [*pairs_of(tmp_path / "run", 2), *pairs_of(tmp_path / "run", 2, "dropped")]:
        source = asked[pair.context.key]
        assert source["reply"]["text"] == pair.rejected
        assert source["seed"] == pair.seeds["draft"]
        if refined := written.get(pair.context.key):
            assert pair.chosen == parse_reply(refined["begun"] + refined["reply"]["text"])
    assert written
    assert last["key"] in by_gives["round-2/replies"]["made_from"]
    # from M2 to the file that it was made of, by the keys alone
    by_key, found, waiting = {entry["key"]: entry for entry in by_gives.values()}, set[str](), [last["key"]]
    while waiting:
        entry = by_key[waiting.pop()]
        found.add(entry["gives"])
        waiting += entry["made_from"]
    rounds = [f"round-{n}/{step}" for n in (1, 2) for step in ("draft", "reflect", "refine", "pairs", "reference")]
    assert {"M2", "M1", "M0", "data", "replay", *rounds} <= found
    for gives, shipped in (("data", ROOT / "esupport/data/shipped"), ("replay", ROOT / "esupport/data/shipped/replay")):
        name, digest = by_gives[gives]["inputs"]["parts"]["train"]
        assert digest == hashlib.sha256((shipped / Path(name).name).read_bytes()).hexdigest()
    assert str(tmp_path) not in (tmp_path / "run/lineage.json").read_text()


def test_the_same_command_makes_nothing_again_and_gives_the_same_bytes(evolve: Evolve, tmp_path: Path) -> None:
    first = evolve()
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.suffix in (".safetensors", ".jsonl")}
    assert evolve() == first
    assert made(tmp_path / "run") == []
    assert {p: p.read_bytes() for p in before} == before
    shutil.rmtree(tmp_path / "store")
    shutil.rmtree(tmp_path / "run")
    evolve()
    assert {p: p.read_bytes() for p in before} == before


def test_another_beta_keeps_the_texts_and_another_prompt_does_not(evolve: Evolve, tmp_path: Path) -> None:
    evolve("evolution.rounds=1")
    evolve("evolution.rounds=1", "objective.loss.beta=1.0", folder="beta")
    assert [name for name in made(tmp_path / "beta") if name in ("M1", "round-1/draft", "round-1/refine", "round-1/pairs")] == [
        "M1"
    ]
    evolve("evolution.rounds=1", "reflection.refine.begun=Yes", folder="prompt")
    again = made(tmp_path / "prompt")
    assert "round-1/refine" in again
    assert "round-1/reflect" not in again
    assert "round-1/draft" not in again
    one, two = ({p.prompts["refine"] for p in pairs_of(tmp_path / name, 1)} for name in ("run", "prompt"))
    assert not one & two


def test_a_directory_of_other_settings_is_refused(evolve: Evolve) -> None:
    evolve("evolution.rounds=0")
    with pytest.raises(UserError, match=r"holds a run with another objective\.loss\.beta"):
        evolve("evolution.rounds=0", "objective.loss.beta=1.0")


@pytest.mark.parametrize(
    ("overrides", "start", "reference"),
    [
        ([], "M1", "M1"),
        (["evolution.start=sft"], "M0", "M0"),
        (["evolution.reference=sft"], "M1", "M0"),
        (["evolution.reference=base"], "M1", None),
    ],
)
def test_start_and_reference_are_what_they_are_called(
    evolve: Evolve, tmp_path: Path, overrides: list[str], start: str, reference: str | None
) -> None:
    evolve(*overrides)
    run = tmp_path / "run"
    digests = {"M0": weights_digest(run / "sft/adapter"), "M1": weights_digest(run / "round-1/adapter"), None: None}
    by_gives = {entry["gives"]: entry for entry in entries(run)}
    assert by_gives["M2"]["inputs"]["start"] == digests[start]
    assert by_gives["round-2/reference"]["inputs"]["adapter"] == digests[reference]
    assert by_gives["round-2/draft"]["inputs"]["adapter"] == digests["M1"]


def test_cumulative_pairs_add_up(evolve: Evolve, tmp_path: Path) -> None:
    evolve("evolution.pairs=cumulative")
    first, second = (json.loads((tmp_path / f"run/round-{n}/metrics.json").read_text()) for n in (1, 2))
    assert first["training"]["pairs"] == first["kept"]
    assert second["training"]["pairs"] == first["kept"] + second["kept"]


def test_settings_by_round(evolve: Evolve, tmp_path: Path) -> None:
    evolve("evolution.epochs=[1,3]", "objective.loss.beta=[2.0,4.0]", "objective.optimizer.lr=[1e-3,1e-4]")
    first, second = (json.loads((tmp_path / f"run/round-{n}/metrics.json").read_text()) for n in (1, 2))
    assert (first["settings"]["epochs"], second["settings"]["epochs"]) == (1, 3)
    assert (first["settings"]["beta"], second["settings"]["beta"]) == (2.0, 4.0)
    assert second["settings"]["learning_rate"] == 1e-4
    assert second["training"]["steps"] == 3 * len({p.context.conversation for p in pairs_of(tmp_path / "run", 2)}) / 4
    with pytest.raises(UserError, match=r"evolution\.epochs has 3 values for 2 rounds"):
        check_types("evolve", compose_config("evolve", ["evolution.epochs=[1,2,3]"]))


def test_a_teacher_reflects_and_refines_and_drafts_stay_the_policys(evolve: Evolve, tmp_path: Path) -> None:
    evolve("evolution.rounds=1", *TEACHER)
    pairs = pairs_of(tmp_path / "run", 1)
    assert {(p.generators["draft"], p.generators["reflect"], p.generators["refine"]) for p in pairs} == {
        ("tiny", "scripted", "scripted")
    }
    assert all(pair.chosen.startswith("That sounds hard.") for pair in pairs)
    assert all(pair.reflection["emotion"].text == "tired of the rain." for pair in pairs)
    steps = {entry["stage"]: entry["inputs"].get("adapter") for entry in entries(tmp_path / "run") if entry["round"] == 1}
    assert steps["draft"] is not None
    assert steps["reflect"] is steps["refine"] is None


def test_a_generator_that_cannot_speak_as_the_policy_is_refused_for_drafts(evolve: Evolve) -> None:
    with pytest.raises(UserError, match="cannot speak as M_t"):
        evolve("generator=openai", "generator.model=m")
    with pytest.raises(UserError, match="by a teacher and there is none"):
        evolve("reflection.refine.by=teacher")


def test_what_cannot_be_read_is_asked_again_and_then_dropped(evolve: Evolve, tmp_path: Path) -> None:
    moody = [*TEACHER, "teacher.answer={_target_:answers.moody,_partial_:true}"]
    evolve("evolution.rounds=1", *moody, "reflection.reflect.retries=12")
    figures = json.loads((tmp_path / "run/round-1/metrics.json").read_text())
    assert figures["reflect"]["retried"] > 0
    assert figures["reflect"]["unparsable"] == 0
    never = [*TEACHER, "teacher.answer={_target_:answers.never,_partial_:true}"]
    with pytest.raises(UserError, match="no pair is left"):
        evolve("evolution.rounds=1", *never, folder="never")


def test_a_refused_refinement_is_written_anew_and_kept_beside_its_pair(evolve: Evolve, tmp_path: Path) -> None:
    leaking = [*TEACHER, "teacher.answer={_target_:answers.leaking,_partial_:true}"]
    evolve("evolution.rounds=1", *leaking, "reflection.refine.retries=9")
    figures = json.loads((tmp_path / "run/round-1/metrics.json").read_text())
    assert figures["filters"]["leaked_analysis"] == 0
    attempts = [attempt for pair in pairs_of(tmp_path / "run", 1) for attempt in pair.refused]
    assert attempts
    assert all([*attempt.verdicts] == ["leaked_analysis"] for attempt in attempts)
    assert figures["refused"]["leaked_analysis"] >= len(attempts)
    assert figures["refine"]["retried"] == figures["refused"]["leaked_analysis"]


def test_a_round_without_pairs_ends_a_run_that_has_systems(
    evolve: Evolve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    falling_silent = [*TEACHER, "teacher.answer={_target_:answers.falling_silent,_partial_:true}"]
    systems = evolve(*falling_silent, "contexts.over_rounds=same")
    assert [system["system"] for system in systems] == ["M0", "M1"]
    assert (tmp_path / "run/report.html").is_file()
    assert not pairs_of(tmp_path / "run", 2)
    assert pairs_of(tmp_path / "run", 2, "dropped")
    figures = json.loads((tmp_path / "run/round-2/metrics.json").read_text())
    assert figures["kept"] == 0
    assert sum(figures["filters"].values()) >= figures["dropped"] > 0, "why"
    assert f"Round 2: {figures['contexts']} contexts, 0 kept" in " ".join(capsys.readouterr().out.split())


def test_seconds_of_a_training_are_its_own(evolve: Evolve, tmp_path: Path) -> None:
    evolve("evolution.rounds=1")
    training = json.loads((tmp_path / "run/round-1/metrics.json").read_text())["training"]
    (stage,) = (entry for entry in entries(tmp_path / "run") if entry["gives"] == "M1")
    kept = json.loads((tmp_path / "store" / stage["folder"] / "metrics.json").read_text())
    assert training["seconds"] == kept["train/seconds"] != kept.get("seconds")


def test_conversations_of_one_id_are_refused(evolve: Evolve, tmp_path: Path) -> None:
    def talk(name: str, id_: str) -> str:
        said = [(role, f"{role} {name} says thing {turn}") for turn in range(4) for role in ("seeker", "supporter")]
        return json.dumps({"id": id_, "turns": [{"role": role, "text": text} for role, text in said]})

    for side in ("train", "valid", "test"):
        ids = ["one", "two", "one"] if side == "train" else [side]
        (tmp_path / f"{side}.jsonl").write_text("\n".join(talk(f"{side}{n}", id_) for n, id_ in enumerate(ids)))
    with pytest.raises(UserError, match="two conversations on the training side have the id one"):
        evolve("data=native", f"data.path={tmp_path}", "contexts.over_rounds=same")


def test_phase_1_measures_the_held_out_side_where_there_is_something_to_choose(evolve: Evolve, tmp_path: Path) -> None:
    def figures(*overrides: str) -> tuple[str, set[str]]:
        evolve("evolution.rounds=0", *overrides, folder=key_of(overrides))
        (stage,) = [entry for entry in entries(tmp_path / key_of(overrides)) if entry["stage"] == "sft"]
        return stage["key"], {*json.loads((tmp_path / "store" / stage["folder"] / "metrics.json").read_text())}

    once, measured = figures()
    assert "val/nll" not in measured, "the one adapter is measured as M0"
    for overrides in (
        ["trainer.val_check_interval=1"],
        ["trainer.max_epochs=-1", "trainer.max_steps=3"],
        ["trainer.max_epochs=2"],
    ):
        assert "val/nll" in figures(*overrides)[1], overrides
    timer = "+callbacks.timer={_target_: pytorch_lightning.callbacks.Timer, duration: '00:01:00:00'}"
    assert figures(timer)[0] != once, "a callback may end training"
    assert figures("callbacks.last.every_n_train_steps=7", "trainer.log_every_n_steps=3")[0] == once


def test_human_replies_are_the_chosen_ones_of_their_ablation(evolve: Evolve, tmp_path: Path, composed: Compose) -> None:
    evolve("evolution.rounds=1", "reflection=human")
    splits = make(check_types("train", composed())["data"], "data").read("data", Store(tmp_path / "store"))
    by_id = {conversation.id: conversation for conversation in splits.train}
    for pair in pairs_of(tmp_path / "run", 1):
        assert pair.chosen == by_id[pair.context.conversation].turns[pair.context.turn].text
        assert pair.chosen_from == "human"
    refined = {entry["stage"] for entry in entries(tmp_path / "run")}
    assert not refined & {"reflect", "refine"}


def test_an_adapter_given_by_path_takes_the_place_of_phase_1(evolve: Evolve, tmp_path: Path) -> None:
    evolve("evolution.rounds=0")
    adapter = tmp_path / "run/sft/adapter"
    evolve("evolution.rounds=1", f"model.adapter={adapter}", folder="from")
    assert "sft" not in {entry["stage"] for entry in entries(tmp_path / "from")}
    first = {entry["gives"]: entry for entry in entries(tmp_path / "from")}["M1"]
    whole = load_file(tmp_path / "from/sft/adapter/adapter_model.safetensors")
    assert all((whole[k] == v).all() for k, v in load_file(adapter / "adapter_model.safetensors").items())
    assert first["inputs"]["start"] == weights_digest(adapter)


def test_pairs_of_a_run_train_by_themselves(evolve: Evolve, train: Train, tmp_path: Path) -> None:
    evolve("evolution.rounds=1", "contexts.per_round=12", *TEACHER)
    pairs = tmp_path / "run/round-1/pairs.jsonl"
    metrics = train("objective=dpo", f"data.pairs={pairs}", folder="dpo")
    assert metrics["val/preference_loss_after"] < metrics["val/preference_loss_before"]
    assert 0 <= metrics["val/accuracy_after"] <= 1
    told = [(tmp_path / folder / "learnt_from.txt").read_text().split() for folder in ("run", "dpo")]
    assert told[0] == told[1] != [], "what the pairs were made of"
    with pytest.raises(UserError, match=r"objective=dpo learns from pairs"):
        train("objective=dpo", folder="none")
    with pytest.raises(UserError, match=r"data\.pairs is for objective=dpo"):
        train(f"data.pairs={pairs}", folder="sft")


@pytest.mark.parametrize("which", ["texts", "messages", "shared"])
def test_a_preference_set_in_the_usual_form_trains(train: Train, tmp_path: Path, which: str) -> None:
    rows = []
    for number in range(8):
        asked, good, bad = f"I lost job number {number}.", f"What was job {number} like?", "Cheer up."
        user, chosen, rejected = (
            {"role": r, "content": c} for r, c in (("user", asked), ("assistant", good), ("assistant", bad))
        )
        rows.append(
            {
                "texts": {"prompt": asked, "chosen": good, "rejected": bad},
                "messages": {
                    "prompt": [{"role": "system", "content": "Be kind."}, user],
                    "chosen": [chosen],
                    "rejected": [rejected],
                },
                "shared": {"chosen": [user, chosen], "rejected": [user, rejected]},
            }[which]
        )
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = train("objective=dpo", f"data.pairs={path}")
    assert metrics["train/steps"] == 2
    path.write_text('{"prompt": "x", "chosen": "y"}\n')
    with pytest.raises(UserError, match=r"set\.jsonl:1: rejected: is missing"):
        train("objective=dpo", f"data.pairs={path}", folder="bad")


def choice(**changes: Any) -> Contexts:
    settings: dict[str, Any] = {"per_round": None, "per_conversation": 2, "turns": "spread", "first_turn": 2, "seed": 0}
    settings |= {"max_tokens": 256, "over_rounds": "disjoint"}
    return Contexts(**{**settings, **changes})


def test_contexts_are_chosen_as_asked(composed: Compose) -> None:
    plain = check_types("train", composed("model=tiny", "data.limit=20"))
    prepared = prepare(plain, make(plain["model"], "model"))
    train, renderer = prepared.corpora["train"].kept, prepared.renderer
    rounds, human = choose(train, choice(), 2, renderer)
    people = [{context.conversation for context in contexts} for contexts in rounds]
    assert not people[0] & people[1]
    assert len(people[0] | people[1]) == 20
    (alone,), _ = choose(train, choice(per_round=7), 1, renderer)
    (first, second, _), _ = choose(train, choice(per_round=7), 3, renderer)
    assert alone == first, "a round is the same whatever comes after it"
    assert not {c.conversation for c in first} & {c.conversation for c in second}
    same, _ = choose(train, choice(over_rounds="same", per_round=7), 2, renderer)
    assert same[0] == same[1]
    assert len(same[0]) == 7
    by_id = {conversation.id: conversation for conversation in train}
    for context in [c for contexts in rounds for c in contexts]:
        assert len(renderer.prompt(renderer.context_messages(context))) <= 256
        assert context.turns[-1].role == "seeker"
        assert human[context.key] == by_id[context.conversation].turns[context.turn].text
        assert sum(turn.role == "seeker" for turn in by_id[context.conversation].turns[: context.turn]) >= 2
    assert choose(train, choice(), 2, renderer) == choose(list(train), choice(), 2, renderer)
    assert choose(train, choice(), 2, renderer) != choose(train, choice(seed=1), 2, renderer)
    asked = {c.id: [t for t in c.supporter_turns() if sum(x.role == "seeker" for x in c.turns[:t]) >= 2] for c in train}
    for turns, wanted in (
        ("first", lambda found: found[:2]),
        ("last", lambda found: found[-2:]),
        ("spread", None),
        ("random", None),
    ):
        (contexts,), _ = choose(train, choice(turns=turns, max_tokens=100_000), 1, renderer)
        for id_ in {context.conversation for context in contexts}:
            picked = [context.turn for context in contexts if context.conversation == id_]
            assert len(picked) == min(2, len(asked[id_]))
            assert set(picked) <= set(asked[id_])
            assert wanted is None or picked == wanted(asked[id_])
    short = choose(train, choice(max_tokens=90, turns="last"), 1, renderer)[0][0]
    assert any(len(context.turns) < context.turn for context in short), "the oldest turns are dropped where none fits whole"
    with pytest.raises(UserError, match=r"contexts\.max_tokens"):
        choose(train, choice(max_tokens=5), 1, renderer)


def test_held_out_conversations_are_never_drafted(evolve: Evolve, tmp_path: Path) -> None:
    evolve("contexts.per_round=null", "evolution.rounds=1")
    held_out = {line["conversation"] for line in read_lines(tmp_path / "run/held_out.jsonl")}
    drafted = {p.context.conversation for name in ("pairs", "dropped") for p in pairs_of(tmp_path / "run", 1, name)}
    assert held_out
    assert not held_out & drafted


def test_each_bound_of_drift_warns_on_its_own_side() -> None:
    drift = Drift(length_ratio=1.5, repetition=0.2, kl=1.0, unfinished=0.3, stop=False)
    calm = {"length_ratio": 1.5, "repetition": 0.2, "unfinished": 0.3, "kl_sft": 1.0}

    def warned(bounds: Drift, **changed: float | None) -> list[str]:
        return Exam._warnings(cast(Any, SimpleNamespace(drift=bounds)), {**calm, **changed})

    assert warned(drift) == []
    for changed, said in (
        ({"length_ratio": 1.6}, "1.60 times as long"),
        ({"length_ratio": 0.6}, "0.60 times as long"),
        ({"length_ratio": _length_ratio(["", ""], ["I see.", "Go on."])}, "0.00 times as long"),
        ({"repetition": 0.21}, "21% of word trigrams"),
        ({"unfinished": 0.31}, "31% of replies do not end"),
        ({"kl_sft": 1.1}, "1.10 nats a token away"),
    ):
        (told,) = warned(drift, **changed)
        assert said in told
    assert warned(drift, **dict.fromkeys(calm)) == [], "what was not measured does not drift"
    unbound = Drift(length_ratio=None, repetition=None, kl=None, unfinished=None, stop=False)
    assert warned(unbound, length_ratio=9.0, repetition=1.0, unfinished=1.0, kl_sft=9.0) == []


def test_a_run_that_is_to_stop_at_drift_keeps_what_it_made(evolve: Evolve, tmp_path: Path) -> None:
    systems = evolve("evolution.drift.unfinished=0", "evolution.drift.stop=true", *TEACHER)
    assert [one["system"] for one in systems] == ["M0", "M1"]
    assert any("do not end" in told for told in systems[-1]["warnings"])
    assert (tmp_path / "run/report.html").is_file()
    assert not (tmp_path / "run/round-2").exists()


def test_a_capable_model_answers_all_axes_at_once(evolve: Evolve, tmp_path: Path) -> None:
    evolve("evolution.rounds=1", "reflection.form=json", *TEACHER, "teacher.answer={_target_:answers.in_json,_partial_:true}")
    for pair in pairs_of(tmp_path / "run", 1):
        assert {axis: finding.text for axis, finding in pair.reflection.items()} == {
            axis: f"{axis} of the rain" for axis in ("profile", "emotion", "situation", "need")
        }
        assert not any(finding.evidence for finding in pair.reflection.values()), "nobody said so"
        assert set(pair.prompts) == {"draft", "reflect", "refine"}


def test_the_base_refines_without_the_adapter(evolve: Evolve, tmp_path: Path) -> None:
    evolve("evolution.rounds=1", "reflection=no_reflection", "reflection.refine.by=base", "filters=minimal")
    by_gives = {entry["gives"]: entry for entry in entries(tmp_path / "run")}
    assert by_gives["round-1/refine"]["inputs"]["adapter"] is None
    assert by_gives["round-1/draft"]["inputs"]["adapter"] is not None
    both = [*pairs_of(tmp_path / "run", 1), *pairs_of(tmp_path / "run", 1, "dropped")]
    assert {pair.generators["refine"] for pair in both} == {"tiny without its adapter"}
