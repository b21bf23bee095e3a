"""The supervised fine-tuning job: it learns, resumes exactly, stops on NaN, and saves the adapter alone."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY, Compose, Train
from families import conversation
from pairs import pairs_of
from safetensors.torch import load_file

from esupport.data.conversation import Turn
from esupport.errors import UserError
from esupport.objectives.module import NonFiniteLoss
from esupport.objectives.sft import SupervisedFineTuning

RESUME = ["logger=csv", "model.lora.dropout=0.3", "batching.tokens_per_batch=700", "trainer.max_epochs=3", "replay.ratio=0.5"]


def curve(folder: Path) -> dict[int, float]:
    """train/loss by step over all CSV files of a run."""
    found: dict[int, float] = {}
    for path in sorted(folder.glob("csv/version_*/metrics.csv")):
        with path.open() as file:
            found.update({int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")})
    return found


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_training_lowers_the_held_out_loss_and_reports_it(train: Train, tmp_path: Path) -> None:
    metrics = train(
        "data.limit=24", "trainer.max_epochs=4", "objective.optimizer.lr=1e-2", "samples.contexts=3", "samples.max_new_tokens=4"
    )
    assert metrics["val/nll_after"] < metrics["val/nll_before"] - 0.1
    assert metrics["val/perplexity_after"] == pytest.approx(math.exp(metrics["val/nll_after"]))
    assert metrics["val/replay_nll_before"] > 0
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written == metrics
    promised = ["val/nll_before", "val/nll_after", "val/perplexity_before", "val/perplexity_after"]
    assert {*promised, "train/supervised_tokens_per_s", "seed", "adapter_path"} <= set(written)
    assert (Path(written["adapter_path"]) / "adapter_model.safetensors").exists()
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 3
    assert {"context", "base", "trained", "human"} <= set(samples[0])
    assert len((tmp_path / "run" / "learnt_from.txt").read_text().split()) == 24


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(train: Train, tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(f"seed={seed}", folder=folder)
    files = [(tmp_path / f / "adapter" / "adapter_model.safetensors").read_bytes() for f in "abc"]
    assert files[0] == files[1] != files[2]
    configs = [(tmp_path / f / "adapter" / "adapter_config.json").read_text() for f in "ab"]
    assert configs[0] == configs[1]


def test_a_run_killed_anywhere_and_started_again_equals_the_uninterrupted_run(train: Train, tmp_path: Path) -> None:
    """Three epochs of three steps with shuffling, dropout, accumulation and replay; killed in and between epochs."""
    uninterrupted = train(*RESUME, folder="whole")
    whole, ours = curve(tmp_path / "whole"), adapter(tmp_path / "whole")
    assert set(whole) == set(range(9))
    assert len({round(loss, 6) for loss in whole.values()}) == 9
    for stop in (1, 2, 3, 4, 8):
        folder = f"killed-{stop}"

        def kill(module: SupervisedFineTuning, batch: Any, index: int, stop: int = stop) -> None:
            if module.global_step == stop:
                raise ConnectionAbortedError("killed")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SupervisedFineTuning, "on_train_batch_start", kill)
            with pytest.raises(ConnectionAbortedError):
                train(*RESUME, "callbacks.last.every_n_train_steps=1", folder=folder)
        before = curve(tmp_path / folder)
        figures = train(*RESUME, folder=folder)
        assert figures["train/supervised_tokens"] == uninterrupted["train/supervised_tokens"]
        resumed = curve(tmp_path / folder)
        assert len(list((tmp_path / folder / "csv").iterdir())) == 2
        assert set(before) <= set(range(stop)), "the second run must not start anew"
        assert set(resumed) >= set(range(stop, 9))
        assert max(abs(whole[step] - resumed[step]) for step in resumed) < 1e-6
        theirs = adapter(tmp_path / folder)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_packing_and_batch_size_leave_the_training_as_it_is(train: Train, tmp_path: Path) -> None:
    for folder, budget in (("one", 1), ("some", 700), ("all", 100_000)):
        train("logger=csv", "model.lora.dropout=0", f"batching.tokens_per_batch={budget}", folder=folder)
    one, some, everything = (curve(tmp_path / folder) for folder in ("one", "some", "all"))
    assert max(abs(one[s] - everything[s]) for s in one) < 1e-5
    assert max(abs(some[s] - everything[s]) for s in some) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_two_processes_train_what_one_does(task: str, tmp_path: Path) -> None:
    settings = ["data.limit=9", "batching.tokens_per_batch=500"]
    if task == "dpo":  # rows in parts, and weights that a trunk has no use for
        talks = [conversation(8, name=f"talk {n}", words="and on ") for n in range(5)]
        pairs = [pair for talk in talks for pair in pairs_of(talk, talk.supporter_turns())]
        (tmp_path / "pairs.jsonl").write_text("".join(pair.model_dump_json(exclude_none=True) + "\n" for pair in pairs))
        settings = [f"data.pairs={tmp_path / 'pairs.jsonl'}", "objective=dpo", "data.limit=9", "batching.tokens_per_batch=1"]
        settings += ["model.lora.targets=[q_proj,v_proj,lm_head]", "batching.conversations_per_step=3"]
    for folder, devices in (("one", []), ("two", ["trainer.devices=2", "trainer.strategy=ddp"])):
        overrides = [*TINY, "logger=csv", "model.lora.dropout=0", *settings, *devices]
        command = [sys.executable, "train.py", *overrides, f"hydra.run.dir={tmp_path / folder}"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert set(one) == set(two)
    assert max(abs(one[s] - two[s]) for s in one) < 1e-5
    ours, theirs = adapter(tmp_path / "one"), adapter(tmp_path / "two")
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4
    metrics = [json.loads((tmp_path / folder / "metrics.json").read_text()) for folder in ("one", "two")]
    assert metrics[0]["val/nll_after"] == pytest.approx(metrics[1]["val/nll_after"], abs=1e-5)
    assert metrics[0]["val/replay_nll_before"] == pytest.approx(metrics[1]["val/replay_nll_before"], abs=1e-5)


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_batch(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = SupervisedFineTuning.loss
    monkeypatch.setattr(
        SupervisedFineTuning, "loss", lambda self, lp, b: sound(self, lp, b) * (math.nan if self.global_step == 1 else 1)
    )
    with pytest.raises(NonFiniteLoss, match=r"the loss is nan at step 1 in the batch of .*[a-z]+-\d\d"):
        train()


def test_a_checkpoint_holds_the_adapter_alone(train: Train, tmp_path: Path) -> None:
    train("callbacks.last.every_n_train_steps=1")
    for name in ("last", "best"):
        path = tmp_path / "run" / "checkpoints" / f"{name}.ckpt"
        state = torch.load(path, weights_only=True)["state_dict"]
        assert state
        assert all("lora_" in key for key in state)
        assert path.stat().st_size < 4 * sum(8 * v.numel() for v in state.values()) + 100_000


def test_the_adapter_loads_with_peft_alone_and_gives_the_reported_loss(train: Train, tmp_path: Path, composed: Compose) -> None:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from esupport.objectives.logprobs import target_logprobs
    from esupport.rendering.packing import pack
    from esupport.training.prepare import prepare

    metrics = train("trainer.max_epochs=2", "objective.optimizer.lr=1e-2")
    cfg = composed(*TINY, "data.limit=12")
    backbone = instantiate(cfg.model, _convert_="all")
    base = AutoModelForCausalLM.from_pretrained(backbone.folder, attn_implementation="tree")
    loaded = PeftModel.from_pretrained(base, metrics["adapter_path"]).eval()
    corpus = prepare(OmegaConf.to_container(cfg, resolve=True), backbone).corpora["valid"]  # type: ignore[arg-type]
    rows = [row for unit in corpus.units for row in unit]
    with torch.no_grad():
        nll = -sum(float(target_logprobs(loaded, b).sum()) for b in pack(rows, 4000)) / corpus.targets
    assert nll == pytest.approx(metrics["val/nll_after"], abs=1e-5)
    config = json.loads((Path(metrics["adapter_path"]) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert "/" not in json.dumps(config)


@pytest.mark.parametrize(
    "extra", [["model.lora.rslora=true"], ["model.lora.dora=true"], ["model.lora.targets=[q_proj,v_proj]"]]
)
def test_adapter_switches_reach_peft(train: Train, tmp_path: Path, extra: list[str]) -> None:
    train(*extra)
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["use_rslora"] == ("rslora" in extra[0])
    assert config["use_dora"] == ("dora" in extra[0])
    if "targets" in extra[0]:
        assert config["target_modules"] == ["q_proj", "v_proj"]


def test_training_goes_on_from_an_adapter_and_the_base_is_still_the_base(train: Train, tmp_path: Path) -> None:
    fast = "objective.optimizer.lr=1e-2"
    first = train(fast, folder="first")
    second = train(fast, f"model.adapter={tmp_path / 'first' / 'adapter'}", folder="second")
    assert second["val/nll_before"] == pytest.approx(first["val/nll_before"], abs=1e-6)
    assert second["val/nll_after"] < first["val/nll_after"]


def test_gradient_checkpointing_recomputes_and_changes_nothing(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaAttention

    calls: list[bool] = []
    forward = LlamaAttention.forward

    def counted(self: LlamaAttention, *args: Any, **kwargs: Any) -> Any:
        calls.append(self.training)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaAttention, "forward", counted)
    counts = []
    for folder, extra in (("off", []), ("on", ["model.gradient_checkpointing=full"])):
        calls.clear()
        train(*extra, folder=folder)
        counts.append(sum(calls))
    assert counts[1] == 2 * counts[0] > 0
    off, on = adapter(tmp_path / "off"), adapter(tmp_path / "on")
    assert all(torch.allclose(off[name], on[name], atol=1e-6) for name in off)


def test_the_whole_model_is_in_train_mode_and_only_the_adapter_learns(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[bool] = []
    learnt: set[str] = set()
    sound = SupervisedFineTuning.loss

    def look(self: SupervisedFineTuning, logprobs: torch.Tensor, batch: Any) -> torch.Tensor:
        modes.append(all(module.training for module in self.policy.modules()))
        learnt.update(name for name, p in self.policy.named_parameters() if p.requires_grad)
        return sound(self, logprobs, batch)

    monkeypatch.setattr(SupervisedFineTuning, "loss", look)
    train()
    assert modes
    assert all(modes)
    assert all("lora_" in name for name in learnt)


def test_early_stopping_ends_training_and_the_best_adapter_is_kept(train: Train, tmp_path: Path) -> None:
    metrics = train(
        "callbacks=early_stopping", "callbacks.progress_bar=null", "callbacks.early_stopping.patience=1",
        "objective.optimizer.lr=0.1", "objective.scheduler=null", "trainer.max_epochs=12", "logger=csv",
    )  # fmt: skip
    assert metrics["train/steps"] < 36
    with (tmp_path / "run" / "csv" / "version_0" / "metrics.csv").open() as file:
        held_out = [float(row["val/nll"]) for row in csv.DictReader(file) if row.get("val/nll")]
    assert held_out[-2] > held_out[-1], "training ended on a worse adapter; the kept one was measured again"
    assert metrics["val/nll_after"] == pytest.approx(min(held_out), abs=1e-5)


def test_bfloat16_trains_an_adapter_in_float32(train: Train, tmp_path: Path) -> None:
    metrics = train(
        "model.dtype=bfloat16", "trainer.precision=bf16-mixed", "trainer.max_epochs=3", "objective.optimizer.lr=1e-2"
    )
    assert metrics["val/nll_after"] < metrics["val/nll_before"]
    assert {tensor.dtype for tensor in adapter(tmp_path / "run").values()} == {torch.float32}


def test_a_directory_with_another_run_is_refused_and_a_run_that_ended_is_only_shown(train: Train, tmp_path: Path) -> None:
    first = train("callbacks.last.every_n_train_steps=1")
    written = (tmp_path / "run" / "metrics.json").read_bytes()
    assert train() == first
    assert (tmp_path / "run" / "metrics.json").read_bytes() == written
    for override, key in (
        ("seed=5", "seed"),
        ("trainer.max_epochs=2", "trainer.max_epochs"),
        ("model.lora.r=4", "model.lora.r"),
    ):
        with pytest.raises(UserError, match=rf"holds a run with another {key}; choose another name, or resume=null"):
            train(override)
    with pytest.raises(UserError, match=r"objective\.scheduler"):
        train("seed=5", "objective.scheduler.name=foo", "resume=null")
    assert not (tmp_path / "run" / "metrics.json").exists(), "the earlier run's figures must not pass for the new one's"
    assert train("seed=5", "resume=null")["seed"] == 5


def test_an_adapter_can_be_measured_without_training(train: Train, tmp_path: Path) -> None:
    first = train("objective.optimizer.lr=1e-2", folder="first")
    again = train(f"model.adapter={tmp_path / 'first' / 'adapter'}", "trainer.max_steps=0", folder="again")
    assert again["val/nll_after"] == pytest.approx(first["val/nll_after"], abs=1e-6)
    assert again["val/nll_before"] == pytest.approx(first["val/nll_before"], abs=1e-6)


def test_modules_that_the_model_does_not_have_are_one_line(train: Train) -> None:
    with pytest.raises(UserError, match=r"model\.lora\.targets: "):
        train("model.lora.targets=[foo]")


def test_faulty_instruction_examples_are_counted(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ['{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}'] * 3
    smuggled = '{"messages": [{"role": "system", "content": "<|im_end|>"}, {"role": "user", "content": "a"}, '
    path = tmp_path / "replay.jsonl"
    path.write_text("\n".join([*lines, "{}", smuggled + '{"role": "assistant", "content": "b"}]}']))
    fractions = "replay.source.fractions={train: 1.0, valid: 0, test: 0}"
    train(f"replay.source.path={path}", fractions, "data.on_error=skip")
    assert "2 faulty records skipped, the first: replay.jsonl:4: messages: Field required" in capsys.readouterr().out


def test_figures_belong_to_the_adapter_that_is_saved(train: Train, tmp_path: Path) -> None:
    """Training that ends between two validations: the last adapter is measured too, and the better one is kept."""
    fast = ["trainer.max_epochs=3", "objective.optimizer.lr=1e-2", "objective.scheduler=null"]
    with_best = train("trainer.max_steps=5", *fast, folder="best")
    without = train("trainer.max_steps=5", *fast, "callbacks.best=null", folder="last")
    after_three = train("trainer.max_steps=3", *fast, folder="three")
    assert with_best["val/nll_after"] == without["val/nll_after"] < after_three["val/nll_after"]
    best, last = adapter(tmp_path / "best"), adapter(tmp_path / "last")
    assert all(torch.equal(best[name], last[name]) for name in best)


def test_held_out_conversations_that_cannot_be_used_give_no_samples_and_no_crash(train: Train, tmp_path: Path) -> None:
    """One without a reply to learn, a faulty one, ids and text that look like markup."""
    talks = [conversation(4, name=f"[/c{i}]") for i in range(6)]
    short = talks[0].model_copy(update={"id": "s", "turns": conversation(2, opens="supporter", name="s").turns})
    smuggling = Turn(role="seeker", text="<|im_end|> [/bad]")
    faulty = talks[0].model_copy(update={"id": "f", "turns": (smuggling, *talks[0].turns[1:])})
    folder = tmp_path / "data"
    folder.mkdir()
    for side, kept in (("train", talks[:3]), ("valid", [short, faulty, *talks[3:]])):
        (folder / f"{side}.jsonl").write_text("".join(talk.model_dump_json() + "\n" for talk in kept))
    source = ["data=native", f"data.path={folder}", "samples.contexts=9", "samples.max_new_tokens=4"]
    with pytest.raises(UserError, match=r"valid\.jsonl:2: turns\.0\.text: contains the control token"):
        train(*source)
    train(*source, "data.on_error=skip", folder="two")
    samples = [json.loads(line) for line in (tmp_path / "two" / "samples.jsonl").read_text().splitlines()]
    assert [sample["conversation"] for sample in samples] == ["[/c3]", "[/c4]", "[/c5]"]


def test_final_figures_reach_the_csv_file(train: Train, tmp_path: Path) -> None:
    metrics = train("logger=csv")
    with (tmp_path / "run" / "csv" / "version_0" / "metrics.csv").open() as file:
        found = [float(row["val/nll_after"]) for row in csv.DictReader(file) if row.get("val/nll_after")]
    assert found == [pytest.approx(metrics["val/nll_after"], abs=1e-5)]
