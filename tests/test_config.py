"""Every option composes, every key has a comment, and a mistake is one line, told before torch is imported."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY, Train, config_of
from hydra.utils import get_object

from esupport.config import schema, schema_evaluate, schema_evolve
from esupport.config.binding import bind
from esupport.config.check import check_types
from esupport.config.command_line import CONF, check_command_line, composed
from esupport.errors import UserError

OPTIONS = [
    (config, str(f.parent.relative_to(CONF)), f.stem)
    for f in sorted(CONF.rglob("*/*.yaml"))
    for config in ("train", "evolve")
    if f.parent.name != "evolve"  # composed with the experiment of the same name
    and not (config == "train" and (f.parent.name in ("reflection", "generator", "filters") or "# evolve.py" in f.read_text()))
    and (config, f.parent.name, f.stem) != ("evolve", "objective", "sft")
    and not (config == "train" and f.parent.name == "loss")
    and f.parent.name not in ("judge", "safety", "seeker")
]
OPTIONS += [
    ("evaluate", group, f.stem)
    for group in ("model", "data", "generator", "judge", "safety", "seeker", "trainer", "logger")
    for f in sorted((CONF / group).glob("[!_]*.yaml"))
]
TEACHER = "{_target_:answers.never,_partial_:true}"
NEEDED = {  # options that leave something to the user
    "dpo": ["data.pairs=some/pairs"],
    "openai": ["generator.model=m"],
    "task8": ["generator.model=m"],
    "scripted": [f"generator.answer={TEACHER}"],
    "hub": ["model.path=some/model"],
    "native": ["data.path=some/data"],
    "extes": ["data.path=some/data"],
    "pesc": ["data.path=some/data"],
    "chat": ["data.path=some/data"],
}


def plain_of(*overrides: str, config: str = "train") -> dict[str, Any]:
    return check_types(config, composed(config, list(overrides)))


@pytest.mark.parametrize(("config", "group", "option"), OPTIONS, ids=[f"{c} {g}={o}" for c, g, o in OPTIONS])
def test_every_option_of_every_group_composes_and_its_nodes_fit_what_they_name(config: str, group: str, option: str) -> None:
    needed = [] if (config, option) == ("evolve", "dpo") else NEEDED.get(option, [])
    needed = [f"judge.{key}" if group == "judge" else key for key in needed]
    bind(plain_of(f"{group}={option}", *needed, config=config))


@pytest.mark.parametrize("loss", [f.stem for f in sorted((CONF / "objective/loss").glob("*.yaml"))])
def test_every_loss_composes_with_pairs_of_ones_own(loss: str) -> None:
    bind(plain_of("objective=dpo", f"objective/loss={loss}", "data.pairs=some/pairs"))


def test_what_an_experiment_changes_of_evolve_alone_is_taken() -> None:
    for name in ("smoke", "esconv", "paper_llama3"):
        assert (CONF / f"experiment/evolve/{name}.yaml").exists()
    plain = plain_of("experiment=paper_llama3", config="evolve")
    assert plain["reflection"]["form"] == "json"
    assert plain["contexts"]["per_round"] == 2000
    assert plain_of("experiment=no_emotion", config="evolve")["reflection"]["axes"]["emotion"] is None


def test_every_key_has_a_comment() -> None:
    """On its line or above it, or in the file that its own file starts from."""
    started_from = {"model": "hub", "data": "native", "trainer": "default", "callbacks": "default"}
    started_from |= {"reflection": "personalized", "filters": "default", "judge": "_rubric"}
    bare = []
    for path in sorted(CONF.rglob("*.yaml")):
        lines = path.read_text().split("\n")
        assert lines[0].startswith("#"), f"{path.name} does not say what it is"
        base = CONF / path.parent.name / f"{started_from.get(path.parent.name)}.yaml"
        known = {"_target_", "_partial_", "defaults", "hydra"}
        if base.exists() and base != path:
            known |= set(re.findall(r"^ *([\w.]+):", base.read_text(), re.M))
        if {"experiment", "sweep"} & set(path.parts):  # they repeat keys that are commented where they are defined
            defined = ("_common", "_trains", "train", "evolve", "trainer/default", "objective/dpo")
            defined += ("reflection/personalized", "filters/default")
            for file in defined:
                known |= set(re.findall(r"^ *([\w.]+):", (CONF / f"{file}.yaml").read_text(), re.M))
            known |= {"data", "trainer", "model", "params", "reflection", "filters", "objective"}
        text = False
        for number, line in enumerate(lines):
            key = re.match(r" *([\w.]+):(.*)", line)
            text = "|-" in line or ">-" in line or (text and not key)
            if (
                key
                and key[1] not in known
                and not text
                and "#" not in key[2]
                and not lines[number - 1].lstrip().startswith("#")
            ):
                bare.append(f"{path.relative_to(CONF)}:{number + 1}: {line.strip()}")
            elif key:  # in a list of alike nodes, the first one tells
                known.add(key[1])
    assert bare == []


@pytest.mark.parametrize(
    ("model", "target"),
    [
        (schema.Lora, "esupport.models.backbone.Lora"),
        (schema.Backbone, "esupport.models.backbone.Backbone"),
        (schema.Source, "esupport.data.source.Source"),
        (schema.Objective, "esupport.objectives.sft.SupervisedFineTuning"),
        (schema.Rendering, "esupport.rendering.template.Renderer"),
        (schema.Batching, "esupport.rendering.datamodule.RowDataModule"),
        (schema.Sampling, "esupport.generators.protocol.Sampling"),
        (schema.Preference, "esupport.objectives.dpo.PreferenceOptimization"),
        (schema_evolve.Axis, "esupport.reflection.method.Axis"),
        (schema_evolve.Step, "esupport.reflection.method.Step"),
        (schema_evolve.Reflection, "esupport.reflection.method.Method"),
        (schema_evaluate.Question, "esupport.evaluation.judge.method.Question"),
        (schema_evaluate.Judge, "esupport.evaluation.judge.method.Judge"),
        (schema_evaluate.Seeker, "esupport.comparison.seeker.Seeker"),
    ],
)
def test_the_schema_names_what_the_code_takes(model: Any, target: str) -> None:
    """No key without a parameter and, but for what the code itself adds, no parameter without a key."""
    added = {"policy", "tokenizer", "renderer", "corpora", "replay_ratio", "reference_is_start"}
    own = {"Renderer": {"instruction_in", "template_kwargs"}, "RowDataModule": {"seed"}}
    parameters = set(inspect.signature(get_object(target)).parameters) - added - own.get(target.rpartition(".")[2], set())
    if "others" in parameters:  # handed to the base class
        parameters |= set(inspect.signature(get_object("esupport.objectives.module.Objective")).parameters) - added - {"others"}
        parameters.remove("others")
    hydra = {name for name, field in model.model_fields.items() if field.alias and field.alias.startswith("_")}
    assert set(model.model_fields) - hydra == parameters


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["modl=tiny"], "modl: unknown key; did you mean model?"),
        (["model=tiney"], "model: no option 'tiney'; did you mean tiny?"),
        (["objective.optimizr.lr=1"], "objective.optimizr.lr: unknown key; did you mean objective.optimizer.lr?"),
        (["+model.lora.rang=3"], "model.lora.rang: unknown key"),
        (["seed=abc"], "seed: should be a valid integer (given: 'abc')"),
        (["seed=-1"], "seed: should be greater than or equal to 0 (given: -1)"),
        (["objective.optimizer.lr=fast"], "objective.optimizer.lr: should be a valid number (given: 'fast')"),
        (["data.on_error=shrug"], "data.on_error: should be 'stop' or 'skip' (given: 'shrug')"),
        (["data.split=null"], "data.split: should be 'auto', 'published' or 'seed' (given: None)"),
        (["trainer.max_epochs=many"], "trainer.max_epochs: should be a valid integer (given: 'many')"),
        (["data=pesc"], "data.path: needs a value: data.path=..."),
        (["data=esconv", "data.path=none.jsonl"], "data.path: no such file or folder: none.jsonl"),
        (["model.adapter=none"], "model.adapter: no folder with an adapter_config.json: none"),
        (["resume=none.ckpt"], "resume: no such file: none.ckpt"),
        (["model=hub", "model.path=./none"], "model.path: no such folder: ./none"),
        (["replay.source.path=none.jsonl"], "replay.source.path: no such file or folder: none.jsonl"),
        (["data.path=pkg://nope/x"], "data.path: no such package: nope"),
        (["data=null"], "data: no option None"),
        (["data.fractions.valid=0.5"], "data.fractions: value error, train, valid and test together are more than 1"),
        (["model.dtype=float8"], "model.dtype: should be 'float32', 'bfloat16' or 'float16'"),
        (["optimized_metric=val/nll"], "optimized_metric: should be 'val/nll_after'"),
        (["seed=99999999999"], "seed: should be less than 4294967296"),
        (["model=tiny", "model.path=a/b"], "model: value error, tiny is built on this machine"),
        (["x=[1"], "cannot read 'x=[1'"),
        (["~objective.scheduler"], "objective.scheduler: field required"),
        (["objective=dpo"], "objective=dpo learns from pairs"),
        (["objective=dpo", "data.pairs=none.jsonl"], "data.pairs: no such file or folder: none.jsonl"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(overrides: list[str], message: str) -> None:
    told_of("train", overrides, message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evolution.rouds=3"], "evolution.rouds: unknown key; did you mean evolution.rounds?"),
        (["reflection=personalised"], "reflection: no option 'personalised'; did you mean personalized?"),
        (["objective/loss=sigmod"], "objective/loss: no option 'sigmod'; did you mean sigmoid?"),
        (["evolution.start=last"], "evolution.start: should be 'previous' or 'sft' (given: 'last')"),
        (["contexts.turns=some"], "contexts.turns: should be 'spread', 'first', 'last' or 'random'"),
        (["objective.loss.beta=-1"], "objective.loss.beta"),
        (["evolution.epochs=[1,2,3]"], "evolution.epochs has 3 values for 2 rounds"),
        (["data.pairs=x.jsonl"], "evolve.py makes its own pairs"),
        (["generator=openai"], "generator.model: needs a value: generator.model=..."),
        (["reflection.reflect.by=me"], "reflection.reflect.by: should be 'policy', 'base' or 'teacher'"),
    ],
)
def test_a_mistake_in_evolve_is_one_line_that_names_the_key(overrides: list[str], message: str) -> None:
    told_of("evolve", overrides, message)


def told_of(config: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as told:
        check_command_line(config, overrides)
    assert str(told.value).lower().startswith(message.lower())
    assert "\n" not in str(told.value)


def test_a_gated_model_without_a_token_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match=r"model\.path: meta-llama/.* is gated and there is no token"):
        check_command_line("train", ["model=llama3"])
    monkeypatch.setenv("HF_TOKEN", "x")
    check_command_line("train", ["model=llama3"])
    monkeypatch.delenv("HF_TOKEN")
    check_command_line("train", ["model=llama3", f"model.path={tmp_path}"])


def test_a_model_that_cannot_be_had_is_one_line(train: Train) -> None:
    with pytest.raises(UserError, match=r"model\.path: cannot load nobody/nothing: "):
        train("model=hub", "model.path=nobody/nothing")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+trainer.max_epoch=3"], "trainer.max_epoch: pytorch_lightning.Trainer takes no such key; did you mean max_epochs?"),
        (["+trainer.overfit_batches=all"], "trainer.overfit_batches: "),
        (["+callbacks.best.patience=3"], "callbacks.best.patience: "),
        (["objective.optimizer._target_=torch.optim.Adamm"], "objective.optimizer._target_: cannot import torch.optim.Adamm"),
        (["+objective.optimizer.learning_rate=1"], "objective.optimizer.learning_rate: torch.optim.AdamW takes no such key"),
        (["~logger.csv.save_dir"], "logger.csv.save_dir: pytorch_lightning.loggers.CSVLogger needs this key"),
    ],
)
def test_nodes_of_other_libraries_are_bound_before_weights_load(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as told:
        bind(plain_of(*overrides))
    assert str(told.value).startswith(message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches: .* use batching.conversations_per_step"),
        (["trainer.precision=bf16-true"], "trainer.precision: bf16-true would round the adapter's weights"),
        (["trainer.precision=16-true"], "trainer.precision: 16-true"),
        (["trainer.val_check_interval=50"], "trainer.val_check_interval: 50 steps is more than an epoch, which has 3"),
        (["trainer.accelerator=nope"], "trainer: "),
        (["data.on_error=skip", "rendering.max_tokens=8"], "rendering.max_tokens: no reply of the side train fits"),
    ],
)
def test_what_cannot_work_is_told_before_weights_load(
    train: Train, monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str
) -> None:
    monkeypatch.setattr("esupport.models.backbone.Backbone.load", lambda *a: pytest.fail("loaded"))
    with pytest.raises(UserError, match=message):
        train(*overrides)


def test_a_scheduler_that_does_not_exist_is_one_line(train: Train) -> None:
    with pytest.raises(UserError, match=r"objective\.scheduler: "):
        train("objective.scheduler.name=foo")


def test_no_weights_load_before_the_configuration_is_sound(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esupport.models.backbone.Backbone._load", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(UserError, match=r"trainer\.max_epoch"):
        train("+trainer.max_epoch=3")


def test_errors_exit_non_zero_with_one_line_and_need_no_torch() -> None:
    wrong = [(program, ["seed=abc"], 2) for program in ("train", "evolve", "evaluate")]
    for program, arguments, code in (*wrong, ("train", ["--help"], 0)):
        command = [sys.executable, "-X", "importtime", f"{program}.py", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        imported = [line for line in done.stderr.split("\n") if line.startswith("import time:")]
        told = [line for line in done.stderr.split("\n") if line and not line.startswith("import time:")]
        assert done.returncode == code
        assert told == (["error: seed: should be a valid integer (given: 'abc')"] if code else [])
        assert not [line for line in imported if re.search(r"\| +(torch|transformers|pytorch_lightning)\b", line)]
    assert "smollm2" in done.stdout
    assert "python train.py model=tiny" in done.stdout


def test_values_of_a_sweep_are_checked_before_it_starts() -> None:
    with pytest.raises(UserError, match=r"seed: .*'abc'"):
        check_command_line("train", ["seed=0,1,abc"], sweep=True)
    check_command_line(
        "train", ["model=tiny,smollm2", "objective.optimizer.lr=1e-4,3e-4", "data.path=none.jsonl,other"], sweep=True
    )
    check_command_line("train", ["model=glob(ti*)"], sweep=True)
    check_command_line("train", ["sweep=grid", "model=tiny,smollm2"], sweep=True)
    check_command_line("train", ["sweep=optuna", "objective.optimizer.lr=tag(log, interval(1e-5, 1e-3))"], sweep=True)


COMMANDS = [
    line.strip().removeprefix("$ ")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), re.S)
    for line in block.replace("\\\n", " ").split("\n")
    if re.search(r"\b(train|evolve|evaluate)\.py", line) and not line.startswith("#")
]


def test_commands_are_found() -> None:
    assert len(COMMANDS) >= 10
    assert len(LOCAL) >= 4


def overrides_of(command: str) -> list[str]:
    words = shlex.split(command, comments=True)
    return words[next(i for i, w in enumerate(words) if w.endswith(".py")) + 1 :]


def config_of_command(command: str) -> str:
    return next(name for name in ("evolve", "evaluate", "train") if f"{name}.py" in command)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_documented_command_composes(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esupport.config.command_line.check_resources", lambda plain: None)
    typed = subprocess.run(["bash", "-c", f"printf '%s\n' {command}"], capture_output=True, text=True, check=True)
    assert typed.stdout.splitlines() == shlex.split(command, comments=True), "what a shell makes of it"
    words = [w for w in overrides_of(command) if not w.startswith("-")]
    check_command_line(config_of_command(command), words, sweep="-m" in overrides_of(command))


SMALLER = [
    "model=tiny",
    "trainer=cpu",
    "data.limit=4",
    "samples.max_new_tokens=4",
    "trainer.max_epochs=1",
    "batching.conversations_per_step=8",
]
ELSEWHERE = (
    r"outputs/esconv|teacher|openai|llama|qwen|mistral|gemma|hub|FILE|FOLDER|paper_|=gpu|=ddp|--help|--cfg|\.jsonl|optuna|4bit"
)
LOCAL = [command for command in COMMANDS if not re.search(ELSEWHERE, command)]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of evolve.py in place of the demo's; each process of a test run makes its own."""
    outputs = tmp_path_factory.mktemp("demo")
    small = ["experiment=smoke", "data.limit=8", "evolution.rounds=1", "name=demo", f"paths.outputs={outputs}"]
    do("evolve", small, outputs / "demo")
    return outputs / "demo"


def do(name: str, words: list[str], folder: Path) -> None:
    """What the command does, in this process; a sweep by the command itself, for it is Hydra's launcher that runs its jobs."""
    if "-m" in words or any(word.startswith("sweep=") for word in words):
        done = subprocess.run([sys.executable, f"{name}.py", *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return
    job = {"train": "training", "evolve": "evolution", "evaluate": "comparison"}[name]
    getattr(importlib.import_module(f"esupport.{job}.job"), f"{name}_job")(config_of(name, words, folder))


@pytest.mark.slow
@pytest.mark.parametrize("command", LOCAL)
def test_documented_commands_without_download_and_gpu_run(command: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    words = overrides_of(command)
    small = [s for s in SMALLER if not any(w.partition("=")[0] == s.partition("=")[0] for w in words) or s == "model=tiny"]
    kept = [w for w in words if not w.startswith("model=")]
    name = config_of_command(command)
    if name == "evolve":  # a model that has learnt nothing does not end its texts
        small = ["experiment=smoke", *(s for s in small if s.startswith("data.limit"))]
        kept = [w for w in kept if not w.startswith("experiment=")]
    if name == "evaluate":
        small = ["model=tiny", "trainer=cpu", "data.limit=8", "sampling.max_new_tokens=4"]
        small += ["contexts.conversations=2"] if not any(w.startswith("contexts.conv") for w in words) else []
        kept = [f"run={request.getfixturevalue('demo')}" if w == "run=outputs/demo" else w for w in kept]
    do(name, [*kept, *small, f"paths.outputs={tmp_path}"], tmp_path / "run")
    assert list(tmp_path.rglob("metrics.json"))


def test_what_a_run_writes_holds_no_path_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "conf").symlink_to(CONF)
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "data.limit=4", "name=x"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    folder = tmp_path / "outputs" / "x"
    for written in [*folder.glob("*.*"), *folder.glob("adapter/*")]:
        for private in (str(tmp_path), str(ROOT), str(Path.home())):
            assert private.encode() not in written.read_bytes(), f"{written.name} names {private}"
