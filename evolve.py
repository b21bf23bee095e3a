"""Phase 1 and phase 2: the whole method. ``python evolve.py --help`` shows what can be set."""

from typing import Any

import hydra
from omegaconf import DictConfig

from esupport.config import command_line


@hydra.main(version_base="1.3", config_path="conf", config_name="evolve")
def main(cfg: DictConfig) -> Any:
    """Run the method as ``cfg`` says; returns the figure that a sweep optimises."""
    from esupport.evolution.job import evolve_job

    return evolve_job(cfg)


if __name__ == "__main__":
    command_line.run(main, "evolve")
