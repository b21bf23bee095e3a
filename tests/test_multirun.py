"""A sweep gives a W&B run a job, grouped and named; a failed job spoils no other; nothing of this machine is recorded."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow
SMALL = ["trainer=cpu", "data.limit=4", "samples.contexts=1", "samples.max_new_tokens=4", "callbacks.progress_bar=null"]


def run(*overrides: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    flags = [o for o in overrides if o.startswith("-")]
    return subprocess.run(
        [sys.executable, "train.py", *flags, *SMALL, *(o for o in overrides if o not in flags)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        env={**environment, "HOME": os.environ["ESUPPORT_CACHE"]},  # no netrc: no key
    )


def records(path: Path) -> Iterator[Any]:
    """The records of an offline run: a LevelDB log behind 7 bytes, in blocks of 32 KiB, each piece behind crc, length, kind."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def wandb_runs(folder: Path) -> list[dict[str, Any]]:
    """Name, group, names of figures and raw bytes of the offline runs below ``folder``."""
    runs = []
    for path in sorted(folder.rglob("offline-run-*/*.wandb")):
        found: dict[str, Any] = {"history": set(), "raw": path.read_bytes()}
        for record in records(path):
            if record.WhichOneof("record_type") == "run":
                found.update(name=record.run.display_name, group=record.run.run_group, host=record.run.host)
            if record.WhichOneof("record_type") == "history":
                found["history"] |= {item.key or "/".join(item.nested_key) for item in record.history.item}
        runs.append(found)
    return runs


def test_a_sweep_is_a_group_of_runs_and_a_failed_job_spoils_no_other(tmp_path: Path) -> None:
    lost = tmp_path / "lost.jsonl"
    done = run(
        "-m",
        "model=tiny",
        "data.path=pkg://esupport.data/shipped," + str(lost),
        "seed=0,1",
        "name=sweep",
        f"paths.outputs={tmp_path}",
    )
    assert done.returncode != 0
    assert done.stderr.count(f"error: data.path: no such file or folder: {lost}") == 2
    finished = [json.loads(path.read_text())["seed"] for path in sorted(tmp_path.glob("sweep/*/metrics.json"))]
    assert finished == [0, 1]
    runs = wandb_runs(tmp_path)
    assert len(runs) == 2
    assert {r["group"] for r in runs} == {"sweep"}
    assert sorted(r["name"].partition("seed=")[2][:1] for r in runs) == ["0", "1"]
    for r in runs:
        assert {"train/loss", "val/nll", "val/nll_after"} <= r["history"]
        assert r["host"] == "unnamed"
        for private in (str(ROOT), str(Path(sys.executable).parent)):
            assert private.encode() not in r["raw"], private


def test_a_single_run_is_offline_without_a_key_and_belongs_to_no_group(tmp_path: Path) -> None:
    done = run("model=tiny", "name=one", f"paths.outputs={tmp_path}")
    assert done.returncode == 0, done.stderr
    (only,) = wandb_runs(tmp_path)
    assert only["group"] == ""
    assert list(tmp_path.glob("one/csv/version_0/metrics.csv"))


def test_the_optuna_sweep_runs(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ["sweep=optuna", "hydra.sweeper.n_trials=2", "logger=none"]
    done = run(*search, "model=tiny", "name=search", f"paths.outputs={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "best_params" in (tmp_path / "search" / "optimization_results.yaml").read_text()
    assert len(list(tmp_path.glob("search/*/metrics.json"))) == 2
    # a failed training is a failed trial: the search goes on
    lost = run(*search, "model=tiny", "data.path=lost.jsonl", "name=lost", f"paths.outputs={tmp_path}")
    assert lost.stderr.count("error: data.path: no such file or folder") == 2


def test_a_mistake_inside_a_job_is_a_clear_line_and_no_traceback(tmp_path: Path) -> None:
    done = run("model=tiny", "logger=none", "+trainer.max_epoch=3", f"paths.outputs={tmp_path}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(
        "error: trainer.max_epoch: pytorch_lightning.Trainer takes no such key; did you mean max_epochs?"
    )
