"""Is a composed configuration sound? Checked before torch is imported; a mistake is one line that names the key."""

from __future__ import annotations

import importlib.util
import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from esupport.config.schema import Train
from esupport.config.schema_evaluate import Evaluate
from esupport.config.schema_evolve import Evolve
from esupport.data.files import locate
from esupport.errors import UserError, first_line

SCHEMAS: dict[str, type[BaseModel]] = {"train": Train, "evolve": Evolve, "evaluate": Evaluate}


def check_types(config_name: str, cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers, or ``UserError`` for a missing, unknown or ill-typed key."""
    try:
        plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        key = error.full_key or "config"
        missing = "Missing mandatory value" in str(error)
        reason = f"needs a value: {key}=..." if missing else first_line(error)
        raise UserError(f"{key}: {reason}") from None
    try:
        SCHEMAS[config_name].model_validate(plain)
    except ValidationError as error:
        raise UserError(_one_line(SCHEMAS[config_name], error, plain, OmegaConf.to_container(cfg))) from None
    return plain


def check_resources(plain: dict[str, Any]) -> None:
    """``UserError`` for a file that is not there, or a gated model without a token."""
    locate(plain["data"]["path"], "data.path")
    if plain["data"]["pairs"]:
        locate(plain["data"]["pairs"], "data.pairs")
    if "replay" in plain and plain["replay"]["ratio"]:
        locate(plain["replay"]["source"]["path"], "replay.source.path")
    if plain.get("metrics", {}).get("bertscore") and importlib.util.find_spec("bert_score") is None:
        raise UserError("metrics.bertscore: the package bert-score is not installed; run: pip install -e '.[bertscore]'")
    for key, path in _named_files(plain):
        if not Path(path).expanduser().is_file():
            raise UserError(f"{key}: no such file: {path}")
    model = plain["model"]
    if model["adapter"]:
        for needed in ("adapter_config.json", "adapter_model.safetensors"):
            if not (Path(model["adapter"]).expanduser() / needed).is_file():
                raise UserError(f"model.adapter: no folder with an {needed}: {model['adapter']}")
    if plain.get("resume") not in (None, "auto") and not Path(plain["resume"]).expanduser().is_file():
        raise UserError(f"resume: no such file: {plain['resume']}")
    if model["path"] is None or Path(model["path"]).expanduser().is_dir():
        return
    if model["path"].startswith(("/", "./", "../", "~")):
        raise UserError(f"model.path: no such folder: {model['path']}")
    if model["gated"] and not _has_token(model["path"]):
        raise UserError(
            f"model.path: {model['path']} is gated and there is no token: accept its licence on the hub and set HF_TOKEN "
            "(or huggingface-cli login), or give a local copy with model.path=FOLDER"
        )


def _named_files(plain: dict[str, Any]) -> list[tuple[str, str]]:
    """What ``evaluate.py`` reads only after much was written, or paid for."""
    vectors = plain.get("metrics", {}).get("word_vectors")
    others = [("agreement_with", path) for path in plain.get("agreement_with", [])]
    return [*others, *([("metrics.word_vectors", vectors)] if vectors else [])]


def nearest(key: str, keys: list[str]) -> str:
    """A hint at the key that was probably meant."""
    found = get_close_matches(key, keys, n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def _has_token(path: str) -> bool:
    """Whether the hub would let us in, or the model is in the local cache already."""
    if os.environ.get("HF_TOKEN"):
        return True
    from huggingface_hub import get_token, try_to_load_from_cache

    return bool(get_token()) or isinstance(try_to_load_from_cache(path, "config.json"), str)


def _one_line(schema: type[BaseModel], error: ValidationError, plain: Any, written: Any) -> str:
    """The first fault with its full key; a value that is only copied from another key (an interpolation) comes last."""

    def rank(fault: Any) -> tuple[bool, bool, int]:
        value = _follow(written, fault["loc"])[1]
        copied = isinstance(value, str) and value.startswith("${")
        # of a union, the branch that went deepest is what the user meant
        return fault["type"] == "extra_forbidden", not copied, len(fault["loc"])

    first = max(error.errors(), key=rank)
    where = _follow(plain, first["loc"])[0]
    if first["type"] == "missing":
        where.append(str(first["loc"][-1]))
    key = ".".join(where)
    if first["type"] == "extra_forbidden":
        model = _model_at(schema, where[:-1])
        names = [field.alias or name for name, field in model.model_fields.items()] if model else []
        return f"{key}: unknown key{nearest(where[-1], names)}"
    if not key:  # what is wrong lies between several keys, and the message names them
        return str(first["msg"]).removeprefix("Value error, ")
    given = "" if first["type"] == "missing" else f" (given: {first['input']!r})"
    message = first["msg"].removeprefix("Input should be ")
    return f"{key}: should be {message}{given}" if message != first["msg"] else f"{key}: {message}{given}"


def _follow(node: Any, loc: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """The keys of ``loc`` that exist in the configuration (others name branches of a union), and the value there."""
    where = []
    for part in loc:
        if isinstance(node, dict) and part in node:
            node = node[part]
            where.append(str(part))
    return where, node


def _model_at(model: type[BaseModel] | None, where: list[str]) -> type[BaseModel] | None:
    for part in where:
        field = model.model_fields.get(part) if model else None
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return model
