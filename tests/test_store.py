"""The store: the same inputs are worked on once, a stopped stage goes on, and what was altered is refused."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from esupport.errors import UserError
from esupport.store import Stage, Store, key_of, read_lines, write_atomically, write_lines


class Maker:
    """Writes a file, and counts how often it was asked to."""

    def __init__(self, text: str = "made\n") -> None:
        self.text, self.calls = text, 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "a.txt").write_text(self.text)
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "deep" / "b.txt").write_text("below\n")


def named(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_same_inputs_are_made_once_and_others_anew(tmp_path: Path) -> None:
    store, make = Store(tmp_path), Maker()
    first = store.stage("scores", {"rows": "ab", "beta": 0.1}, make)
    again = Store(tmp_path).stage("scores", {"beta": 0.1, "rows": "ab"}, make)
    assert make.calls == 1
    assert (first.reused, again.reused) == (False, True)
    assert (first.key, first.folder, first.files, first.inputs) == (again.key, again.folder, again.files, again.inputs)
    others: list[tuple[str, dict[str, Any]]] = [
        ("scores", {"rows": "ab", "beta": 0.2}),
        ("scores", {"rows": "ab"}),
        ("scores", {"rows": "ab", "beta": 0.1, "seed": None}),
        ("pairs", {"rows": "ab", "beta": 0.1}),
    ]
    folders = {store.stage(name, inputs, make).folder for name, inputs in others}
    assert make.calls == 5
    assert len(folders | {first.folder}) == 5


def test_a_key_is_of_the_inputs_whatever_their_order() -> None:
    one = {"a": 1, "b": {"c": [1, 2], "d": "é"}}
    assert key_of(one) == key_of({"b": {"d": "é", "c": [1, 2]}, "a": 1})
    assert len(key_of(one)) == 16
    assert int(key_of(one), 16) >= 0
    unlike = [
        one, {"a": 1.5, "b": 0}, {"a": "1", "b": 0}, {"a": 1, "b": 0}, {"a": None, "b": 0}, {"a": 1, "b": {"c": [2, 1]}},
        {"a": 1, "b": {"c": [1, 2], "d": "e"}},
    ]  # fmt: skip
    assert len({key_of(inputs) for inputs in unlike}) == len(unlike)


def test_a_manifest_tells_what_a_stage_was_made_from_and_lists_its_files(tmp_path: Path) -> None:
    stage = Store(tmp_path).stage("sft", {"seed": 3, "words": "crème"}, Maker())
    assert stage.folder == tmp_path / "sft" / stage.key
    manifest = json.loads((stage.folder / "stage.json").read_text(encoding="utf-8"))
    assert manifest["stage"] == stage.name == "sft"
    assert manifest["key"] == stage.key == key_of({"seed": 3, "words": "crème"})
    assert manifest["inputs"] == stage.inputs == {"seed": 3, "words": "crème"}
    listed = {"a.txt": b"made\n", "deep/b.txt": b"below\n"}
    assert manifest["files"] == stage.files == {n: hashlib.sha256(text).hexdigest() for n, text in listed.items()}
    assert manifest["seconds"] == stage.seconds >= 0
    assert named(stage.folder) == ["a.txt", "deep/b.txt", "stage.json"]


def test_a_stage_that_failed_goes_on_from_what_it_left(tmp_path: Path) -> None:
    store, seen = Store(tmp_path), []

    def make(folder: Path) -> None:
        seen.append(named(folder))
        number = len(seen)
        (folder / f"part-{number}.txt").write_text("x")
        (folder / ".checkpoints").mkdir(exist_ok=True)
        (folder / ".checkpoints" / "last").write_text(str(number))
        time.sleep(0.05)
        if number < 3:
            raise ConnectionAbortedError("killed")

    for _ in range(2):
        with pytest.raises(ConnectionAbortedError):
            store.stage("draft", {"a": 1}, make)
        assert not (tmp_path / "draft" / key_of({"a": 1})).exists(), "a reader sees nothing of it before it is whole"
    stage = store.stage("draft", {"a": 1}, make)
    assert seen == [
        [],
        [".checkpoints/last", "part-1.txt"],
        [".checkpoints/last", "part-1.txt", "part-2.txt"],
    ]
    assert sorted(stage.files) == ["part-1.txt", "part-2.txt", "part-3.txt"]
    assert named(stage.folder) == ["part-1.txt", "part-2.txt", "part-3.txt", "stage.json"], "dot names are scratch"
    assert not stage.reused
    assert stage.seconds >= 0.05
    assert not (tmp_path / "draft" / f".{stage.key}.partial").exists()
    assert store.stage("draft", {"a": 1}, make).reused
    # other inputs see nothing of it
    seen[:] = [[], []]
    store.stage("draft", {"a": 2}, make)
    assert seen[-1] == []


PROGRAM = """
import os, sys, time
from pathlib import Path
from esupport.store import Store

def make(folder):
    (folder / "begun.txt").write_text("x")
    with open(sys.argv[2], "a") as calls:
        calls.write(f"{os.getpid()} {sorted(path.name for path in folder.iterdir())}\\n")
    time.sleep(float(sys.argv[3]))
    (folder / "ended.txt").write_text("y")

stage = Store(Path(sys.argv[1])).stage("draft", {"a": 1}, make)
print(stage.reused, sorted(stage.files))
"""


def process(folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(folder / "store"), str(folder / "calls"), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stage_whose_process_was_killed_is_taken_up_by_the_next(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    killed = process(tmp_path, 60)
    wait_for(lambda: calls.exists() and calls.read_text().count("\n") == 1)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    (partial,) = (tmp_path / "store" / "draft").glob(".*.partial")
    (partial / "left.txt").write_text("by a kill at another place")
    out, err = process(tmp_path, 0).communicate(timeout=60)
    assert out == "False ['begun.txt', 'ended.txt', 'left.txt']\n", err
    assert "left.txt" in calls.read_text().splitlines()[1]
    assert Store(tmp_path / "store").stage("draft", {"a": 1}, Maker()).reused


def test_two_processes_at_once_make_it_once(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    first = process(tmp_path, 1.5)
    wait_for(lambda: calls.exists() and calls.read_text().count("\n") == 1)
    others = [process(tmp_path, 0) for _ in range(2)]
    said = [one.communicate(timeout=60) for one in (first, *others)]
    files = "['begun.txt', 'ended.txt']\n"
    waiting = f"Waiting for another process that makes draft/{key_of({'a': 1})} ...\n"
    assert said[0][0] == f"False {files}", said
    assert [out for out, _ in said[1:]] == [f"{waiting}True {files}"] * 2, said
    assert calls.read_text().count("\n") == 1


def altered(stage: Stage) -> str:
    (stage.folder / "a.txt").write_text("Made\n")
    return r"was altered \(a\.txt\)"


def lost(stage: Stage) -> str:
    (stage.folder / "deep" / "b.txt").unlink()
    return r"is damaged \(.*deep/b\.txt'?\)"


def without_manifest(stage: Stage) -> str:
    (stage.folder / "stage.json").unlink()
    return r"is damaged \(.*stage\.json'?\)"


def with_half_a_manifest(stage: Stage) -> str:
    path = stage.folder / "stage.json"
    path.write_text(path.read_text()[:20])
    return r"is damaged \("


@pytest.mark.parametrize("spoil", [altered, lost, without_manifest, with_half_a_manifest])
def test_a_finished_stage_that_lost_files_or_was_altered_is_refused_by_name(
    tmp_path: Path, spoil: Callable[[Stage], str]
) -> None:
    store, make = Store(tmp_path), Maker()
    stage = store.stage("sft", {"a": 1}, make)
    reason = spoil(stage)
    with pytest.raises(UserError, match=rf"^paths\.store: {stage.folder} {reason}.*; remove it to have it made anew$"):
        store.stage("sft", {"a": 1}, make)
    assert make.calls == 1, "it is not made anew behind the user's back"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.json"
    write_atomically(path, "old é\r\n")
    assert path.read_bytes() == "old é\r\n".encode()
    rename, write_text = Path.rename, Path.write_text

    def killed_before(self: Path, target: Path) -> Path:
        assert path.read_bytes() == "old é\r\n".encode()
        raise ConnectionAbortedError("killed")

    def killed_halfway(self: Path, text: str, *args: Any, **kwargs: Any) -> int:
        write_text(self, text[: len(text) // 2], *args, **kwargs)
        raise ConnectionAbortedError("killed")

    for name, killed in (("rename", killed_before), ("write_text", killed_halfway)):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, killed)
            with pytest.raises(ConnectionAbortedError):
                write_atomically(path, "new")
        assert path.read_bytes() == "old é\r\n".encode()
    monkeypatch.setattr(Path, "rename", rename)
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert named(tmp_path) == ["metrics.json"], "the next attempt clears what the last one left"


def test_what_a_killed_write_leaves_does_not_become_part_of_a_stage(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / ".replies.jsonl.123").write_text("half")  # as a process of that number leaves it
        write_lines(folder / "replies.jsonl", [{"id": 1}])

    assert list(Store(tmp_path).stage("draft", {}, make).files) == ["replies.jsonl"]


def test_records_are_a_line_each_whatever_they_hold(tmp_path: Path) -> None:
    records = [{"text": "a\nb\u2028c\x85d é 昨晚"}, {"text": ""}, [1, None]]
    path = tmp_path / "pairs.jsonl"
    write_lines(path, records)
    assert path.read_bytes().count(b"\n") == 3
    assert "昨晚" in path.read_text(encoding="utf-8")
    assert read_lines(path) == records
    write_lines(path, [])
    assert read_lines(path) == []
