"""Shared fixtures: a configuration with a run directory, and training of the tiny model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# before anything reads them: no network, no caches outside the test run unless one is given
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: more threads only wait for each other
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("ESUPPORT_CACHE", str(Path(tempfile.gettempdir()) / f"esupport-tests-{os.getuid()}"))

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from esupport.config.command_line import CONF

if TYPE_CHECKING:
    from speaking import Local

ROOT = Path(__file__).parents[1]
TINY = [
    "model=tiny",
    "trainer=cpu",
    "logger=none",
    "samples.contexts=0",
    "callbacks.progress_bar=null",
    "+trainer.enable_progress_bar=false",
]

SMOKE = [
    "experiment=smoke",
    "logger=none",
    "samples.contexts=4",
    "callbacks.progress_bar=null",
    "+trainer.enable_progress_bar=false",
]

Compose = Callable[..., DictConfig]
Train = Callable[..., dict[str, Any]]
Evolve = Callable[..., list[dict[str, Any]]]


def config_of(name: str, overrides: Sequence[str], folder: Path) -> DictConfig:
    """``conf/NAME.yaml`` with overrides, as a run whose directory is ``folder``."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name, list(overrides), return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(folder)
        cfg.hydra.job.num = 0
        cfg.hydra.job.override_dirname = ",".join(overrides)
    HydraConfig.instance().set_config(cfg)
    plain = OmegaConf.create({k: v for k, v in OmegaConf.to_container(cfg).items() if k != "hydra"})  # type: ignore
    assert isinstance(plain, DictConfig)
    return plain


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Compose]:
    """Composes ``conf/train.yaml``, or another, with overrides, as a run in ``tmp_path``/``folder`` with a store beside it."""

    def make(*overrides: str, folder: str = "run", config: str = "train") -> DictConfig:
        return config_of(config, [f"paths.store={tmp_path}/store", *overrides], tmp_path / folder)

    yield make
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@pytest.fixture
def train(composed: Compose) -> Train:
    """Trains the tiny model with overrides, on few conversations; returns the figures."""
    from esupport.training.job import train as run

    def go(*overrides: str, folder: str = "run") -> dict[str, Any]:
        return run(composed(*TINY, "data.limit=12", *overrides, folder=folder))

    return go


@pytest.fixture
def evolve(composed: Compose) -> Evolve:
    """Runs the method on the tiny model, with few contexts and short texts; returns the systems' figures."""
    from esupport.evolution.job import evolve as run

    def go(*overrides: str, folder: str = "run") -> list[dict[str, Any]]:
        return run(composed(*SMOKE, *overrides, folder=folder, config="evolve"))

    return go


@pytest.fixture(scope="module")
def local() -> Local:
    """The tiny model as a writer, with weights large enough that a wrong mask shows."""
    from speaking import tiny

    return tiny()
