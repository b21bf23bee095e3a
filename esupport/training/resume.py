"""What a run's directory holds already: a checkpoint to go on from, or the figures of a run that has ended."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from esupport.errors import UserError

# keys that do not decide what is learnt
_FREE = {
    *("name", "resume", "optimized_metric", "batching.tokens_per_batch", "paths", "logger", "samples", "model.builder.cache"),
    "model.gradient_checkpointing",
    *("callbacks.last", "callbacks.progress_bar", "evolution.samples", "trainer.enable_progress_bar"),
    "trainer.log_every_n_steps",
}
# where a generator is found, how patiently it is asked, and what memory it has
_REACHED = ("base_url", "api_key_env", "concurrency", "timeout_s", "max_retries", "trunk_cache_gb", "gpu_memory_utilization")
_FREE |= {f"{generator}.{key}" for generator in ("generator", "teacher") for key in _REACHED}


def earlier_run(plain: dict[str, Any], folder: Path) -> tuple[str | None, dict[str, Any] | None]:
    """The checkpoint to go on from and, where the run had ended, its figures.

    Args:
        plain: the resolved configuration.
        folder: the run's directory.

    Raises:
        UserError: the directory holds a run of other settings, whose checkpoint or figures would pass for this run's.
    """
    if plain["resume"] != "auto":
        return (str(Path(plain["resume"]).expanduser()) if plain["resume"] else None), None
    last, figures = folder / "checkpoints" / "last.ckpt", folder / "metrics.json"
    if not (folder / "config.yaml").exists() or not (sound(last) or figures.exists()):
        return None, None
    changed = _changed(plain, folder)
    if changed:
        raise UserError(f"name: {folder} holds a run with another {changed}; choose another name, or resume=null to start anew")
    ended = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else None
    return (str(last) if sound(last) else None), ended


def refuse_other_settings(plain: dict[str, Any], folder: Path) -> None:
    """Raises ``UserError`` where ``folder`` holds a run of other settings, whose files would mix with this run's."""
    changed = _changed(plain, folder)
    if changed:
        raise UserError(
            f"name: {folder} holds a run with another {changed}; choose another name (what both have in common is found in "
            "the store) or remove the folder"
        )


def sound(checkpoint: Path) -> bool:
    """Whether a checkpoint is there and whole: where the temporary folder is another disk, a kill leaves half of one."""
    return zipfile.is_zipfile(checkpoint)


def clear(folder: Path, checkpoints: bool) -> None:
    """Remove what an earlier run left in ``folder`` and could pass for this run's."""
    names = ["metrics.json", "samples.jsonl"]
    if checkpoints:
        names += ["checkpoints/last.ckpt", "checkpoints/best.ckpt"]
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _changed(plain: dict[str, Any], folder: Path) -> str | None:
    """The first key in which the run that ``folder`` holds is another one; None where it is not, or there is none."""
    written = folder / "config.yaml"
    if not written.exists():
        return None
    # with dropout, what is dropped is drawn over a whole batch
    free = _FREE - {"batching.tokens_per_batch"} if plain["model"]["lora"]["dropout"] else _FREE
    return _first_difference(OmegaConf.to_container(OmegaConf.load(written), resolve=True), plain, free)


def _first_difference(then: Any, now: Any, free: set[str], key: str = "") -> str | None:
    if isinstance(then, dict) and isinstance(now, dict):
        names = {name: f"{key}.{name}".lstrip(".") for name in {**then, **now}}
        found = (_first_difference(then.get(n), now.get(n), free, full) for n, full in names.items() if full not in free)
        return next((difference for difference in found if difference), None)
    return None if then == now else key
