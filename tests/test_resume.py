"""A run of the method that is killed, again and again, ends in the bytes of one that is left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMOKE, Evolve
from test_multirun import records

from esupport.evolution import learning

SEED = 20251109


@pytest.mark.slow
def test_ten_kills_at_random_points_change_no_byte(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "tests/killed.py", str(tmp_path), str(SEED), "10"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= 10
    assert found["files"] >= 3 + 3 * 2 + 1  # adapters; pairs, drops and curves; held-out replies
    assert all(found["equal"]), found


def test_generation_goes_on_behind_the_last_whole_batch(
    evolve: Evolve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from esupport.generators.local import Transformers

    written: list[int] = []
    real = Transformers.write

    def failing(self: Transformers, requests, adapter):  # type: ignore[no-untyped-def]
        written.append(len(requests))
        if len(written) == 7:
            raise KeyboardInterrupt
        return real(self, requests, adapter)

    monkeypatch.setattr(Transformers, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        evolve("evolution.rounds=1", "generator.rows=4")
    kept = list((tmp_path / "store").rglob(".batch-*.jsonl"))
    evolve("evolution.rounds=1", "generator.rows=4")
    asked = [len(path.read_text().splitlines()) for path in (tmp_path / "store").rglob("replies.jsonl")]
    assert kept
    assert sum(written) - written[6] == sum(asked), "what was written before the stop is not written again"
    assert not list((tmp_path / "store").rglob(".batch-*"))
    assert not list((tmp_path / "store").rglob(".replies")), "they depend on their batches, and are not kept one by one"


def test_training_goes_on_from_its_last_checkpoint(evolve: Evolve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from esupport.objectives.dpo import PreferenceOptimization

    settings = ["evolution.rounds=1", "evolution.epochs=4", "callbacks.last.every_n_train_steps=1"]
    evolve(*settings)
    expected = (tmp_path / "run/round-1/adapter/adapter_model.safetensors").read_bytes()
    curve = (tmp_path / "run/round-1/curve.jsonl").read_bytes()
    steps: list[int] = []
    real = PreferenceOptimization.on_step_end

    def stopping(self: PreferenceOptimization) -> None:
        real(self)
        steps.append(self.global_step)
        if len(steps) == 3:
            raise RuntimeError("the power is out")

    monkeypatch.setattr(PreferenceOptimization, "on_step_end", stopping)
    monkeypatch.setattr("esupport.store.key_of", _other_key)
    with pytest.raises(RuntimeError, match="the power is out"):
        evolve(*settings, folder="again")
    evolve(*settings, folder="again")
    assert (tmp_path / "again/round-1/adapter/adapter_model.safetensors").read_bytes() == expected
    assert (tmp_path / "again/round-1/curve.jsonl").read_bytes() == curve
    assert steps == [*range(1, 4), *range(3, len(curve.splitlines()) + 1)], "the step that was not kept, then the rest"


def test_half_a_checkpoint_is_none(evolve: Evolve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the temporary folder is another disk, Lightning copies a checkpoint, and a kill leaves what was copied so far."""
    settings = ["evolution.rounds=1", "evolution.epochs=4", "callbacks.last.every_n_train_steps=1"]
    evolve(*settings)
    expected = (tmp_path / "run/round-1/adapter/adapter_model.safetensors").read_bytes()
    real = learning._checkpoint

    def cut(folder: Path) -> str | None:
        last = folder / ".checkpoints" / "last.ckpt"
        last.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": {"w": torch.ones(1000)}}, last)
        last.write_bytes(last.read_bytes()[:-100])
        return real(folder)

    monkeypatch.setattr(learning, "_checkpoint", cut)
    monkeypatch.setattr("esupport.store.key_of", _other_key)
    evolve(*settings, folder="again")
    assert (tmp_path / "again/round-1/adapter/adapter_model.safetensors").read_bytes() == expected


def _other_key(inputs: dict[str, object]) -> str:
    import hashlib

    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[16:32]


@pytest.mark.slow
def test_a_killed_offline_run_keeps_its_id_and_its_parts_join(tmp_path: Path) -> None:
    """``wandb sync --id ID DIRECTORIES`` uploads the parts to one run, in the order of their start."""
    place = [f"paths.outputs={tmp_path}", "name=run", "logger=wandb", "evolution.rounds=1"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {"HOME": os.environ["ESUPPORT_CACHE"]}
    command = [sys.executable, "evolve.py", *(s for s in SMOKE if s != "logger=none"), *place]
    killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    while not (tmp_path / "run/round-1/pairs.jsonl").exists():
        assert killed.poll() is None, "the run ended too soon"
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    parts = sorted((tmp_path / "run/wandb").glob("offline-run-*"))
    assert len(parts) == 2
    (id_,) = {part.name.rpartition("-")[2] for part in parts}
    (path,) = parts[-1].glob("*.wandb")
    logged = list(records(path))  # W&B writes in blocks: what the killed part had not written yet stands in the last one too
    assert {record.run.run_id for record in logged if record.WhichOneof("record_type") == "run"} == {id_}
    history = [record.history.item for record in logged if record.WhichOneof("record_type") == "history"]
    keys = {item.key or "/".join(item.nested_key) for items in history for item in items}
    assert {"rounds/round", "rounds/held_out/nll", "rounds/pairs/kept"} <= keys
    assert any(key.startswith("pairs/round_1") for key in keys)
    metrics = [record.metric for record in logged if record.WhichOneof("record_type") == "metric"]
    axes = {metric.name: metric.step_metric for metric in metrics}
    of_rounds = {key for key in keys if key.startswith("rounds/")}
    assert {axes[key] for key in of_rounds - {"rounds/round"}} == {"rounds/round"}, "one axis, said of each by its name"
    assert axes["rounds/round"] == ""
    sync = [str(Path(sys.executable).parent / "wandb"), "sync", "--dry-run", "--id", id_, *map(str, parts)]
    shown = subprocess.run(sync, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert shown.returncode == 0, shown.stderr
    assert all(part.name in shown.stdout + shown.stderr for part in parts)
