"""Phase 1: supervised fine-tuning. ``python train.py --help`` shows what can be set."""

from typing import Any

import hydra
from omegaconf import DictConfig

from esupport.config import command_line


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> Any:
    """Train as ``cfg`` says; returns the figure that a sweep optimises."""
    from esupport.training.job import train_job

    return train_job(cfg)


if __name__ == "__main__":
    command_line.run(main, "train")
