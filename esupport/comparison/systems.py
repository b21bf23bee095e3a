"""What is compared: the backbone alone, adapters, rounds of a run, a server, the human replies, an earlier evaluation's."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from esupport.data.sides import LEARNT_FROM, learnt_around
from esupport.errors import UserError, first_line
from esupport.generators.protocol import Generator
from esupport.models.slot import refuse_other

Kind = Literal["base", "adapter", "server", "human", "file"]
HUMAN = "human"


@dataclass(frozen=True)
class System:
    """One column of the tables.

    Attributes:
        name: unique.
        kind: what it is.
        generator: who writes its replies; None where they are there already.
        adapter: folder of the adapter that the generator speaks with; None for none.
        round: of a run of ``evolve.py``.
        file: ``replies.jsonl`` of another evaluation, for the kind ``file``.
        of: the system's name there; None for the only one beside the human replies.
    """

    name: str
    kind: Kind
    generator: Generator | None = None
    adapter: Path | None = None
    round: int | None = None
    file: Path | None = None
    of: str | None = None

    @property
    def has_weights(self) -> bool:
        """Whether likelihoods under it can be measured."""
        return self.kind in ("base", "adapter")


def systems_of(plain: Mapping[str, Any], generator: Generator, server: Generator | None) -> list[System]:
    """The systems that ``systems`` and ``run`` name: the base first, then a run's rounds, the human replies last.

    Raises:
        UserError: one cannot be found, or there is none.
    """
    named = [_named(name, str(said), generator, server) for name, said in plain["systems"].items() if said]
    found = named + (_of_run(Path(plain["run"]).expanduser(), plain, generator) if plain["run"] else [])
    twice = {system.name for system in found if sum(other.name == system.name for other in found) > 1}
    if twice:
        raise UserError(f"systems.{min(twice)}: the run has a system of this name too")
    if not found:
        raise UserError(
            "systems: there is nothing to evaluate; name a run, run=outputs/NAME, or a system, +systems.NAME=FOLDER"
        )
    for system in found:
        if system.has_weights and not generator.serves_policy:
            raise UserError(
                f"generator: {generator.name} cannot speak as {system.name}; a server is generator@server=openai "
                "+systems.NAME=server"
            )
        if system.adapter:  # now: where its replies are there already, it is never loaded
            lora = plain["model"]["lora"]
            known = {key: lora[key] for key in ("alpha", "rslora", "dora")}
            refuse_other(system.adapter, name=plain["model"]["name"], **known)
    order = {"base": 0, "adapter": 1, "server": 2, "file": 2, "human": 3}
    return sorted(found, key=lambda system: (order[system.kind], -1 if system.round is None else system.round))


def _named(name: str, said: str, generator: Generator, server: Generator | None) -> System:
    if said == HUMAN:
        return System(name, "human")
    if said == "base":
        return System(name, "base", generator)
    if said == "server":
        if server is None:
            raise UserError(f"systems.{name}: there is no server; use generator@server=openai server.model=NAME")
        return System(name, "server", server)
    path = Path(said).expanduser()
    file, _, of = said.partition("#")
    if file.endswith(".jsonl") and Path(file).expanduser().is_file():
        return System(name, "file", file=Path(file).expanduser(), of=of or None)
    for folder in (path, path / "adapter"):
        if (folder / "adapter_config.json").is_file():
            return System(name, "adapter", generator, folder)
    raise UserError(f"systems.{name}: {said} is not base, human, server, a folder with an adapter, or a file of replies")


def _of_run(folder: Path, plain: Mapping[str, Any], generator: Generator) -> list[System]:
    try:
        systems = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        found = [(str(one["system"]), folder / str(one["adapter"]), int(one["round"])) for one in systems]
        settings: Any = OmegaConf.load(folder / "config.yaml")
        made = {key: OmegaConf.to_container(settings[key], resolve=True) for key in ("model", "rendering")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"run: {folder} is no folder of a run of evolve.py that has ended ({first_line(error)})") from None
    _refuse_other_settings(made, plain)
    if not (folder / LEARNT_FROM).exists():
        raise UserError(
            f"run: {folder} does not tell what it learnt from ({LEARNT_FROM}); start its command again, which takes what it "
            "made from the store and writes it"
        )
    return [System(name, "adapter", generator, adapter, number) for name, adapter, number in found]


def _refuse_other_settings(made: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """Raise ``UserError`` for another model or instruction than the run's."""
    for group, keys in (("model", ("name", "dtype", "instruction_in", "template_kwargs")), ("rendering", ("instruction",))):
        for key in keys:
            if made[group].get(key) != plain[group][key]:
                raise UserError(f"{group}.{key}: the run's is {made[group].get(key)}, this one is {plain[group][key]}")


def refuse_learnt(systems: Sequence[System], contents: Collection[str], split: str) -> None:
    """Raise ``UserError`` where an adapter learnt from conversations that would be measured.

    Known of adapters in the folder of a run of this project, whatever the data was called there and how it was divided.

    Args:
        systems: whose adapters are looked at.
        contents: of the conversations that would be measured.
        split: their side, for the message.
    """
    measured = set(contents)
    for system in systems:
        shared = measured & learnt_around(system.adapter) if system.adapter else ()
        if shared:
            raise UserError(
                f"split: {system.name} learnt from {len(shared)} of the {len(measured)} conversations of the side {split}; "
                "give data= and its keys as the run had them"
            )
