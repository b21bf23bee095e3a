"""What surrounds a run: the trainer with its callbacks and loggers, quiet libraries, and what the run cost."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig

from esupport.config.binding import bind
from esupport.config.check import check_resources, check_types
from esupport.errors import UserError, first_line
from esupport.generators.protocol import Generator
from esupport.models.slot import Slot
from esupport.objectives.reference import Scorer
from esupport.rendering.template import Renderer
from esupport.store import Store
from esupport.training.throughput import Throughput

Job = Callable[[DictConfig], Any]

# the optimizer step is planned by the data; these keys of Lightning's have no say in it
_PLANNED = {
    "accumulate_grad_batches": "batching.conversations_per_step and batching.tokens_per_batch",
    "gradient_clip_val": "objective.gradient_clip",
    "gradient_clip_algorithm": "objective.gradient_clip",
}


def told(job: Job) -> Job:
    """Wrap a job: a user's mistake is one line on stderr, the W&B run is always closed, and the exception goes on.

    It must end by exception, never by ``SystemExit``, or one failed job would end a sweep.
    """

    @functools.wraps(job)
    def wrapped(cfg: DictConfig) -> Any:
        exit_code = 1
        try:
            result = job(cfg)
            exit_code = 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise
        finally:
            if "wandb" in sys.modules:
                import wandb

                wandb.finish(exit_code=exit_code)
        return result

    return wrapped


def begin(config_name: str, cfg: DictConfig) -> dict[str, Any]:
    """The resolved settings of ``conf/CONFIG_NAME.yaml`` at a job's beginning: checked, bound to what they name, and seeded.

    Raises:
        UserError: a setting that cannot be.
    """
    plain = check_types(config_name, cfg)
    check_resources(plain)
    bind(plain)
    quiet()
    pl.seed_everything(plain["seed"], verbose=False)
    return plain


def make(node: Any, key: str, **given: Any) -> Any:
    """Instantiate a node, with plain lists and dicts; what it refuses is a ``UserError`` that names its key."""
    try:
        return instantiate(node, _convert_="object", **given)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise UserError(f"{key}: {first_line(error.__cause__ or error)}") from error


def make_generator(node: dict[str, Any], key: str, slot: Slot, renderer: Renderer) -> Generator:
    """A generator; one in this process is given the model and its template."""
    made: Generator = make(node, key)(slot=slot, renderer=renderer) if node.get("_partial_") else make(node, key)
    return made


def store_of(plain: dict[str, Any]) -> Store:
    """Where a run's stages are kept."""
    return Store(Path(plain["paths"]["store"]).expanduser())


def scorer_of(plain: dict[str, Any], slot: Slot, store: Store) -> Scorer:
    """What measures log-probabilities as a run does."""
    return Scorer(slot, store, plain["batching"]["tokens_per_batch"], str(plain["trainer"]["precision"]))


def quiet() -> None:
    """Silence what tells the user nothing: progress of loading, notes on choices that were made on purpose."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if not os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
        enable_progress_bars()  # which the line before hides too: a download of gigabytes is to be seen
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*no pre-optimization state was saved.*",  # the state after the step is the one to go on from
        ".*is_gradient_checkpointing.*",  # PEFT asks for it under its old name
    ):
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning\.utilities\._pytree")  # calls what torch deprecates


def device_of(trainer: dict[str, Any]) -> str:
    """The one device that the trainer's node names. Raises ``UserError`` where it names several."""
    made: pl.Trainer = make({**trainer, "logger": False, "enable_checkpointing": False}, "trainer")
    if made.world_size > 1:
        raise UserError("trainer.devices: only train.py runs on several; use trainer.devices=1")
    return str(made.strategy.root_device)


def make_loggers(plain: dict[str, Any], wandb: Callable[[], dict[str, Any]] = dict) -> list[Any]:
    """The loggers of a run, with its settings logged; ``wandb`` gives further settings of the W&B logger."""
    nodes = {name: node for name, node in plain["logger"].items() if node and not _disabled(node)}
    loggers = [make(node, f"logger.{name}", **(wandb() if _is_wandb(node) else {})) for name, node in nodes.items()]
    for logger in loggers:
        getattr(logger, "_wandb_init", {}).pop("anonymous", None)  # Lightning hands over a None that W&B warns of
        logger.log_hyperparams(pathless(plain))
    return loggers


def pathless(node: Any) -> Any:
    """Settings with names of files and folders in place of whole paths, which tell of the machine."""
    if isinstance(node, dict):
        return {key: pathless(value) for key, value in node.items()}
    if isinstance(node, list):
        return [pathless(value) for value in node]
    return Path(node).name if isinstance(node, str) and node.startswith(("/", "~/")) else node


def make_trainer(node: dict[str, Any], callbacks: dict[str, Any], loggers: list[Any], steps_per_epoch: int) -> pl.Trainer:
    """The trainer with callbacks and loggers. Raises ``UserError`` for settings that cannot work here."""
    _refuse(node, steps_per_epoch)
    made = [make(callback, f"callbacks.{name}") for name, callback in callbacks.items() if callback]
    trainer: pl.Trainer = make(node, "trainer", callbacks=[Throughput(), *made], logger=loggers)
    if trainer.world_size > 1 and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise UserError("trainer.devices: a sweep runs on one device a job; use trainer.devices=1")
    return trainer


def _disabled(logger: dict[str, Any]) -> bool:
    return os.environ.get("WANDB_MODE") == "disabled" and _is_wandb(logger)


def _is_wandb(logger: dict[str, Any]) -> bool:
    return str(logger["_target_"]).endswith("WandbLogger")


def _refuse(node: dict[str, Any], steps_per_epoch: int) -> None:
    for key, instead in _PLANNED.items():
        if node.get(key) not in (None, 1):
            raise UserError(f"trainer.{key}: the optimizer step is planned by the data; use {instead}")
    if str(node.get("precision")) not in ("None", "32", "32-true", "bf16-mixed"):
        raise UserError(
            f"trainer.precision: {node['precision']} would round the adapter's weights or scale its loss; use 32-true or "
            "bf16-mixed (model.dtype=bfloat16 halves the frozen weights)"
        )
    interval = node["val_check_interval"]
    if isinstance(interval, int) and interval > steps_per_epoch and node.get("check_val_every_n_epoch", 1):
        raise UserError(f"trainer.val_check_interval: {interval} steps is more than an epoch, which has {steps_per_epoch}")


class Costs:
    """Time, tokens and peak memory of one run, also where several runs share a process."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of this run, not of an earlier one
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def figures(self, trainer: pl.Trainer) -> dict[str, Any]:
        """What the run took so far."""
        clock = next(c for c in trainer.callbacks if isinstance(c, Throughput))  # type: ignore[attr-defined]
        gpu = trainer.strategy.root_device.type == "cuda"
        # Linux counts kilobytes, macOS bytes
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {
            "train/steps": trainer.global_step,
            "train/supervised_tokens": clock.tokens,
            "train/supervised_tokens_per_s": clock.rate,
            "train/seconds": clock.seconds,
            "seconds": time.perf_counter() - self._started,
            "peak_memory_gb": (torch.cuda.max_memory_allocated() if gpu else resident) / 1e9,
            "peak_memory_of": "GPU" if gpu else "process",
        }
