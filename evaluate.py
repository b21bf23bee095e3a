"""Compare systems on the same contexts. ``python evaluate.py --help`` shows what can be set."""

from typing import Any

import hydra
from omegaconf import DictConfig

from esupport.config import command_line


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> Any:
    """Evaluate as ``cfg`` says."""
    from esupport.comparison.job import evaluate_job

    return evaluate_job(cfg)


if __name__ == "__main__":
    command_line.run(main, "evaluate")
