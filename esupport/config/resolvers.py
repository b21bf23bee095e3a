"""What config files compute: ``${first:a,b}`` and, of the run, ``${output_dir:}``, ``${run_label:}``, ``${sweep_group:}``
and ``${wandb_offline:}``.
"""

from __future__ import annotations

import netrc
import os
import re
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf


def first(*values: Any) -> Any:
    """The first value that is not null."""
    return next((value for value in values if value is not None), None)


def output_dir() -> str:
    """The run's directory, relative to the working directory where it lies below it; ``.`` outside a run."""
    if not HydraConfig.initialized() or OmegaConf.is_missing(HydraConfig.get().runtime, "output_dir"):
        return "."
    folder = Path(HydraConfig.get().runtime.output_dir)
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)


def run_label() -> str | None:
    """What a run is called in W&B: its overrides, with names of files in place of whole paths, or the name of its directory."""
    if not HydraConfig.initialized():
        return None
    return re.sub(r"(?<![^=,'\"\[])(?:~?/)[^,'\"\]]*/", "", HydraConfig.get().job.override_dirname) or Path(output_dir()).name


def sweep_group() -> str | None:
    """What the runs of a sweep have in common in W&B: the sweep's directory; None for a single run."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).name


def wandb_offline() -> bool:
    """Whether W&B must stay offline because there is no key: nothing is sent anywhere unasked."""
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"] != "online"
    if os.environ.get("WANDB_API_KEY"):
        return False
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").removeprefix("https://").removeprefix("http://")
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host.partition("/")[0]) is None
    except (OSError, netrc.NetrcParseError):
        return True


def register() -> None:
    """Make the resolvers known to OmegaConf."""
    for function in (first, output_dir, run_label, sweep_group, wandb_offline):
        OmegaConf.register_new_resolver(function.__name__, function, replace=True)
