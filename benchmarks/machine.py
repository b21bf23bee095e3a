"""What a figure was measured on: kind and number of processors, versions and commit; no host name and no path."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "peft", "pytorch-lightning", "trl")


def description() -> dict[str, Any]:
    """The machine and the software, as JSON-able figures."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS") or "as many as cores",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
    }


def _processor() -> str:
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit, with a plus where files that git knows were changed since; None outside a checkout."""
    git = shutil.which("git")
    if git is None:
        return None

    def said(*words: str) -> str | None:
        done = subprocess.run(  # noqa: S603
            [git, *words], cwd=Path(__file__).parent, capture_output=True, text=True
        )
        return done.stdout.strip() if done.returncode == 0 else None

    head = said("rev-parse", "--short=12", "HEAD")
    return f"{head}+" if head and said("status", "--porcelain", "--untracked-files=no") else head
